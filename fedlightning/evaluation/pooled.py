"""Evaluation: one pass in large batches over the pooled examples, summed per client by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torchmetrics import MetricCollection

from fedlightning.data.module import Examples, FederatedDataModule, SplitName
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError, FedLightningError, out_of_memory
from fedlightning.evaluation.footprint import examples_at_once
from fedlightning.execution.inspection import misfit, raised_by_torch
from fedlightning.execution.model import Replica
from fedlightning.execution.slots import Worker
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.task import FederatedTask, computed


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


PREFIXES: dict[SplitName, str] = {"val": "val", "test": "test", "train": "train_all"}
"""What the metrics' names of each split begin with."""


def splits(
    data: FederatedDataModule, evaluate_on: Sequence[SplitName], training: Mapping[torch.device, Examples] | None = None
) -> list[Split]:
    """The sets that are evaluated.

    Args:
        data: whose splits they are.
        evaluate_on: which; "val" is left out where the data have no validation split.
        training: what lies of the training set on devices.
    """
    found = [(name, data.split_named(name)) for name in evaluate_on]
    return [
        Split(PREFIXES[name], *owned, dict(training or {}) if name == "train" else {})
        for name, owned in found
        if owned is not None
    ]


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


class GlobalEvaluator:
    """Scores the global model on some of the data module's splits, on the slots of a run.

    Args:
        strategy: whose slots.
        task: the model, its scores and metrics.
        data: whose splits.
        evaluate_on: which of them.
    """

    def __init__(
        self, strategy: SlotStrategy, task: FederatedTask, data: FederatedDataModule, evaluate_on: Sequence[SplitName]
    ) -> None:
        self._strategy, self._task, self._data = strategy, task, data
        self._splits = splits(data, evaluate_on, strategy.examples)
        self._at_once: dict[str, int] = {}

    @property
    def logs(self) -> list[str]:
        """Names of its metrics, `*` for any part of one."""
        return [f"{split.prefix}{over}/*" for split in self._splits for over in ("", "_clients")]

    def score(
        self, x: Tensor, buffers: Tensor, goes_on: Callable[[int, int], bool] = lambda done, total: True
    ) -> dict[str, float]:
        """The metrics.

        Args:
            x: the model [P].
            buffers: its buffers [Q].
            goes_on: told between batches how many examples of how many are done; whether anybody waits for the metrics still.

        Raises:
            EvaluationGivenUp: nobody does.
        """
        result: dict[str, float] = {}
        done, total = 0, sum(len(split.clients.indices) for split in self._splits)
        for split in self._splits:

            def after(count: int, before: int = done) -> bool:
                return goes_on(before + count, total)

            result.update(self._split(split, x, buffers, after))
            done += len(split.clients.indices)
        return result

    def rehearse(self, x: Tensor, buffers: Tensor) -> list[str]:
        """Score two examples of each split on a CPU, for what is refused then.

        Returns:
            The names of the metrics, `*` for any part of one.

        Raises:
            ConfigurationError: the model, the scores or the metrics do not fit the examples.
        """
        replica, names = self._strategy.replica(torch.device("cpu")), list[str]()
        for split in self._splits:
            chunk = 0, min(2, len(split.clients.indices))
            scores, outputs, targets = evaluate_chunk(replica, self._data, split, chunk, x.cpu(), buffers.cpu())
            ClientSums(split).add(chunk, scores)
            self._update(self._task.metrics.clone(), outputs, targets)
            names += [f"{split.prefix}{over}/{name}*" for name in scores for over in ("", "_clients")]
            names += [f"{split.prefix}/{name}*" for name in map(str, self._task.metrics)]
        return names

    def predict(self, x: Tensor, buffers: Tensor) -> Any:
        """The outputs for the first split, in the order of its examples: a tensor [n, …] or a tree of tensors, on the host."""
        split, strategy = self._splits[0], self._strategy
        whole = Split(split.prefix, split.examples, Partition.of_sizes(torch.tensor([len(split.examples.targets)])))

        def outputs(chunk: tuple[int, int]) -> Callable[[Worker], Any]:
            return lambda worker: evaluate_chunk(worker.replica, self._data, whole, chunk, x, buffers)[1]

        chunks = whole.chunks(self._examples_at_once(whole, x, buffers))
        found = list(strategy.map([outputs(chunk) for chunk in chunks], window=2 * len(strategy.slots)))
        return _pytree.tree_map(lambda *parts: torch.cat(parts), *found)

    def _split(self, split: Split, x: Tensor, buffers: Tensor, goes_on: Callable[[int], bool]) -> dict[str, float]:
        sums, metrics, strategy = ClientSums(split), self._task.metrics.clone(), self._strategy
        chunks = split.chunks(self._examples_at_once(split, x, buffers))

        def score(chunk: tuple[int, int]) -> Callable[[Worker], Scored]:
            return lambda worker: evaluate_chunk(worker.replica, self._data, split, chunk, x, buffers)

        with closing(strategy.map([score(chunk) for chunk in chunks], window=2 * len(strategy.slots))) as results:
            for chunk, (scores, outputs, targets) in zip(chunks, results, strict=True):
                sums.add(chunk, scores)
                self._update(metrics, outputs, targets)
                if not goes_on(chunk[1]):
                    raise EvaluationGivenUp
        pooled = {f"{split.prefix}/{name}": value for name, value in computed(metrics).items()}
        return {**sums.metrics(), **pooled}

    def _examples_at_once(self, split: Split, x: Tensor, buffers: Tensor) -> int:
        """How many of a split are evaluated at once; measured where it is evaluated for the first time."""
        if split.prefix not in self._at_once:
            model = x.cpu(), buffers.cpu()
            replica = self._strategy.replica(torch.device("cpu"))

            def evaluate(count: int) -> object:
                scored = evaluate_chunk(replica, self._data, split, (0, count), *model)
                self._update(self._task.metrics.clone(), *scored[1:])
                return scored

            self._at_once[split.prefix] = examples_at_once(evaluate)
        return self._at_once[split.prefix]

    def _update(self, metrics: MetricCollection, outputs: Any, targets: Tensor) -> None:
        try:
            self._task.update_metrics(metrics, outputs, targets)
        except Exception as error:
            name = type(self._task).__name__
            raise ConfigurationError(
                f"The metrics of {name} ({', '.join(map(str, metrics))}) must take the model's outputs and the targets of an "
                f"evaluation, but one does not: {type(error).__name__}: {' '.join(str(error).split())[:300]}; see how it was "
                f"made, or `update_metrics` of {name}."
            ) from error


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
