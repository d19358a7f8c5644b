"""Parts of a data set: what some clients own, gathered; and what is set aside of each client's for validation."""

from __future__ import annotations

import torch

from fedlightning._checked import checked
from fedlightning.data.module import Examples
from fedlightning.data.partition import Partition
from fedlightning.randomness import stream


@checked()
def gather(examples: Examples, clients: Partition) -> tuple[Examples, Partition]:
    """A copy of the clients' examples, one client's after another's, and who owns them there.

    Args:
        examples: inputs [n, …] and targets [n, …].
        clients: whose they are; an example may belong to several clients, and is copied for each.
    """
    return (
        Examples(examples.inputs[clients.indices], examples.targets[clients.indices]),
        Partition.of_sizes(clients.sizes),
    )


@checked(fraction="[0, 1)")
def set_aside(clients: Partition, fraction: float, seed: int) -> tuple[Partition, Partition]:
    """Divide each client's examples at random into those that it trains on and those that are set aside.

    Of n examples round(fraction · n) are set aside, but at most n − 1: each client keeps one at least. A client's choice
    depends on the seed and its number alone, so it is the same whatever other clients there are. Positions keep their order.

    Args:
        clients: who owns the training examples.
        fraction: of each client's examples that is set aside.
        seed: of the choice; the partition's.

    Returns:
        Who owns the examples for training, and who those that are set aside; positions of both are those of `clients`.
    """
    aside, counts = torch.zeros(len(clients.indices), dtype=torch.bool), torch.zeros_like(clients.sizes)
    for client, size in enumerate(clients.sizes.tolist()):
        count = max(min(round(fraction * size), size - 1), 0)
        if count:
            chosen = stream(seed, "validation", client).permutation(size)[:count]
            aside[int(clients.offsets[client]) + torch.from_numpy(chosen)] = True
            counts[client] = count
    kept = Partition.of_sizes(clients.sizes - counts, clients.indices[~aside])
    return kept, Partition.of_sizes(counts, clients.indices[aside])
