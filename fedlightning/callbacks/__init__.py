"""Callbacks, by Lightning's protocol; those that analyse a run are in `fedlightning.analysis`."""

from fedlightning.callbacks.base import Callback, CohortResult
from fedlightning.callbacks.checkpoint import ModelCheckpoint
from fedlightning.callbacks.early_stopping import EarlyStopping
from fedlightning.callbacks.progress import RoundProgress
from fedlightning.callbacks.throughput import Throughput

__all__ = ["Callback", "CohortResult", "EarlyStopping", "ModelCheckpoint", "RoundProgress", "Throughput"]
