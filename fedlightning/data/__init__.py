"""Federated data: resident examples, who owns them, who takes part, and ready-made data sets."""

from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, Schedule
from fedlightning.data.partition import Partition
from fedlightning.data.partition_names import parse_partition
from fedlightning.data.partitioners import IID, Dirichlet, Natural, Partitioner, QuantitySkew, Shards
from fedlightning.data.sampling import ClientSampler, FixedSchedule, RoundSeeded, UniformSampling
from fedlightning.data.synthetic import Synthetic, generate
from fedlightning.data.tensors import TensorData
from fedlightning.data.vision import CIFAR10, CIFAR100, MNIST, FakeImages, FashionMNIST, ImageData, RandomCropFlip

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "MNIST",
    "Augmentation",
    "ClientSampler",
    "Dirichlet",
    "Examples",
    "FakeImages",
    "FashionMNIST",
    "FederatedDataModule",
    "FixedSchedule",
    "ImageData",
    "Natural",
    "Partition",
    "Partitioner",
    "QuantitySkew",
    "RandomCropFlip",
    "RoundSeeded",
    "Schedule",
    "Shards",
    "Synthetic",
    "TensorData",
    "UniformSampling",
    "generate",
    "parse_partition",
]
