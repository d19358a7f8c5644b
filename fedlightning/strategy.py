"""Where clients are trained: slots, cohorts, and the rules of "auto"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning import interpreter
from fedlightning.callback import CohortResult
from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.engine.cohort import run_cohort
from fedlightning.engine.evaluate import ClientSums, Split, evaluate_chunk, splits
from fedlightning.engine.job import RoundJob
from fedlightning.engine.replica import Replica
from fedlightning.engine.slots import Slot, Worker, WorkerPool, cpu_count
from fedlightning.errors import ConfigurationError
from fedlightning.task import FederatedTask
from fedlightning.vector import Layout

_HEAVY = 1_000_000
"""Parameters from which a model's operations, which run without the GIL, outweigh its Python."""

_DENSE = (nn.Linear, nn.Flatten, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LayerNorm, nn.Dropout)
"""Layers that are faster side by side than one after another on a CPU."""


class SlotStrategy:
    """Maps clients to slots: threads with their own device, stream, replica and thread count.

    The results never depend on the number of slots. They depend on `cohort_size` and `threads_per_slot` by rounding.

    Args:
        slots: names such as ["cuda:0/0", "cuda:0/1", "cpu/0"], also in one string with commas; a number of slots on the
            default device; or "auto": on GPUs two slots a device without the GIL, else one; on a CPU one a core without
            the GIL or for a model of at least a million parameters, else one, since Python-bound slots under the GIL
            slow each other down.
        cohort_size: clients trained at once under vmap; 1 trains them one after another, which serves any model; "auto"
            chooses 1, except for small dense models (linear layers alone) on a CPU with at least 16 clients a round of
            similar sizes: there half of the clients, at most 64.
        threads_per_slot: intra-operator threads of each slot.
        memory_dir: where the clients' memory lies as memory-mapped files; None keeps it in the host's memory.

    Raises:
        ConfigurationError: a slot's name does not parse, its device is not there, or it is named twice.
    """

    def __init__(
        self,
        slots: str | int | Sequence[str] = "auto",
        *,
        cohort_size: str | int = "auto",
        threads_per_slot: int = 1,
        memory_dir: str | Path | None = None,
    ) -> None:
        self._wish = _read_slots(slots)
        numbers = (
            ("slots", self._wish, "'auto' or "),
            ("cohort_size", cohort_size, "'auto' or "),
            ("threads_per_slot", threads_per_slot, ""),
        )
        for name, value, auto in numbers:
            if (isinstance(value, int) and value < 1) or (isinstance(value, str) and value != "auto"):
                raise ConfigurationError(f"`{name}` of SlotStrategy must be {auto}at least 1, but is {value!r}.")
        self._cohort_wish, self._threads = cohort_size, threads_per_slot
        self.memory_dir = Path(memory_dir) if memory_dir else None
        self.slots: list[Slot] = []
        self.cohort_size = 1

    def setup(self, task: FederatedTask, layout: Layout, data: FederatedDataModule, participants: int) -> None:
        """Resolve "auto" for this run and start the slots."""
        self._task, self._data = task, data
        self.slots = (
            self._wish if isinstance(self._wish, list) else _choose_slots(self._wish, layout.size, participants)
        )
        self.cohort_size = self._choose_cohort(task, layout, data, participants)
        devices = {slot.device for slot in self.slots}
        self._examples = {device: data.train.to(device) for device in devices}
        self._splits = splits(data)
        workers = [Worker(slot, Replica(task, layout, slot.device), self._threads) for slot in self.slots]
        self._pool: WorkerPool[Any] = WorkerPool(workers)

    def teardown(self) -> None:
        """Stop the slots; the cohorts that still run are cancelled."""
        self._pool.close()

    @property
    def root_device(self) -> torch.device:
        """Where the server's state lives: the first slot's device."""
        return self.slots[0].device

    def describe(self) -> str:
        """One line: interpreter, GIL, slots and cohort size."""
        cohort = f"cohorts of {self.cohort_size}" if self.cohort_size > 1 else "one client at a time"
        names = ", ".join(map(str, self.slots[:8])) + (f", … {len(self.slots)} in all" if len(self.slots) > 8 else "")
        return f"{interpreter.description()}; slots {names} ({self._threads} thread each), {cohort}"

    def examples(self, device: torch.device) -> Examples:
        """The training set on a device; one copy a device, none on a CPU."""
        return self._examples[device]

    @property
    def cancelled(self) -> Callable[[], bool]:
        """Whether the slots are being stopped."""
        return self._pool.cancelled.is_set

    def run_round(self, job: RoundJob, clients: Sequence[int]) -> Iterator[CohortResult]:
        """Train the clients; yield the cohorts in packing order, which is most local steps first."""
        order = sorted(clients, key=lambda client: (-job.num_steps(client), client))
        cohorts = [tuple(order[i : i + self.cohort_size]) for i in range(0, len(order), self.cohort_size)]
        vectorized = self.cohort_size > 1

        def train(cohort: tuple[int, ...]) -> Callable[[Worker], CohortResult]:
            return lambda worker: run_cohort(worker.replica, job, cohort, vectorized, str(worker.slot))

        yield from self._pool.map([train(cohort) for cohort in cohorts])

    def evaluate(self, x: Tensor, buffers: Tensor) -> dict[str, float]:
        """Metrics of the global model on each of the data module's splits."""
        result: dict[str, float] = {}
        for split in self._splits:
            result.update(self._evaluate_split(split, x, buffers))
        return result

    def _evaluate_split(self, split: Split, x: Tensor, buffers: Tensor) -> dict[str, float]:
        sums, metrics = ClientSums(split), self._task.metrics.clone()

        def score(chunk: tuple[int, int]) -> Callable[[Worker], tuple[dict[str, Tensor], Tensor, Tensor]]:
            return lambda worker: evaluate_chunk(worker.replica, self._data, split, chunk, x, buffers)

        results = self._pool.map([score(chunk) for chunk in split.chunks()])
        for chunk, (scores, outputs, targets) in zip(split.chunks(), results, strict=True):
            sums.add(chunk, scores)
            self._task.update_metrics(metrics, outputs, targets)
        pooled = {f"{split.prefix}/{name}": float(metric.compute()) for name, metric in metrics.items()}
        return {**sums.metrics(), **pooled}

    def _choose_cohort(self, task: nn.Module, layout: Layout, data: FederatedDataModule, participants: int) -> int:
        normalised = [n for n, m in task.named_modules() if getattr(m, "track_running_stats", False)]
        recurrent = [n for n, m in task.named_modules() if isinstance(m, nn.RNNBase)]
        if isinstance(self._cohort_wish, int):
            if self._cohort_wish > 1 and (normalised or recurrent):
                raise ConfigurationError(
                    f"`cohort_size` must be 1 for a model with running statistics or recurrent layers, but is "
                    f"{self._cohort_wish} and the model has {(normalised + recurrent)[0]!r}; use group norm "
                    '(`norm="group"`) or `cohort_size=1`.'
                )
            return min(self._cohort_wish, participants)
        leaves = [m for m in task.model.modules() if not list(m.children()) and list(m.parameters())]  # type: ignore[union-attr]
        dense = all(isinstance(leaf, _DENSE) for leaf in leaves) and layout.size < _HEAVY
        steps = torch.tensor([data.num_steps(client) for client in range(min(data.clients.num_clients, 1000))])
        balanced = bool(steps.to(torch.float64).mean() >= 0.5 * steps.max())
        on_cpu = all(slot.kind == "cpu" for slot in self.slots)
        return min(64, participants // 2) if dense and balanced and on_cpu and participants >= 16 else 1


def _read_slots(wish: str | int | Sequence[str]) -> list[Slot] | int | None:
    """Slots by name, their number, or None for "auto"."""
    if wish == "auto":
        return None
    if isinstance(wish, int) or (isinstance(wish, str) and wish.lstrip("-").isdecimal()):
        return int(wish)
    slots = [Slot.parse(name) for name in (wish.split(",") if isinstance(wish, str) else wish)]
    if not slots or len(set(slots)) < len(slots):
        raise ConfigurationError(f"`slots` must name each slot once, but is {', '.join(map(str, slots)) or 'empty'}.")
    return slots


def _choose_slots(wish: int | None, parameters: int, participants: int) -> list[Slot]:
    devices, free = torch.cuda.device_count(), not interpreter.gil_enabled()
    if wish is not None:
        count = wish
    elif devices:
        count = min(participants, devices * (2 if free else 1))
    else:
        count = min(participants, cpu_count() if free or parameters >= _HEAVY else 1)
    if devices:
        return sorted(Slot("cuda", i % devices, i // devices) for i in range(count))
    return [Slot("cpu", 0, i) for i in range(count)]
