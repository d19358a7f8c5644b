"""Where clients are trained: the slots of a run, its runner, and which slot takes which clients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fedlightning import _interpreter as interpreter
from fedlightning._checked import COUNT, checked, require
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, FedLightningError, first_line, out_of_memory
from fedlightning.execution.auto import AutoRules, Execution, RunnerName, Wishes, Workload, resolve, slots_for
from fedlightning.execution.bill import CudaMeter, measure
from fedlightning.execution.model import Replica
from fedlightning.execution.numerics import Numerics, Precision, check_precision
from fedlightning.execution.packing import pack, share_out, steps_together
from fedlightning.execution.plan import PhasePlan
from fedlightning.execution.pool import Job, WorkerPool
from fedlightning.execution.prefetch import Ahead, Draws
from fedlightning.execution.runners.base import Backend, Custom, Runner
from fedlightning.execution.runners.compiled.runner import CompiledBackend
from fedlightning.execution.runners.cuda_graph import CudaGraphBackend
from fedlightning.execution.runners.loop import LoopBackend
from fedlightning.execution.runners.traced import TracedBackend
from fedlightning.execution.runners.vmap import VmapBackend
from fedlightning.execution.slots import Slot, Worker, check_threads, make_workers
from fedlightning.execution.step import GRADIENT, LOCAL, LocalStep, Phase
from fedlightning.layout import Layout
from fedlightning.method import FedMethod
from fedlightning.participation.participation import RoundPlan
from fedlightning.server.client_memory import HOST_BYTES
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.task import FederatedTask

MakeRunner = Callable[[LocalStep, Worker], Runner]
"""A runner's class, or any function that makes a runner of a local step and a slot; a `Backend` is one, too."""


