"""Evaluation: one pass in large batches over the pooled examples, summed per client by index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError, FedLightningError
from fedlightning.execution.inspection import misfit, raised_by_torch
from fedlightning.execution.model import Replica
from fedlightning.execution.slots import out_of_memory


@dataclass(frozen=True)
class Split:
    """One of the sets that are evaluated.

    Attributes:
        prefix: what its metrics' names begin with.
        examples: all its examples.
        clients: who owns them.
        resident: the same examples on other devices, one copy each; `on` adds what is missing.
    """

    prefix: str
    examples: Examples
    clients: Partition
    resident: dict[torch.device, Examples] = field(default_factory=dict)

    def on(self, device: torch.device) -> Examples:
        """The examples on a device."""
        with _COPYING:
            if device not in self.resident:
                self.resident[device] = self.examples.to(device)
            return self.resident[device]

    @cached_property
    def ends(self) -> Tensor:
        """Where in `clients.indices` the examples of each client end that has any [M]; M is at most their number."""
        return self.clients.offsets[1:][self.clients.sizes > 0]

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """The ranges of `clients.indices` that are evaluated together, so many at once."""
        count = len(self.clients.indices)
        return [(start, min(start + size, count)) for start in range(0, count, size)]


class EvaluationGivenUp(Exception):
    """The run was to end, and an evaluation would have taken too long."""


_COPYING = Lock()


def splits(data: FederatedDataModule, training: Mapping[torch.device, Examples] | None = None) -> list[Split]:
    """The sets that the data module asks to be evaluated; `training` is what lies of its training set on devices."""
    every = {
        "test": Split("val", data.test, data.test_clients),
        "train": Split("train_all", data.train, data.clients, dict(training or {})),
    }
    return [every[name] for name in data.evaluate_on]


Scored = tuple[dict[str, Tensor], Any, Tensor]
"""Per-example scores [B] by name, outputs (one tensor [B, …] or several) and targets of some examples, on the host."""


@torch.no_grad()
def evaluate_chunk(
    replica: Replica, data: FederatedDataModule, split: Split, chunk: tuple[int, int], x: Tensor, buffers: Tensor
) -> Scored:
    """Score a range of examples."""
    replica.load(x.to(replica.device), buffers.to(replica.device))
    index = split.clients.indices[slice(*chunk)].to(replica.device)
    inputs, targets = data.batch(split.on(replica.device), index)
    replica.task.eval()
    try:
        outputs = replica.outputs(inputs)
        scores = replica.task.scores(outputs, targets)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, FedLightningError) or out_of_memory(error) or not raised_by_torch(error):
            raise
        which = f"examples that are evaluated as `{split.prefix}/…`"
        raise misfit((inputs, targets), which, error, replica.layout.dtype) from error
    finally:
        replica.task.train()
    host = _pytree.tree_map(lambda each: each.cpu() if isinstance(each, Tensor) else each, outputs)
    return {name: values.cpu() for name, values in scores.items()}, host, targets.cpu()


class ClientSums:
    """Sums of per-example scores for each client of a split that has examples, however many others there are."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._sums: dict[str, Tensor] = {}

    def add(self, chunk: tuple[int, int], scores: dict[str, Tensor]) -> None:
        """Add the scores of a range of examples."""
        owners = torch.searchsorted(self._split.ends, torch.arange(*chunk), right=True)
        for name, values in scores.items():
            if values.shape != owners.shape:
                raise ConfigurationError(
                    f"`scores` of the task must be per example [{len(owners)}], but {name!r} is {list(values.shape)}; "
                    "reduce over everything but the first dimension."
                )
            total = self._sums.setdefault(name, torch.zeros(len(self._split.ends), dtype=torch.float64))
            total.index_add_(0, owners, values.to(torch.float64))

    def metrics(self) -> dict[str, float]:
        """The mean over examples; over clients the mean, the standard deviation and the mean of the worst tenth."""
        sizes = torch.diff(self._split.ends, prepend=torch.zeros(1, dtype=torch.int64))
        prefix, result = self._split.prefix, {}
        for name, total in self._sums.items():
            result[f"{prefix}/{name}"] = float(total.sum() / sizes.sum())
            clients = (total / sizes).sort(descending=name == "loss").values
            result[f"{prefix}_clients/{name}_mean"] = float(clients.mean())
            result[f"{prefix}_clients/{name}_std"] = float(clients.std(correction=0))
            result[f"{prefix}_clients/{name}_worst_decile"] = float(clients[: -(-len(clients) // 10)].mean())
        return result
