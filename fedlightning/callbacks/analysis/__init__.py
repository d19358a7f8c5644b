"""Analyses of a run: each is a callback that logs numbers, leaves a figure in the run's folder, and changes nothing."""

from fedlightning.callbacks.analysis.angles import UpdateAngles
from fedlightning.callbacks.analysis.landscape import LossLandscape
from fedlightning.callbacks.analysis.optima import ClientOptima
from fedlightning.callbacks.analysis.partition import PartitionReport

__all__ = ["ClientOptima", "LossLandscape", "PartitionReport", "UpdateAngles"]
