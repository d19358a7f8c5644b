"""Federated data: resident examples, who owns them, who takes part and how much, and ready-made data sets."""

from fedlightning.data.augmentation import RandomCropFlip, RandomCropRotate
from fedlightning.data.emnist import EMNIST
from fedlightning.data.femnist import FEMNIST, OmniglotWriters
from fedlightning.data.glove import Glove
from fedlightning.data.leaf import LeafData, read_leaf
from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, Schedule
from fedlightning.data.partition import Partition
from fedlightning.data.partition_names import parse_partition
from fedlightning.data.partitioners import IID, Dirichlet, Natural, Partitioner, QuantitySkew, Shards
from fedlightning.data.power_law import PowerLawMNIST
from fedlightning.data.replay import FedProxReplay
from fedlightning.data.sampling import ClientSampler, FixedSchedule, RoundSeeded, SizeWeighted, UniformSampling
from fedlightning.data.sent140 import Sent140
from fedlightning.data.shakespeare import Shakespeare
from fedlightning.data.stackoverflow import NextWord, StackOverflow
from fedlightning.data.statistics import statistics_table
from fedlightning.data.stragglers import Stragglers
from fedlightning.data.synthetic import Synthetic, generate
from fedlightning.data.tensors import TensorData
from fedlightning.data.vision import CIFAR10, CIFAR100, MNIST, FakeImages, FashionMNIST, ImageData

__all__ = [
    "CIFAR10", "CIFAR100", "EMNIST", "FEMNIST", "IID", "MNIST", "Augmentation", "ClientSampler", "Dirichlet",
    "Examples", "FakeImages", "FashionMNIST", "FedProxReplay", "FederatedDataModule", "FixedSchedule", "Glove",
    "ImageData", "LeafData", "Natural", "NextWord", "OmniglotWriters", "Partition", "Partitioner", "PowerLawMNIST",
    "QuantitySkew", "RandomCropFlip", "RandomCropRotate", "RoundSeeded", "Schedule", "Sent140", "Shakespeare",
    "Shards", "SizeWeighted", "StackOverflow", "Stragglers", "Synthetic", "TensorData", "UniformSampling",
    "generate", "parse_partition", "read_leaf", "statistics_table",
]  # fmt: skip
