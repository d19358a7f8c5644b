"""Callbacks, by Lightning's protocol."""

from fedlightning.callbacks.checkpoint import ModelCheckpoint
from fedlightning.callbacks.dissimilarity import Dissimilarity
from fedlightning.callbacks.early_stopping import EarlyStopping
from fedlightning.callbacks.progress import RoundProgress
from fedlightning.callbacks.throughput import Throughput

__all__ = ["Dissimilarity", "EarlyStopping", "ModelCheckpoint", "RoundProgress", "Throughput"]
