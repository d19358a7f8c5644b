"""Federated data: the contract of a data module, examples, who owns them, and how they are divided and changed."""

from fedlightning.data.batching import Batching
from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, Schedule, Splits
from fedlightning.data.partition import Partition
from fedlightning.data.partition_names import parse_partition
from fedlightning.data.partitioners import IID, Dirichlet, Natural, Partitioner, QuantitySkew, Shards
from fedlightning.data.splits import gather, set_aside
from fedlightning.data.statistics import statistics_table
from fedlightning.data.tensors import TensorData
from fedlightning.data.transforms import RandomCropFlip, RandomCropRotate, TFFCifar, Transform

__all__ = [
    "IID", "Augmentation", "Batching", "Dirichlet", "Examples", "FederatedDataModule", "Natural", "Partition", "Partitioner",
    "QuantitySkew", "RandomCropFlip", "RandomCropRotate", "Schedule", "Shards", "Splits", "TFFCifar", "TensorData",
    "Transform", "gather", "parse_partition", "set_aside", "statistics_table",
]  # fmt: skip
