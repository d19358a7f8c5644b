"""Analyses of a run: each is a callback that logs numbers, leaves a figure in the run's folder, and changes nothing.

`dissimilarity_at` measures a model without a run.
"""

from fedlightning.analysis.angles import UpdateAngles
from fedlightning.analysis.dissimilarity import Dissimilarity, dissimilarity_at
from fedlightning.analysis.landscape import LossLandscape
from fedlightning.analysis.optima import ClientOptima
from fedlightning.analysis.partition import PartitionReport

__all__ = ["ClientOptima", "Dissimilarity", "LossLandscape", "PartitionReport", "UpdateAngles", "dissimilarity_at"]
