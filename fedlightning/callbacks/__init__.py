"""Callbacks, by Lightning's protocol."""

from fedlightning.callbacks.analysis import ClientOptima, LossLandscape, PartitionReport, UpdateAngles
from fedlightning.callbacks.checkpoint import ModelCheckpoint
from fedlightning.callbacks.dissimilarity import Dissimilarity
from fedlightning.callbacks.early_stopping import EarlyStopping
from fedlightning.callbacks.progress import RoundProgress
from fedlightning.callbacks.throughput import Throughput

__all__ = [
    "ClientOptima",
    "Dissimilarity",
    "EarlyStopping",
    "LossLandscape",
    "ModelCheckpoint",
    "PartitionReport",
    "RoundProgress",
    "Throughput",
    "UpdateAngles",
]
