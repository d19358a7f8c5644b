"""LEAF's rules for natural clients (Caldas et al., 2018): which are taken, and which of their samples are for training.

The rules are those of the version that FedProx (Li et al., MLSys 2020) ran. It seeded nothing; here every draw has an
address, so a data set depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream

Ints = np.ndarray[Any, np.dtype[np.int64]]


def take_clients(sizes: Ints, fraction: float, min_samples: int, seed: int, owner: str) -> Ints:
    """How many of its first samples each client keeps [N] (int64); 0 where a client is not taken.

    First `--sf fraction -s niid`: clients come in random order, each with all its samples, until ⌊fraction · total⌋
    samples are reached; the last client keeps only the first of its samples that still fit. Then `-k min_samples`.
    (LEAF shuffles the samples of that last client; here they keep their order.)

    Args:
        sizes: samples of each client [N].
        fraction: share of all samples that is wanted, in (0, 1].
        min_samples: clients with this many samples or fewer are dropped, and in any case those with fewer than two.
        seed: of the order.
        owner: who asks, for the message.

    Raises:
        ConfigurationError: no client is left.
    """
    order = stream(seed, "leaf-sample").permutation(len(sizes))
    wanted = int(fraction * int(sizes.sum()))
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = np.zeros(len(sizes), dtype=np.int64)
    taken[order] = np.clip(wanted - before, 0, sizes[order])
    largest = int(taken.max(initial=0))
    taken[taken <= max(min_samples, 1)] = 0
    if not taken.any():
        raise ConfigurationError(
            f"{owner} must have a client with more than {max(min_samples, 1)} samples, but the largest of the "
            f"{fraction:.3g} of the data that are taken has {largest}; lower `min_samples` ({min_samples}), raise "
            f"`fraction` ({fraction:.3g}), or use more data."
        )
    return taken


def count_train(size: int, train_fraction: float) -> int:
    """How many of a client's n ≥ 2 samples are for training, max(1, ⌊train_fraction · n⌋)."""
    return max(1, int(train_fraction * size))


def random_split(size: int, train_fraction: float, seed: int, client: int) -> tuple[Ints, Ints]:
    """Which of a client's n ≥ 2 samples are for training and which for testing, both in ascending order."""
    order = stream(seed, "leaf-split", client).permutation(size)
    cut = count_train(size, train_fraction)
    return np.sort(order[:cut]), np.sort(order[cut:])


def contiguous_split(size: int, train_fraction: float, gap: int) -> tuple[Ints, Ints]:
    """A client's first samples for training, then `gap` samples for nothing, and the others for testing, if any."""
    cut = count_train(size, train_fraction)
    return np.arange(cut), np.arange(min(cut + gap, size), size)


def owned(starts: Ints, halves: Sequence[tuple[Ints, Ints]]) -> tuple[Partition, Partition]:
    """Who owns the training samples, and who the test samples.

    Args:
        starts: where the samples of each client begin in the data set [N].
        halves: which of a client's samples are for training and which for testing, counted from its first.
    """
    train, test = (
        Partition.of([torch.from_numpy(start + half[part]) for start, half in zip(starts, halves, strict=True)])
        for part in (0, 1)
    )
    return train, test


def encode_names(names: list[str]) -> Tensor:
    """Names without line ends as bytes [n] (uint8), to be kept with other tensors."""
    return torch.frombuffer(bytearray("\n".join(names).encode("utf-8", "surrogateescape")), dtype=torch.uint8)


def decode_names(encoded: Tensor) -> list[str]:
    """The names that `encode_names` was given."""
    return encoded.numpy().tobytes().decode("utf-8", "surrogateescape").split("\n")