class SlotStrategy:
    """Maps clients to slots: threads with their own device, stream, model and thread count.

    The results never depend on the number of slots. They depend on `runner`, `cohort_size` and `threads_per_slot` by rounding.

    Args:
        slots: names such as ["cuda:0/0", "cuda:0/1", "cpu/0"], also in one string with commas; a number of slots on the
            default device; or "auto": on GPUs two slots a device without the GIL, else one; on a CPU one a core without
            the GIL or for compiled steps, else one, and one more for each 10 MFLOP of a step up to one a core, since only
            Python-bound slots slow each other down.
        runner: what takes the local steps. "loop" trains one client after another and serves any model; "vmap" trains a cohort
            at once; "traced" runs several steps of a client as one graph, which needs no compiler; "compiled" compiles that
            graph ahead of time, for a CPU; "cuda_graph" captures a step on a GPU (experimental: it has never run on a card).
            "auto" decides before the first round by `AutoRules`, and a line says why. A class or function of your own,
            `(step, slot) -> Runner`, is taken, too, and so is a `Backend`, which has a cohort size of its own. The table in
            `fedlightning/execution/README.md` says which is taken when.
        cohort_size: clients that are trained at once under "vmap", or handed to a slot together under "traced", "compiled" and
            a runner of your own. An int chooses "vmap" where `runner` is "auto", and 1 the loop.
        precision: "32-true" computes in the model's own numbers, as torch is set: of itself torch lets convolutions on a
            GPU round float32 to TF32, and nothing else. "tf32" lets matrix products do so too; on a CPU it is "32-true".
            "bf16-mixed" computes matrix products and convolutions in bfloat16, forward and backward, on any device; the
            parameters, the gradients that methods see, and all states stay float32.
        threads_per_slot: intra-operator threads of each slot. All slots together have at most 256 threads, or 16 a core.
        memory_dir: the folder in which the clients' memory lies as memory-mapped files; None keeps it in the host's memory, and
            what exceeds `memory_bytes` in a file in the run's folder.
        memory_bytes: see `memory_dir`; 8 GiB. Results do not depend on it.
        rules: the thresholds of "auto"; None for those that were measured.

    Attributes:
        runner, precision, memory_dir: as they were given.
        execution: what was decided, once a run begins.

    Raises:
        ConfigurationError: a slot's name does not parse, its device is not there, or it is named twice; there is no such
            runner; or there are more threads than any use.
    """

    @checked("runner", slots=COUNT, cohort_size=COUNT, threads_per_slot=COUNT, memory_bytes="[0, inf)")
    def __init__(
        self,
        slots: Literal["auto"] | int | str | Sequence[str] = "auto",
        *,
        runner: RunnerName | Literal["auto"] | MakeRunner = "auto",
        cohort_size: Literal["auto"] | int = "auto",
        precision: Precision = "32-true",
        threads_per_slot: int = 1,
        memory_dir: str | Path | None = None,
        memory_bytes: int = HOST_BYTES,
        rules: AutoRules | None = None,
    ) -> None:
        wish = _read_slots(slots)
        check_threads(max(wish if isinstance(wish, int) else len(wish or ()), 1), threads_per_slot)
        check_precision(precision)
        self.runner = runner
        self._make_runner, name = _read_runner(runner)
        self._wishes = Wishes(wish, name, None if cohort_size == "auto" else int(cohort_size))
        self.precision, self._threads, self._rules = precision, threads_per_slot, rules or AutoRules()
        self.memory_dir, self.memory_bytes = Path(memory_dir) if memory_dir else None, memory_bytes
        self._asked = tuple(vars(self))
        self.execution = Execution((), "loop")
        self._opened = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for: a copy in another process makes slots of its own."""
        kept = {name: value for name, value in vars(self).items() if name in self._asked}
        return {**kept, "_asked": self._asked, "execution": Execution((), "loop"), "_opened": ExitStack()}

    # -- before the first round -----------------------------------------------------------------------------------------
    def setup(
        self,
        method: FedMethod,
        task: FederatedTask,
        layout: Layout,
        data: FederatedDataModule,
        work: Workload,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """Decide how the run is executed, and start the slots.

        Args:
            method: the method.
            task: the model.
            layout: where its parameters lie in w.
            data: the clients' data.
            work: about how much there is to do.
            before: what the checkpoint that the run goes on from says of the execution; see `Execution.saved`.

        Raises:
            ConfigurationError: what was asked for cannot be. Then nothing is left changed.
            MethodError: a hook does what it must not.
        """
        check_precision(self.precision, layout.dtype)
        self.execution, found = resolve(self._wishes, method, task, layout, data, work, self._rules, before)
        check_threads(len(self.slots), self._threads)
        if found.draws:
            rank_zero_warn(
                "A model must draw no random numbers of its own, or the same seed does not give the same numbers, but this one "
                "does in training; use `nn.Dropout`, whose masks come from the clients' keys."
            )
        self._method = method
        self._first = GRADIENT if method.gradient_pass() != "none" else LOCAL
        self.examples = {slot.device: data.train.contiguous().to(slot.device) for slot in self.slots}
        self._open(task, layout, data, moves=found.buffer is not None)

    def set_up_evaluation(self, task: FederatedTask, layout: Layout, data: FederatedDataModule) -> None:
        """Start the slots for evaluations alone.

        Raises:
            ConfigurationError: what was asked for cannot be. Then nothing is left changed.
        """
        check_precision(self.precision, layout.dtype)
        self.execution = Execution(slots_for(self._wishes, 1, self._rules), "loop")
        self.examples = dict.fromkeys((slot.device for slot in self.slots), data.train)  # where they lie: nobody trains
        check_threads(len(self.slots), self._threads)
        self._open(task, layout, data, moves=False)

    def _open(self, task: FederatedTask, layout: Layout, data: FederatedDataModule, moves: bool) -> None:
        """Start the slots' threads, each with its own copy of the model, and set the process's switches."""
        self._task, self._layout, self._data = task, layout, data
        self._workers = {str(worker.slot): worker for worker in self._make_workers(moves)}
        self._runners: dict[tuple[str, str], Runner] = {}
        self._ahead: Ahead | None = None
        self._in_vain, self._backend = 0.0, self._make_backend()
        self._together = steps_together(data) if self._backend.together else 0
        with ExitStack() as opened:
            opened.callback(self._runners.clear)
            opened.enter_context(Numerics(self.precision, any(slot.kind == "cuda" for slot in self.slots)))
            self._pool: WorkerPool[Any] = WorkerPool(list(self._workers.values()), self._forget)
            opened.callback(self._pool.close)
            self._opened = opened.pop_all()

    def prepare(self, plan: RoundPlan, inputs: Mapping[Phase, RoundInputs]) -> None:
        """Make the graphs, or try what may fail, on the first round's clients; nothing of it is kept.

        A graph that cannot be built, or a cohort that cannot be trained side by side, moves the run to
        `Execution.fallback`, once, where the user asked for neither.

        Args:
            plan: the first round's.
            inputs: what its clients are given in each phase of the round; in the place of what an earlier phase computes,
                anything of its shape.
        """
        root = next(iter(self._workers.values()))
        try:
            for phase, given in inputs.items():
                self._backend.prepare(self._step(root, phase), PhasePlan(plan, phase), given, root)
        except Exception as error:
            other = self.execution.fallback
            if other is None:
                raise self._reworded(error) from error
            self._in_vain += self._backend.seconds
            why = f"not {self.execution.runner}, since its trial failed: {first_line(error)}"
            # The slots are at work already, and stay; numbers do not depend on how many there are.
            self.execution = replace(other, slots=self.slots, reasons=(*other.reasons, why))
            self._backend = self._make_backend()
            rank_zero_warn(f"The run is executed otherwise than planned: {self.execution.describe()}.")
            self.prepare(plan, inputs)
            return
        for name, worker in self._workers.items():
            for phase in inputs:
                self._runners[name, phase.name] = self._backend(self._step(worker, phase), worker)
        self._bill(PhasePlan(plan), inputs[LOCAL])

    def _reworded(self, error: Exception) -> Exception:
        """What a trial raised; where torch says that a model cannot be lifted, with what can be done about it."""
        runner, known = self.execution.runner, isinstance(error, FedLightningError) or out_of_memory(error)
        if known or not isinstance(error, RuntimeError) or runner not in ("vmap", "traced", "compiled"):
            return error
        return ConfigurationError(
            f"`runner={runner!r}` must lift the local steps of {type(self._task).__name__}, but a trial of them fails: "
            f"{first_line(error)}; use `runner='loop'`, which serves any model."
        )

    def teardown(self) -> None:
        """Stop the slots, whose cohorts are cancelled if they still run, and put the process's switches back."""
        self._opened.close()

    def _make_workers(self, moves: bool) -> list[Worker]:
        """The slots, each with a copy of the model whose buffers move in training, or do not."""

        def make(slot: Slot) -> Worker:
            replica = Replica(self._task, self._layout, slot.device, self.precision, moves)
            return Worker(slot, replica, self._data, self.examples[slot.device], self._threads)

        return make_workers(self.slots, make)

    def _make_backend(self) -> Backend:
        """What makes the slots' runners."""
        chosen, data = self.execution, self._data
        if isinstance(self._make_runner, Backend):
            return self._make_runner
        if self._make_runner:
            return Custom(self._make_runner, chosen.cohort_size)
        if chosen.runner == "vmap":
            return VmapBackend(chosen.cohort_size, traces=chosen.on_cpu)
        if chosen.runner == "cuda_graph":
            return CudaGraphBackend(data.largest_batch)
        graphs = chosen.unroll, chosen.large, chosen.cohort_size, data.only_gathers
        if chosen.runner == "traced":
            return TracedBackend(*graphs)
        return CompiledBackend(*graphs, self._threads) if chosen.runner == "compiled" else LoopBackend()

    def _step(self, worker: Worker, phase: Phase) -> LocalStep:
        return LocalStep(self._method, worker.replica, self._layout, phase)

    def _bill(self, plan: PhasePlan, inputs: RoundInputs) -> None:
        """Say what a slot needs of each GPU, or refuse what does not fit."""
        for device in {slot.device for slot in self.slots if slot.kind == "cuda"}:
            here = [name for name, worker in self._workers.items() if worker.device == device]
            captured = self.execution.runner == "cuda_graph"
            backend = LoopBackend() if captured else self._backend
            runner = backend(self._step(self._workers[here[0]], plan.phase), self._workers[here[0]])
            largest = max(self._packed(plan).cohorts, key=len)
            bill = measure(CudaMeter(device), runner, plan, largest, inputs, str(device), len(here), captured)
            rank_zero_info(bill.check())

    def _forget(self, slot: str) -> None:
        """Drop what is kept for a slot that retires."""
        for key in [key for key in self._runners if key[0] == slot]:
            del self._runners[key]

    # -- what a run asks ------------------------------------------------------------------------------------------------
    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of the run."""
        return self.execution.slots

    @property
    def asked(self) -> str:
        """The runner that was asked for by name; "custom" for one of the user's own."""
        return self._wishes.runner

    @property
    def root_device(self) -> torch.device:
        """Where the server's state lives: the first slot's device."""
        return self.slots[0].device

    def describe(self) -> str:
        """One line: interpreter, GIL, slots, runner and why, precision."""
        names = ", ".join(map(str, self.slots[:8])) + (f", … {len(self.slots)} in all" if len(self.slots) > 8 else "")
        numbers = "" if self.precision == "32-true" else f", {self.precision}"
        threads = f"{self._threads} thread{'s' * (self._threads > 1)} each"
        return f"{interpreter.description()}; slots {names} ({threads}), {self.execution.describe()}{numbers}"

    @property
    def compile_seconds(self) -> float:
        """Seconds that this run has spent on graphs."""
        return self._in_vain + self._backend.seconds

    # -- every round ----------------------------------------------------------------------------------------------------
    def run(
        self,
        plan: RoundPlan,
        inputs: RoundInputs,
        phase: Phase = LOCAL,
        following: Callable[[], RoundPlan] | None = None,
    ) -> Iterator[CohortResult]:
        """Train the clients of a plan; yield the cohorts in packing order, which is most local steps first.

        Args:
            plan: who trains, and how much.
            inputs: what they are given.
            phase: what their steps are for.
            following: the next round's plan. Slots that are done draw what can be drawn of it.
        """
        self._backend.before_round()
        ahead = self._ahead.close() if self._ahead else None
        wanted = PhasePlan(plan, phase)
        draws = ahead if ahead and ahead.plan.same_draws(wanted) else self._packed(wanted)
        self._ahead = self._look_ahead(following)
        work = [partial(self._train, draws, inputs, positions) for positions in draws.shares]
        results = self._pool.map(work, self._ahead)
        ready, on_cpu = dict[int, CohortResult](), self.execution.on_cpu
        for position in range(len(draws.cohorts)):
            while position not in ready:
                ready.update(next(results))
            cohort = ready.pop(position)
            yield cohort if on_cpu else _handed_over(cohort)

    def _train(
        self, draws: Draws, inputs: RoundInputs, positions: tuple[int, ...], worker: Worker
    ) -> dict[int, CohortResult]:
        """Train cohorts on a slot, in its thread; their results by position."""
        began, runner = perf_counter(), self._runners[str(worker.slot), draws.plan.phase.name]
        plans = [draws.pop(position) for position in positions]
        trained = runner.run(plans, inputs)
        each = (perf_counter() - began) / sum(len(plan.step) for plan in plans)
        return {
            position: replace(result, seconds=each * len(plan.step))
            for position, plan, result in zip(positions, plans, trained, strict=True)
        }

    def _packed(self, plan: PhasePlan) -> Draws:
        """The plan's cohorts, of which nothing is drawn yet, and which of them a slot takes together."""
        steps = {client: plan.num_steps(client) for client in plan.clients}
        order = sorted(plan.clients, key=lambda client: (-steps[client], client))
        backend, count = self._backend, len(self.slots)
        cohorts = pack(order, [steps[client] for client in order], backend.cohort_size, backend.share)
        if not backend.together:
            return Draws(plan, cohorts, [(position,) for position in range(len(cohorts))], count)
        costs = [sum(steps[client] for client in cohort) for cohort in cohorts]
        # A slot trains at once what it draws, and draws nothing ahead.
        return Draws(plan, cohorts, share_out(costs, count, self._together), slots=len(cohorts))

    def _look_ahead(self, following: Callable[[], RoundPlan] | None) -> Ahead | None:
        """What slots that are done draw of the next round; nothing under the GIL, where they would hold the trainer up."""
        if following is None or interpreter.gil_enabled():
            return None
        return Ahead(lambda: self._packed(PhasePlan(following(), self._first)))

    # -- callbacks' and evaluations' work ---------------------------------------------------------------------------------
    def map(self, work: Sequence[Job[Any]], window: int | None = None) -> Generator[Any, None, None]:
        """Do work on whichever slot is free; yield the results in the order in which it was given.

        Args:
            work: functions of a slot.
            window: begin nothing so many positions behind the result that is yielded next; None begins all.
        """
        return self._pool.map(work, window=window)

    def replica(self, device: torch.device) -> Replica:
        """A copy of the model on a device that no slot works with."""
        return Replica(self._task, self._layout, device, self.precision)


def _read_runner(wish: Any) -> tuple[MakeRunner | None, RunnerName | Literal["auto", "custom"]]:
    """A runner of the user's own, if it is one, and its name."""
    if callable(wish):
        return wish, "custom"
    names = ("auto", *get_args(RunnerName))
    if not isinstance(wish, str) or wish not in names:
        raise ConfigurationError(
            f"`runner` of SlotStrategy must be {', '.join(map(repr, names))}, or a class `(step, slot)`, but is {wish!r:.80}."
        )
    return None, cast(RunnerName, wish)


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
