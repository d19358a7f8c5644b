"""Ready-made federated data sets."""

from fedlightning.datasets.emnist import EMNIST
from fedlightning.datasets.femnist import FEMNIST, OmniglotWriters
from fedlightning.datasets.glove import Glove
from fedlightning.datasets.leaf import LeafData, read_leaf
from fedlightning.datasets.power_law import PowerLawMNIST
from fedlightning.datasets.sent140 import Sent140
from fedlightning.datasets.shakespeare import Shakespeare
from fedlightning.datasets.stackoverflow import NextWord, StackOverflow
from fedlightning.datasets.synthetic import Synthetic, generate
from fedlightning.datasets.vision import CIFAR10, CIFAR100, MNIST, FakeImages, FashionMNIST, ImageData

__all__ = [
    "CIFAR10", "CIFAR100", "EMNIST", "FEMNIST", "MNIST", "FakeImages", "FashionMNIST", "Glove", "ImageData", "LeafData",
    "NextWord", "OmniglotWriters", "PowerLawMNIST", "Sent140", "Shakespeare", "StackOverflow", "Synthetic", "generate",
    "read_leaf",
]  # fmt: skip
