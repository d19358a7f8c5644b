"""What FedProx's data sets share (Li et al., MLSys 2020): batches, the deal of classes to devices, each device's split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, Splits
from fedlightning.data.partition import Partition
from fedlightning.data.splits import gather

Array = np.ndarray[Any, np.dtype[Any]]

BATCHING = Batching(10, epochs=20)
"""The batches of the paper's experiments."""


def dealt(labels: Tensor, shares: Sequence[Sequence[tuple[int, int, int]]]) -> list[Array]:
    """The positions of each device's examples [n_k].

    Args:
        labels: of all examples [n] (int64).
        shares: what each device takes: triples (class, first, count) of positions within a class.
    """
    classes = [np.flatnonzero(labels.numpy() == label) for label in range(int(labels.max()) + 1)]
    return [
        np.concatenate([classes[label][first : first + count] for label, first, count in taken]) for taken in shares
    ]


def split_devices(devices: Sequence[Array], seed: int) -> tuple[Partition, Partition]:
    """Shuffle each device's positions by one `random.Random(seed)`; the first nine tenths are for training.

    Args:
        devices: the positions of each device's examples [n_k].
        seed: of the shuffles.

    Returns:
        Who owns the examples for training, ⌊0.9 n_k⌋ of each device, and who those for testing.
    """
    shuffler = random.Random(seed)
    train, test = [], []
    for positions in devices:
        order = list(range(len(positions)))
        shuffler.shuffle(order)
        shuffled = torch.from_numpy(np.asarray(positions, dtype=np.int64)[order])
        train.append(shuffled[: int(0.9 * len(order))])
        test.append(shuffled[int(0.9 * len(order)) :])
    return Partition.of(train), Partition.of(test)


def splits_of(examples: Examples, devices: Sequence[Array], seed: int) -> Splits:
    """The devices' examples, one device's after another's, split by `split_devices`; an example may belong to several."""
    train, test = split_devices(devices, seed)
    return Splits(*gather(examples, train), *gather(examples, test))
