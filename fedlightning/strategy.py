"""Where clients are trained: slots, cohorts, and the rules of "auto"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedlightning import interpreter
from fedlightning.callback import CohortResult
from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.engine.choices import Workload, choose_cohort, choose_compile, choose_slots, pack
from fedlightning.engine.cohort import run_cohort, start, take
from fedlightning.engine.compiled import UNROLL, CompiledExecutor, Programs
from fedlightning.engine.evaluate import ClientSums, Split, evaluate_chunk, splits
from fedlightning.engine.executors import CohortExecutor, Executor, LoopExecutor
from fedlightning.engine.hooks import GradientPass, Hooks
from fedlightning.engine.job import Padding, RoundJob, plan_cohort
from fedlightning.engine.replica import Replica
from fedlightning.engine.slots import Slot, Worker, WorkerPool
from fedlightning.errors import ConfigurationError
from fedlightning.task import FederatedTask
from fedlightning.vector import Layout


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
        compile: trace eight local steps of a few clients into one graph and compile it ahead of time, for a CPU; the graphs
            are kept on disk (`fedlightning.engine.compiled.cache_folder`). "auto" does so for small dense models in runs
            of at least 300,000 local steps of a client, which it would otherwise take a minute to call, if there is a C++
            compiler; it looks at nothing else, so that a run's numbers do not depend on what was compiled before. "trace"
            runs the graphs without compiling them. Clients are then packed with others that take up to twice as many
            steps, half of the participants at most and 16, and `cohort_size` is the largest such cohort.
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
        compile: bool | Literal["auto", "trace"] = "auto",
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
        if compile not in (True, False, "auto", "trace"):
            raise ConfigurationError(
                f"`compile` of SlotStrategy must be True, False, 'auto' or 'trace', but is {compile!r}."
            )
        self._cohort_wish, self._compile_wish, self._threads = cohort_size, compile, threads_per_slot
        self.memory_dir = Path(memory_dir) if memory_dir else None
        self.slots: list[Slot] = []
        self.cohort_size = 1
        self.programs: Programs | None = None

    def setup(self, task: FederatedTask, layout: Layout, data: FederatedDataModule, work: Workload) -> None:
        """Resolve "auto" for this run and start the slots."""
        self._task, self._data = task, data
        wish = self._wish
        self.slots = wish if isinstance(wish, list) else choose_slots(wish, layout.size, work.participants)
        on_cpu = all(slot.kind == "cpu" for slot in self.slots)
        how, self._why_not = choose_compile(self._compile_wish, task, layout, work, on_cpu)
        self.cohort_size = choose_cohort(self._cohort_wish, task, layout, work, on_cpu, compiled=how is not None)
        self.programs = Programs(how, self.cohort_size, self._threads) if how else None
        devices = {slot.device for slot in self.slots}
        self._examples = {device: data.train.to(device) for device in devices}
        self._splits = splits(data)
        workers = [Worker(slot, Replica(task, layout, slot.device), self._threads) for slot in self.slots]
        self._replica = workers[0].replica
        self._pool: WorkerPool[Any] = WorkerPool(workers)

    def teardown(self) -> None:
        """Stop the slots; the cohorts that still run are cancelled."""
        self._pool.close()

    @property
    def root_device(self) -> torch.device:
        """Where the server's state lives: the first slot's device."""
        return self.slots[0].device

    def describe(self) -> str:
        """One line: interpreter, GIL, slots, cohort size, and whether the steps are compiled."""
        cohort = f"cohorts of {self.cohort_size}" if self.cohort_size > 1 else "one client at a time"
        if self.programs:
            cohort += f", {UNROLL} steps a graph ({'compiled' if self.programs.how == 'compile' else 'traced'})"
        elif self._why_not:
            cohort += f", not compiled ({self._why_not})"
        names = ", ".join(map(str, self.slots[:8])) + (f", … {len(self.slots)} in all" if len(self.slots) > 8 else "")
        return f"{interpreter.description()}; slots {names} ({self._threads} thread each), {cohort}"

    @property
    def compile_seconds(self) -> float:
        """Seconds that this run has spent building graphs."""
        return self.programs.seconds if self.programs else 0.0

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
        if self.programs:
            try:
                self._build(self.programs, job, order[0])
            except Exception as error:
                if self._compile_wish != "auto":
                    raise
                self.programs, self.cohort_size = None, 1
                rank_zero_warn(f"One client at a time, since the local steps cannot be compiled: {error}")
        spread = 2 if self.programs else None
        cohorts = pack(order, [job.num_steps(client) for client in order], self.cohort_size, spread)

        def train(cohort: tuple[int, ...]) -> Callable[[Worker], CohortResult]:
            return lambda worker: run_cohort(worker.replica, job, cohort, self._executor(worker, job), str(worker.slot))

        yield from self._pool.map([train(cohort) for cohort in cohorts])

    def _executor(self, worker: Worker, job: RoundJob) -> Executor:
        if self.programs:
            return CompiledExecutor(worker.replica, self.programs, str(worker.slot), job.gradient_pass)
        return (
            CohortExecutor(worker.replica, self.cohort_size) if self.cohort_size > 1 else LoopExecutor(worker.replica)
        )

    def _build(self, programs: Programs, job: RoundJob, client: int) -> None:
        """Build what graphs are missing, from a client's steps in this round; no slot works meanwhile."""
        for width in programs.widths:
            if programs.has(job.gradient_pass, width):
                continue
            replica, server = self._replica, job.server.apply(lambda tensor: tensor.to(self._replica.device))
            hooks = (GradientPass if job.gradient_pass else Hooks)(job.method, server, job.layout)
            plan = plan_cohort(job, (client,), replica.device, Padding(width, UNROLL))
            local = start(CohortExecutor(replica, width), hooks, plan)
            block = take(job, plan, job.examples(replica.device), 0, UNROLL, width)
            programs.add(hooks, job.gradient_pass, local, block, replica)

    def evaluate(self, x: Tensor, buffers: Tensor) -> dict[str, float]:
        """Metrics of the global model on each of the data module's splits."""
        result: dict[str, float] = {}
        for split in self._splits:
            result.update(self._evaluate_split(split, x, buffers))
        return result

    def map(self, work: Sequence[Callable[[Worker], Any]]) -> Iterator[Any]:
        """Do work on whichever slot is free, for callbacks; yield the results in the order in which it was given."""
        yield from self._pool.map(work)

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
