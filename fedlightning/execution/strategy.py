"""Where clients are trained: slots, cohorts, and the rules of "auto"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import MetricCollection

from fedlightning import _interpreter as interpreter
from fedlightning._checked import COUNT, checked, require
from fedlightning.callbacks.base import CohortResult
from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.errors import ConfigurationError, first_line
from fedlightning.evaluation.footprint import examples_at_once
from fedlightning.evaluation.pooled import ClientSums, EvaluationGivenUp, Scored, Split, evaluate_chunk, splits
from fedlightning.execution.auto import (
    Workload,
    choose_cohort,
    choose_compile,
    choose_slots,
    large_steps,
    pack,
    share_out,
    slots_under_lock,
    steps_together,
)
from fedlightning.execution.bill import CudaMeter, measure
from fedlightning.execution.grid import Padding
from fedlightning.execution.inspection import ACROSS, Obstacle, Trial, inspect
from fedlightning.execution.model import Replica
from fedlightning.execution.numerics import Numerics, Precision, check_precision
from fedlightning.execution.plan import RoundJob, draw_cohort, plan_cohort
from fedlightning.execution.prefetch import Ahead, Plans
from fedlightning.execution.runners.base import rehearse, run_cohort, run_together, start, take_rows
from fedlightning.execution.runners.cuda_graph import GraphExecutor, Graphs, check_capture, explained
from fedlightning.execution.runners.loop import CohortExecutor, Executor, LoopExecutor
from fedlightning.execution.runners.traced import CompiledExecutor, Programs
from fedlightning.execution.runners.vmap import Traces
from fedlightning.execution.slots import (
    Slot,
    Worker,
    WorkerPool,
    check_threads,
    cpu_count,
    out_of_memory,
)
from fedlightning.hooks.audit import Audit
from fedlightning.hooks.diagnose import GradientPass, Hooks
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, Round
from fedlightning.task import FederatedTask, computed


class SlotStrategy:
    """Maps clients to slots: threads with their own device, stream, replica and thread count.

    The results never depend on the number of slots. They depend on `cohort_size` and `threads_per_slot` by rounding.

    Args:
        slots: names such as ["cuda:0/0", "cuda:0/1", "cpu/0"], also in one string with commas; a number of slots on the
            default device; or "auto": on GPUs two slots a device without the GIL, else one; on a CPU one a core without
            the GIL or for compiled steps, else one, and one more for each 10 MFLOP of a step up to one a core, since only
            Python-bound slots slow each other down.
        cohort_size: clients trained at once under vmap; 1 trains them one after another, which serves any model; "auto"
            chooses 1, except for small dense models (linear layers alone) on a CPU with at least 16 clients a round of
            similar sizes: there half of the clients, at most 64,
            unless the model changes buffers or draws random numbers of its own, or vmap fails on a trial step.
        compile: trace eight local steps of a client into one graph, or one of 10 MFLOP and more, and compile it ahead of
            time, for a CPU; it is kept on disk (see `execution/runners/compiled/cache.py`). A slot calls it for one
            client after another without the interpreter, and so without its lock. "auto" does so for models of less than
            a million parameters in runs of at least 150,000 local steps of a client where all layers are dense, and 50,000
            where some are convolutions, none is a norm over channels, and batches are four fifths filled: less would take
            longer to build, half a minute, than it saves. There must be a C++ compiler; "auto" looks at nothing else, so
            that a run's numbers do not depend on what was compiled before. "trace" runs the graph without compiling it.
            `cohort_size` is then how many clients are planned and handed over together, by default one where steps are
            large, else at most half of them and 32 that together have an eighth of the round's steps; a slot takes its
            share of a round's cohorts at a time. Where "auto" compiles nothing, a cohort's steps are traced once they were
            taken 100 times, and then taken without vmap, to its bits. On GPUs True lets each slot capture a step as a CUDA
            graph instead, which needs no compiler. That is experimental: it has not run on a card yet, and "auto" leaves it.
        precision: "32-true" computes in the model's own numbers, as torch is set: of itself torch lets convolutions on a
            GPU round float32 to TF32, and nothing else. "tf32" lets matrix products do so too; on a CPU it is "32-true".
            "bf16-mixed" computes matrix products and convolutions in bfloat16, forward and backward, on any device; the
            parameters, the gradients that methods see, and all states stay float32.
        threads_per_slot: intra-operator threads of each slot. All slots together have at most 256 threads, or 16 a core.
        memory_dir: where the clients' memory lies as memory-mapped files; None keeps the first 8 GiB in the host's memory
            and the rest in a file in the run's folder.

    Raises:
        ConfigurationError: a slot's name does not parse, its device is not there, or it is named twice; or there are more
            threads than any use.
    """

    @checked(slots=COUNT, cohort_size=COUNT, threads_per_slot=COUNT)
    def __init__(
        self,
        slots: Literal["auto"] | int | str | Sequence[str] = "auto",
        *,
        cohort_size: Literal["auto"] | int = "auto",
        compile: bool | Literal["auto", "trace"] = "auto",
        precision: Precision = "32-true",
        threads_per_slot: int = 1,
        memory_dir: str | Path | None = None,
    ) -> None:
        self._wish = _read_slots(slots)
        count = self._wish if isinstance(self._wish, int) else len(self._wish or ())
        check_threads(max(count, 1), threads_per_slot)
        check_precision(precision)
        self.precision = precision
        self._cohort_wish, self._compile_wish, self._threads = cohort_size, compile, threads_per_slot
        self.memory_dir = Path(memory_dir) if memory_dir else None
        self.slots: list[Slot] = []
        self.cohort_size = 1
        self.programs: Programs | None = None
        self.graphs: Graphs | None = None

    def setup(
        self, method: FedMethod, task: FederatedTask, layout: Layout, data: FederatedDataModule, work: Workload
    ) -> None:
        """Resolve "auto" for this run and start the slots."""
        self._task, self._data, self._layout = task, data, layout
        moves = self._resolve(method, work)
        check_threads(len(self.slots), self._threads)
        devices = {slot.device for slot in self.slots}
        self._examples = {device: data.train.contiguous().to(device) for device in devices}
        self._splits, self._at_once = splits(data, self._examples), dict[str, int]()
        self._together = steps_together(data) if self.programs else 0
        workers = [self._worker(slot, moves) for slot in self.slots]
        self._replicas = {worker.slot.device: worker.replica for worker in reversed(workers)}
        self._billed, self._tried, self._in_vain = False, set[bool](), 0.0
        self._ahead: Ahead | None = None
        on_cpu = all(slot.kind == "cpu" for slot in self.slots)
        self._traces = Traces() if self._compile_wish == "auto" and on_cpu else None
        with ExitStack() as undo:
            undo.callback(self._forget_all)
            undo.enter_context(Numerics(self.precision, any(slot.kind == "cuda" for slot in self.slots)))
            self._pool: WorkerPool[Any] = WorkerPool(workers, self._forget)
            undo.callback(self._pool.close)
            self._undo = undo.pop_all()

    def _resolve(self, method: FedMethod, work: Workload) -> bool:
        """Resolve "auto"; whether the model changes buffers of its own in training."""
        task, data, layout, wish = self._task, self._data, self._layout, self._wish
        self.slots = wish if isinstance(wish, list) else choose_slots(wish, work.participants)
        check_precision(self.precision, layout.dtype)
        self._audit(method, layout.read(task).to(self.root_device), layout, data, work)
        found = inspect(method, task, layout, data, on_cpu=all(slot.kind == "cpu" for slot in self.slots))
        trial = Trial(method, task, layout, data, self.root_device)
        if type(method).objective is not FedMethod.objective:
            trial.check()
        self._choose(task, layout, data, work, found.obstacle)
        several = self.cohort_size > 1 or self.programs or self.graphs
        if several and not found.obstacle and trial.looks_across():  # batch norm is captured on full batches alone
            self._choose(task, layout, data, work, ACROSS)
        if found.draws:
            rank_zero_warn(
                "A model must draw no random numbers of its own, or the same seed does not give the same numbers, but this one "
                "does in training; use `nn.Dropout`, whose masks come from the clients' keys."
            )
        if wish is None and interpreter.gil_enabled() and self.root_device.type == "cpu":
            self.slots = choose_slots(min(self._slots_under_lock(), work.participants), work.participants)
        return found.buffer is not None

    def _worker(self, slot: Slot, moves: bool) -> Worker:
        """A slot's worker, with its own copy of the model.

        Raises:
            ConfigurationError: there is no memory for it, or CUDA fails.
        """
        try:
            replica = Replica(self._task, self._layout, slot.device, self.precision, moves)
            return Worker(slot, replica, self._threads)
        except (RuntimeError, MemoryError) as error:
            if slot.kind == "cpu" and not out_of_memory(error):
                raise
            remedy = "use fewer `slots`" + (
                "" if slot.kind == "cpu" else " on this GPU, or those of a CPU, `slots='cpu/0'`"
            )
            raise ConfigurationError(
                f"Slot {slot} must have a copy of the model, and a stream if it is on a GPU, but {self.slots.index(slot)} slots "
                f"have theirs when it fails: {first_line(error)}; {remedy}."
            ) from error

    def _audit(self, method: FedMethod, x: Tensor, layout: Layout, data: FederatedDataModule, work: Workload) -> None:
        """Call the method's hooks once, of which nothing is kept."""
        round = Round(0, data.clients.num_clients, work.participants, method.client_lr(0))
        Audit(method, x, layout, round, data.num_steps(0, method.local_steps(0)), data.clients.size(0)).run()

    def _slots_under_lock(self) -> int:
        """Slots that pay on a CPU under the GIL; compiled steps run without it."""
        if self.programs:
            return cpu_count() if self.programs.how == "compile" else 1
        return min(cpu_count(), slots_under_lock(self._task, self._data, self.cohort_size))

    def _choose(
        self,
        task: FederatedTask,
        layout: Layout,
        data: FederatedDataModule,
        work: Workload,
        obstacle: Obstacle | None,
    ) -> None:
        """The cohort's size, and how local steps become graphs."""
        wish = self._compile_wish
        on_cpu, devices = all(slot.kind == "cpu" for slot in self.slots), {slot.device for slot in self.slots}
        how, captured, self._why_not = None, wish is True and not on_cpu, ""
        if wish == "trace" and len(devices) > 1:
            raise ConfigurationError(
                f"`compile='trace'` must have all slots on one device, but they are on {len(devices)}; use True."
            )
        if on_cpu or wish == "trace":
            how, self._why_not = choose_compile(wish, task, layout, work, on_cpu, obstacle)
        if captured:
            check_capture(task, work.batched, obstacle is ACROSS)
        large = how is not None and large_steps(task, data)
        compiled = how is not None
        self.cohort_size = choose_cohort(self._cohort_wish, task, layout, work, on_cpu, compiled, large, obstacle)
        self.programs = Programs(how, self._threads, work.longest, large) if how else None
        self.graphs = Graphs(self.cohort_size, data.batch_size) if captured and data.batch_size else None

    def teardown(self) -> None:
        """Stop the slots, whose cohorts are cancelled if they still run, and put the process's switches back."""
        self._undo.close()

    def _forget_all(self) -> None:
        for slot in self.slots:
            self._forget(str(slot))

    def _forget(self, slot: str) -> None:
        """Drop what is kept for a slot."""
        if self.graphs:
            self.graphs.forget(slot)

    @property
    def root_device(self) -> torch.device:
        """Where the server's state lives: the first slot's device."""
        return self.slots[0].device

    def describe(self) -> str:
        """One line: interpreter, GIL, slots, cohort size, and whether the steps are compiled."""
        cohort = f"cohorts of {self.cohort_size}" if self.cohort_size > 1 else "one client at a time"
        if self.programs:
            cohort += f", {self.programs.steps} a graph ({'compiled' if self.programs.how == 'compile' else 'traced'})"
        elif self.graphs:
            cohort += ", steps as CUDA graphs (experimental)"
        elif self._why_not:
            cohort += f", not compiled ({self._why_not})"
        names = ", ".join(map(str, self.slots[:8])) + (f", … {len(self.slots)} in all" if len(self.slots) > 8 else "")
        numbers = "" if self.precision == "32-true" else f", {self.precision}"
        return f"{interpreter.description()}; slots {names} ({self._threads} thread each), {cohort}{numbers}"

    @property
    def compile_seconds(self) -> float:
        """Seconds that this run has spent building graphs; those of slots that did so at a time count once."""
        captured = self.graphs.seconds / len(self.slots) if self.graphs else 0.0
        return captured + self._in_vain + (self.programs.seconds if self.programs else 0.0)

    def examples(self, device: torch.device) -> Examples:
        """The training set on a device; one copy a device, none on a CPU."""
        return self._examples[device]

    @property
    def cancelled(self) -> Callable[[], bool]:
        """Whether the slots are being stopped."""
        return self._pool.cancelled.is_set

    def run_round(
        self, job: RoundJob, clients: Sequence[int], following: Callable[[], RoundJob] | None = None
    ) -> Iterator[CohortResult]:
        """Train the clients; yield the cohorts in packing order, which is most local steps first.

        Args:
            job: the round.
            clients: who trains.
            following: the round that comes next, of which slots that are done draw what can be drawn before.
        """
        if self.programs:
            self._build_or_give_up(self.programs, job, clients)
        elif self._cohort_wish == "auto" and job.gradient_pass not in self._tried:
            self._try_or_give_up(job, clients)
        if self._traces:
            self._traces.grow()
        before = self._ahead.close() if self._ahead else None
        plans = (before and before.of(job, clients)) or self._plans(job, clients)
        if not (self._billed or job.gradient_pass):
            self._billed = True
            self._bill(job, max(plans.cohorts, key=len, default=()))

        def train(positions: tuple[int, ...], worker: Worker) -> dict[int, CohortResult]:
            replica, executor, slot = worker.replica, self._executor(worker, job), str(worker.slot)
            planned = [(plans.cohorts[i], plans.take(i, executor, replica.device)) for i in positions]
            with explained(executor, slot):
                trained = run_together([run_cohort(replica, job, *each, executor, slot) for each in planned])
            return dict(zip(positions, trained, strict=True))

        self._ahead = self._look_ahead(following)
        results = self._pool.map([partial(train, positions) for positions in plans.together], self._ahead)
        ready: dict[int, CohortResult] = {}
        for position in range(len(plans.cohorts)):
            while position not in ready:
                ready.update(next(results))
            yield _handed_over(ready.pop(position))

    def _plans(self, job: RoundJob, clients: Sequence[int]) -> Plans:
        """The round's cohorts, and which of them a slot takes together."""
        steps = {client: job.num_steps(client) for client in clients}
        order = sorted(clients, key=lambda client: (-steps[client], client))
        spread, share = 3 if self.graphs else math.inf, 0.125 if self.programs else 1
        cohorts = pack(order, [steps[client] for client in order], self.cohort_size, spread, share)
        together: list[tuple[int, ...]] = [(position,) for position in range(len(cohorts))]
        stride = len(self.slots)
        if self.programs:
            costs = [sum(steps[client] for client in cohort) for cohort in cohorts]
            together = share_out(costs, len(self.slots), self._together)
            stride = len(cohorts)  # a slot trains at once what it plans, and plans nothing ahead
        return Plans(job, cohorts, together, stride)

    def _look_ahead(self, following: Callable[[], RoundJob] | None) -> Ahead | None:
        """What slots that are done draw of the next round; nothing under the GIL, where they would hold the trainer up."""
        if following is None or interpreter.gil_enabled():
            return None

        def begin() -> Plans:
            job = following()
            return self._plans(job, job.work.clients)

        return Ahead(begin, self._executor)

    def _executor(self, worker: Worker, job: RoundJob) -> Executor:
        if self.programs:
            slot, gathers = str(worker.slot), self._data.only_gathers
            return CompiledExecutor(worker.replica, self.programs, slot, job.gradient_pass, gathers)
        if self.graphs and worker.slot.kind == "cuda":
            return GraphExecutor(worker.replica, self.graphs, str(worker.slot), job.gradient_pass)
        return self._eager(worker.replica)

    def _eager(self, replica: Replica) -> Executor:
        return (
            CohortExecutor(replica, self.cohort_size, self._traces) if self.cohort_size > 1 else LoopExecutor(replica)
        )

    def _bill(self, job: RoundJob, cohort: tuple[int, ...]) -> None:
        """Say what a slot needs of each GPU, or refuse what does not fit."""
        for device, replica in self._replicas.items():
            if device.type == "cuda" and cohort:
                slots = sum(slot.device == device for slot in self.slots)
                graphs = self.graphs is not None
                bill = measure(CudaMeter(device), replica, job, cohort, self._eager(replica), slots, graphs)
                rank_zero_info(bill.check())

    def _build_or_give_up(self, programs: Programs, job: RoundJob, clients: Sequence[int]) -> None:
        """Build the pass's graph if it is missing; where "auto" asked for it and it cannot be, train without."""
        try:
            if not programs.has(job.gradient_pass):
                self._build(programs, job, max(clients, key=job.num_steps))
        except Exception as error:
            if self._compile_wish != "auto":
                raise
            self._one_at_a_time(f"the local steps cannot be compiled: {error}")

    def _try_or_give_up(self, job: RoundJob, clients: Sequence[int]) -> None:
        """Where "auto" asked for cohorts and two clients cannot be trained side by side, train one at a time."""
        self._tried.add(job.gradient_pass)
        pair = tuple(sorted(clients, key=lambda client: (-job.num_steps(client), client))[:2])
        if self.cohort_size == 1 or len(pair) < 2:
            return
        replica = self._replicas[self.root_device]
        try:
            rehearse(replica, job, pair, CohortExecutor(replica, 2), f"{self.slots[0]}, before the first round")
        except Exception as error:  # noqa: BLE001 - a real error comes again in training
            self._one_at_a_time(f"several cannot be trained side by side: {error}")

    def _one_at_a_time(self, why: str) -> None:
        """Give up what "auto" had chosen, and what was planned for it."""
        self._in_vain += self.programs.seconds if self.programs else 0.0
        self.programs, self.cohort_size, self._ahead = None, 1, None
        rank_zero_warn(f"One client at a time, since {why}")

    def _build(self, programs: Programs, job: RoundJob, client: int) -> None:
        """Build the pass's graph from a client's steps in this round; no slot works meanwhile."""
        replica = self._replicas[self.root_device]
        replica.load_buffers(job.buffers)
        server = job.server.apply(lambda tensor: tensor.to(self.root_device))
        hooks = (GradientPass if job.gradient_pass else Hooks)(job.method, server, job.layout)
        plan = plan_cohort(job, (client,), draw_cohort(job, (client,), Padding(1, programs.unroll)), replica.device)
        local = start(CohortExecutor(replica, 1), hooks, plan)
        block = take_rows(job, plan, job.examples(replica.device), 0, 0, (programs.unroll,), gathered=False)
        programs.add(hooks, job.gradient_pass, local, block, replica)

    def evaluate(
        self, x: Tensor, buffers: Tensor, goes_on: Callable[[int, int], bool] = lambda done, total: True
    ) -> dict[str, float]:
        """Metrics of the global model on each of the data module's splits.

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

            result.update(self._evaluate_split(split, x, buffers, after))
            done += len(split.clients.indices)
        return result

    def map(self, work: Sequence[Callable[[Worker], Any]]) -> Iterator[Any]:
        """Do work on whichever slot is free, for callbacks; yield the results in the order in which it was given."""
        yield from self._pool.map(work)

    def _evaluate_split(
        self, split: Split, x: Tensor, buffers: Tensor, goes_on: Callable[[int], bool]
    ) -> dict[str, float]:
        sums, metrics = ClientSums(split), self._task.metrics.clone()
        chunks = split.chunks(self._examples_at_once(split, x, buffers))

        def score(chunk: tuple[int, int]) -> Callable[[Worker], Scored]:
            return lambda worker: evaluate_chunk(worker.replica, self._data, split, chunk, x, buffers)

        with closing(self._pool.map([score(chunk) for chunk in chunks], window=2 * len(self.slots))) as results:
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
            cpu, model = torch.device("cpu"), (x.cpu(), buffers.cpu())
            replica = self._replicas.get(cpu) or Replica(self._task, self._layout, cpu, self.precision)

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


def _handed_over(result: CohortResult) -> CohortResult:
    """Keep what a slot's stream made until the trainer's thread has read it, whatever a callback does with it."""
    for tensor in (*result.upload.values(), *result.state.values(), result.buffers):
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return result


def _read_slots(wish: str | int | Sequence[str]) -> list[Slot] | int | None:
    """Slots by name, their number, or None for "auto"."""
    if wish == "auto":
        return None
    if isinstance(wish, int) or (isinstance(wish, str) and wish.lstrip("-").isdecimal()):
        return int(require(int(wish), int, "slots", "SlotStrategy", COUNT))
    slots = [Slot.parse(name) for name in (wish.split(",") if isinstance(wish, str) else wish)]
    if not slots or len(set(slots)) < len(slots):
        raise ConfigurationError(f"`slots` must name each slot once, but is {', '.join(map(str, slots)) or 'empty'}.")
    return slots
