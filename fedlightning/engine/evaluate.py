"""Evaluation: one pass in large batches over the pooled examples, summed per client by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.data.partition import Partition
from fedlightning.engine.replica import Replica, channels_last
from fedlightning.errors import ConfigurationError

CHUNK = 1000
"""Examples of one forward pass; fixed, so that the numbers do not depend on the machine."""


@dataclass(frozen=True)
class Split:
    """One of the sets that are evaluated.

    Attributes:
        prefix: what its metrics' names begin with.
        examples: all its examples.
        clients: who owns them.
    """

    prefix: str
    examples: Examples
    clients: Partition

    def chunks(self) -> list[tuple[int, int]]:
        """The ranges of `clients.indices` that are evaluated together."""
        count = len(self.clients.indices)
        return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def splits(data: FederatedDataModule) -> list[Split]:
    """The sets that the data module asks to be evaluated."""
    every = {
        "test": Split("val", data.test, data.test_clients),
        "train": Split("train_all", data.train, data.clients),
    }
    return [every[name] for name in data.evaluate_on]


@torch.no_grad()
def evaluate_chunk(
    replica: Replica, data: FederatedDataModule, split: Split, chunk: tuple[int, int], x: Tensor, buffers: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Per-example scores [B] by name, outputs and targets of a range of examples, on the host."""
    replica.load(x.to(replica.device), buffers.to(replica.device))
    replica.task.eval()
    index = split.clients.indices[slice(*chunk)]
    inputs, targets = data.batch(split.examples, index)
    inputs, targets = inputs.to(replica.device), targets.to(replica.device)
    outputs = replica.task(channels_last(inputs))
    scores = replica.task.scores(outputs, targets)
    replica.task.train()
    return {name: values.cpu() for name, values in scores.items()}, outputs.cpu(), targets.cpu()


class ClientSums:
    """Sums of per-example scores, pooled and for each client of a split."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._owners = split.clients.owners()
        self._sums: dict[str, Tensor] = {}

    def add(self, chunk: tuple[int, int], scores: dict[str, Tensor]) -> None:
        """Add the scores of a range of examples."""
        owners = self._owners[slice(*chunk)]
        for name, values in scores.items():
            if values.shape != owners.shape:
                raise ConfigurationError(
                    f"`scores` of the task must be per example [{len(owners)}], but {name!r} is {list(values.shape)}; "
                    "reduce over everything but the first dimension."
                )
            total = self._sums.setdefault(name, torch.zeros(self._split.clients.num_clients, dtype=torch.float64))
            total.index_add_(0, owners, values.to(torch.float64))

    def metrics(self) -> dict[str, float]:
        """The mean over examples; over clients the mean, the standard deviation and the mean of the worst tenth."""
        sizes = self._split.clients.sizes
        some, prefix, result = sizes > 0, self._split.prefix, {}
        for name, total in self._sums.items():
            result[f"{prefix}/{name}"] = float(total.sum() / sizes.sum())
            clients = (total / sizes)[some].sort(descending=name == "loss").values
            result[f"{prefix}_clients/{name}_mean"] = float(clients.mean())
            result[f"{prefix}_clients/{name}_std"] = float(clients.std(correction=0))
            result[f"{prefix}_clients/{name}_worst_decile"] = float(clients[: -(-len(clients) // 10)].mean())
        return result
