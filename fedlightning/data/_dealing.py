"""How examples are dealt out: by each class's shares, or by each client's mixture."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np

from fedlightning.randomness import stream

Ints = np.ndarray[Any, np.dtype[np.int64]]

TRIES = 20
"""How often shares are drawn anew before examples are moved to the clients that have too few."""


def by_shares(classes: list[Ints], alpha: float, num_clients: int, min_size: int, seed: int) -> Ints:
    """The owner of each example [n] when each class is shared out by p ~ Dir(α 1_N).

    The cuts are ⌊cumsum(p) n_c⌋ with the clients in a new random order for each class, so that rounding favours none.
    """
    order = stream(seed, "partition-order")
    shuffled = [order.permutation(members) for members in classes]
    owners = np.empty(sum(map(len, classes)), dtype=np.int64)
    for attempt in range(TRIES):
        rng = stream(seed, "partition", attempt)
        for members in shuffled:
            shares = rng.dirichlet(np.full(num_clients, alpha))
            cuts = np.floor(shares.cumsum()[:-1] * len(members)).astype(np.int64)
            sizes = np.diff(cuts, prepend=0, append=len(members))
            owners[members] = rng.permutation(num_clients).repeat(sizes)
        if np.bincount(owners, minlength=num_clients).min() >= min_size:
            break
    else:
        fill_up(owners, num_clients, min_size, order)
    return owners


def fill_up(owners: Ints, num_clients: int, min_size: int, rng: np.random.Generator) -> None:
    """Move random examples, in place, from the largest clients to those below `min_size`."""
    sizes = np.bincount(owners, minlength=num_clients)
    wanted = np.maximum(min_size - sizes, 0)

    def falls_short(level: int) -> bool:
        return bool(np.maximum(sizes - level, 0).sum() < wanted.sum())

    # The largest clients are lowered to one level; those first in line keep one more where that gives too many.
    level = bisect_left(range(int(sizes.max()) + 1), True, key=falls_short) - 1
    given = np.maximum(sizes - level, 0)
    given[given.nonzero()[0][: given.sum() - wanted.sum()]] -= 1
    order = rng.permutation(len(owners))
    order = order[owners[order].argsort(kind="stable")]
    rank = np.arange(len(owners)) - (sizes.cumsum() - sizes).repeat(sizes)
    moved = order[rank < given.repeat(sizes)]
    owners[rng.permutation(moved)] = np.arange(num_clients).repeat(wanted)


def by_mixtures(classes: list[Ints], alpha: float, num_clients: int, seed: int) -> Ints:
    """The owner of each example [n] when each client draws n/N examples by its mixture q ~ Dir(α prior)."""
    stock = np.array([len(members) for members in classes])
    sizes = np.bincount(blocks(int(stock.sum()), num_clients))
    concentration = np.maximum(alpha * (stock / stock.sum()), np.finfo(np.float64).tiny)
    rng, order = stream(seed, "partition"), stream(seed, "partition-order")
    counts = np.empty((num_clients, len(classes)), dtype=np.int64)
    for client, size in enumerate(sizes):
        counts[client] = draw(rng, rng.dirichlet(concentration), int(size), stock)
        stock -= counts[client]
    owners = np.empty(sum(map(len, classes)), dtype=np.int64)
    for members, count in zip(classes, counts.T, strict=True):
        owners[order.permutation(members)] = np.arange(num_clients).repeat(count)
    return owners


def draw(rng: np.random.Generator, mixture: np.ndarray[Any, Any], size: int, stock: Ints) -> Ints:
    """`size` examples by class: independent draws from the mixture, those from a class that has run out drawn again."""
    taken = np.zeros_like(stock)
    while (missing := size - taken.sum()) > 0:
        weights = np.where(taken < stock, mixture, 0.0)
        if weights.sum() < np.finfo(np.float64).tiny:
            weights = stock - taken
        taken = np.minimum(taken + rng.multinomial(missing, weights / weights.sum()), stock)
    return taken


def blocks(num_examples: int, num_blocks: int) -> Ints:
    """0 … 0 1 … 1 …, blocks whose sizes differ by at most one [num_examples]."""
    return np.arange(num_examples) * num_blocks // num_examples
