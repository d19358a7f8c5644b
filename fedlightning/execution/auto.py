"""Every decision of "auto", taken once, before the first round: `resolve` gives the run's `Execution`, with its reasons.

The order is that of `resolve`: where (slots), what the model allows (`inspect`, a trial of the loss), which runner, how many
clients at once, and again where, since with the GIL only some runners gain from more slots. Every threshold is a field of
`AutoRules`, with the measurement that it came from. The rules look at the run and at the machine's devices and cores, never
at free memory or at what was compiled before, so that a run's numbers do not depend on those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedlightning import _interpreter as interpreter
from fedlightning._checked import COUNT, check_fields
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
from fedlightning.execution.inspection import ACROSS, Findings, Obstacle, Trial, first_batch, inspect
from fedlightning.execution.runners.compiled.build import compiler
from fedlightning.execution.slots import Slot, cpu_count
from fedlightning.hooks.audit import Audit
from fedlightning.layout import Layout
from fedlightning.method import Batch, FedMethod, Round
from fedlightning.task import FederatedTask

RunnerName = Literal["loop", "vmap", "traced", "compiled", "cuda_graph"]

DENSE = (nn.Linear, nn.Flatten, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LayerNorm, nn.Dropout)
"""Layers that are faster side by side than one after another on a CPU."""

CONVOLVING = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that gain from being compiled beside dense ones, by a fifth to a half of a step; norms between them need not."""


@dataclass(frozen=True)
class AutoRules:
    """The thresholds of "auto".

    Raises:
        ConfigurationError: one is no such number.

    Attributes:
        heavy: parameters from which clients of a dense model gain nothing side by side, nor from compiling.
        compile_dense: local steps of a run from which compiling a dense model, half a minute once, is less than what it saves.
        compile_convolving: the same for a model with convolutions, whose steps are longer.
        filled: the part of a batch's places that must hold an example, where convolutions are compiled: a graph computes on the
            empty places, too, and below this it loses on them what it saves (LeNet, two cores).
        large_step: operations of a step beside which a call of a graph costs nothing, nor what else there is to do for a
            client: LeNet on 50 images has 200 million, FedProx's 60x10 on ten examples 36,000.
        cohort_from: clients of a round from which a cohort pays.
        cohort_most: the largest cohort; wider ones leave the cache.
        together_most: clients that are handed over together where they are trained in turn.
        balance: the mean of the clients' steps to the most of one from which a cohort pays: what stands idle in it is below half.
        cohort_part: the part of a round's clients in a cohort, so that two slots have one each.
        unroll: the most steps of a graph: from eight on, the call costs little beside them.
        slots_per_gpu: slots of a GPU without the GIL; with it, one. Not measured: no card yet.
        flops_per_slot: operations of a step that take about as long, without the GIL, as its Python, with it: each such number
            of them feeds one more slot (measured with 1 and 2 slots).
    """

    heavy: int = 1_000_000
    compile_dense: int = 150_000
    compile_convolving: int = 50_000
    filled: float = 0.8
    large_step: float = 10_000_000
    cohort_from: int = 16
    cohort_most: int = 64
    together_most: int = 32
    balance: float = 0.5
    cohort_part: float = 0.5
    unroll: int = 8
    slots_per_gpu: int = 2
    flops_per_slot: float = 10_000_000

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("cohort_most", "together_most", "unroll", "slots_per_gpu"), COUNT)
        parts = dict.fromkeys(("filled", "balance", "cohort_part"), "[0, 1]")
        others = ("heavy", "compile_dense", "compile_convolving", "large_step", "cohort_from")
        check_fields(self, **counts, **parts, **dict.fromkeys(others, "[0, inf)"), flops_per_slot="(0, inf)")


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        slots: names, a number, or None for "auto".
        runner: a runner's name, "auto", or "custom" for the user's own.
        cohort_size: a number, or None for "auto".
    """

    slots: list[Slot] | int | None = None
    runner: RunnerName | Literal["auto", "custom"] = "auto"
    cohort_size: int | None = None


@dataclass(frozen=True)
class Workload:
    """What a run asks of its slots.

    Attributes:
        participants: m, clients of a round.
        total: local steps of all clients in all rounds, about.
        longest: local steps of a client, at most, about.
        balance: the mean of the clients' local steps to the most of one; 1 where all take as many.
        batched: whether the batches are of one size.
        filled: the part of the places of those batches that hold an example, about; the last one of an epoch may be smaller.
    """

    participants: int
    total: float
    longest: int
    balance: float
    batched: bool
    filled: float

    @classmethod
    def of(cls, method: FedMethod, data: FederatedDataModule, participants: int, rounds: int) -> Workload:
        """Estimated from the first thousand clients and the first round."""
        few = range(min(data.clients.num_clients, 1000))
        steps = torch.tensor([data.num_steps(client, method.local_steps(0)) for client in few], dtype=torch.float64)
        balance = float(steps.mean() / steps.max())
        total = rounds * participants * float(steps.mean())
        sizes, batch = torch.from_numpy(data.clients.sizes_of(few)), data.batching.size
        filled = int(sizes.sum()) / int((-(-sizes // batch) * batch).sum()) if batch else 1.0
        return cls(participants, total, int(steps.max()), balance, batch is not None, filled)


@dataclass(frozen=True)
class Execution:
    """How a run is executed: decided before the first round, printed, and written to every checkpoint.

    Attributes:
        slots: where clients are trained.
        runner: what takes their steps.
        cohort_size: how many are handed to a slot together; under vmap, how many are trained at once.
        large: whether steps become graphs and are so large that each is worth its own, and each client a cohort of its own.
        unroll: U, local steps of a graph; as many as pay, but not more than the longest client takes.
        reasons: why, one for each decision that was not the user's.
        fallback: what takes its place if a graph cannot be built, or a trial fails, where the user asked for neither.
    """

    slots: tuple[Slot, ...]
    runner: RunnerName | Literal["custom"]
    cohort_size: int = 1
    large: bool = False
    unroll: int = 1
    reasons: tuple[str, ...] = ()
    fallback: Execution | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether all slots are on the CPU."""
        return all(slot.kind == "cpu" for slot in self.slots)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of it, so that a resumed run takes its steps in the same way."""
        return {"runner": self.runner, "cohort_size": self.cohort_size}

    def describe(self) -> str:
        """The runner in words, and why it was chosen."""
        together = f"cohorts of {self.cohort_size}" if self.cohort_size > 1 else "one client at a time"
        graphs = f"{self.unroll} local step{'s' * (self.unroll > 1)} a graph, {together}"
        how = {
            "loop": "one client at a time",
            "vmap": f"{together} under vmap",
            "traced": f"{graphs}, run from Python",
            "compiled": f"{graphs}, compiled",
            "cuda_graph": "steps as CUDA graphs (experimental)",
            "custom": "a runner of one's own",
        }[self.runner]
        return how + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def resolve(
    wishes: Wishes,
    method: FedMethod,
    task: FederatedTask,
    layout: Layout,
    data: FederatedDataModule,
    work: Workload,
    rules: AutoRules = AutoRules(),
    before: Mapping[str, Any] | None = None,
) -> tuple[Execution, Findings]:
    """Decide how a run is executed; give what was found in the model, too.

    Args:
        wishes: what the user asked for; it is done, or refused.
        method: the method.
        task: the model.
        layout: where its parameters lie in w.
        data: the clients' data.
        work: about how much there is to do.
        rules: the thresholds.
        before: what a checkpoint says of the run that goes on; it is taken where the user asks for nothing else.

    Raises:
        ConfigurationError: what was asked for cannot be.
    """
    # 1. Where: the devices decide what can be done there.
    slots = slots_for(wishes, work.participants, rules)
    on_cpu = all(slot.kind == "cpu" for slot in slots)

    # 2. What the method, the model and the loss allow: each hook once, a look at the layers, and at one batch.
    audit(method, layout.read(task).to(slots[0].device), layout, data, work)
    found = inspect(method, task, layout, data, on_cpu)
    trial = Trial(method, task, layout, data, slots[0].device)
    if "objective" in method.own_hooks:
        trial.check()

    # 3. Which runner, and how many clients at once; then once more, if a loss looks across the batches that it makes.
    flops = cache(partial(step_flops, task, data))  # a copy of the model, where somebody asks
    chooser = Chooser(wishes, task, layout, work, rules, slots, flops, before)
    execution = chooser.choose(found.obstacle)
    if found.obstacle is None and execution.runner not in ("loop", "custom") and trial.looks_across():
        execution = chooser.choose(ACROSS)

    # 4. Again where: with the GIL, more slots pay only where a step is little Python.
    if wishes.slots is None and interpreter.gil_enabled() and on_cpu:
        execution = with_lock(execution, work, flops, rules)

    # 5. What the data cost: a `schedule` of one's own takes twice as long for the clients of a cohort as all of them at once.
    if execution.cohort_size > 1 and data.augmentation is None and "schedule" in data.own_hooks:
        why = f"batches drawn client by client, since {type(data).__name__} has a `schedule` of its own"
        execution = replace(execution, reasons=(*execution.reasons, why))
    return execution, found


def audit(method: FedMethod, x: Tensor, layout: Layout, data: FederatedDataModule, work: Workload) -> None:
    """Call the method's hooks once, of which nothing is kept.

    Raises:
        MethodError: one does what it must not.
    """
    round = Round(0, data.clients.num_clients, work.participants, method.client_lr(0))
    Audit(method, x, layout, round, data.num_steps(0, method.local_steps(0)), data.clients.size(0)).run()


class Chooser:
    """Chooses the runner and the cohort's size under the obstacles that are known.

    Args:
        wishes: what the user asked for.
        task: the model.
        layout: where its parameters lie in w.
        work: about how much there is to do.
        rules: the thresholds.
        slots: where clients are trained.
        flops: counts the operations of a step.
        before: what a checkpoint says of the run that goes on, or None.
    """

    def __init__(
        self,
        wishes: Wishes,
        task: FederatedTask,
        layout: Layout,
        work: Workload,
        rules: AutoRules,
        slots: tuple[Slot, ...],
        flops: Callable[[], float],
        before: Mapping[str, Any] | None,
    ) -> None:
        self.wishes, self.task, self.layout, self.work, self.rules = wishes, task, layout, work, rules
        self.slots, self.flops, self.before = slots, flops, before
        self.on_cpu = all(slot.kind == "cpu" for slot in slots)

    def choose(self, obstacle: Obstacle | None) -> Execution:
        """The execution, refused where the user asked for what an obstacle forbids."""
        wish = self.wishes.runner
        before = self.before or {}
        began: Any = before.get("runner")
        if self.wishes.cohort_size is None and wish in ("auto", began) and began in get_args(RunnerName):
            self._check_again(began)
            return self._taken(began, before["cohort_size"], "as the run began")
        if wish == "auto":
            taken = self._auto(obstacle)
            own = ("the run began with a runner of one's own",) if began == "custom" else ()
            return replace(taken, reasons=(*own, *taken.reasons))
        self._check(wish, obstacle)
        return self._taken(wish, self._size(wish))

    def _taken(
        self, runner: RunnerName | Literal["custom"], size: int = 1, *why: str, fallback: Execution | None = None
    ) -> Execution:
        large = self._large(runner)
        unroll = 1 if large else min(self.rules.unroll, self.work.longest)
        return Execution(self.slots, runner, size, large, unroll, why, fallback)

    def _large(self, runner: str) -> bool:
        """Whether steps are large, where they become graphs."""
        return runner in ("traced", "compiled") and self.flops() >= self.rules.large_step

    def _check_again(self, began: str) -> None:
        """Refuse to go on where what took the steps before cannot here."""
        try:
            self._check(began, None)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"A run goes on as it began, and the checkpoint says by `runner={began!r}`, but here it cannot: {error} Or ask "
                "for another by name, e.g. `runner='loop'`, with which numbers differ by rounding."
            ) from error

    def _check(self, wish: str, obstacle: Obstacle | None) -> None:
        """Refuse a runner that was asked for, but cannot be."""
        if wish in ("vmap", "traced", "compiled") and obstacle:
            raise ConfigurationError(
                f"`runner` must be 'loop' for a model with {obstacle.what}, but is {wish!r}; {obstacle.remedy}."
            )
        if wish == "cuda_graph":
            self._check_capture(obstacle)
        if wish == "compiled" and not (self.on_cpu and compiler()):
            what = "a C++ compiler" if self.on_cpu else "slots on a CPU"
            raise ConfigurationError(
                f"`runner='compiled'` needs {what}, but there is none; use `runner='traced'`, which runs the same graph without."
            )
        if wish == "traced" and len({slot.device for slot in self.slots}) > 1:
            raise ConfigurationError(
                f"`runner='traced'` must have all slots on one device, but they are on "
                f"{len({slot.device for slot in self.slots})}; use 'loop'."
            )
        size = self.wishes.cohort_size
        if size and size > 1 and wish in ("loop", "cuda_graph"):
            raise ConfigurationError(
                f"`cohort_size` must be 1 for `runner={wish!r}`, but is {size}; use `runner='vmap'`."
            )

    def _check_capture(self, obstacle: Obstacle | None) -> None:
        recurrent = next((name for name, m in self.task.named_modules() if isinstance(m, nn.RNNBase)), None)
        if self.on_cpu:
            raise ConfigurationError(
                "`runner='cuda_graph'` must have slots on GPUs, but they are on a CPU; use `runner='auto'`."
            )
        why = None
        if not self.work.batched:
            why = "batches are whole data sets"
        elif obstacle is ACROSS:
            why = "the loss looks across a batch, empty places included"
        elif recurrent is not None:
            why = f"cuDNN's recurrent layer {recurrent!r} copies its weights"
        if why:
            raise ConfigurationError(
                "`runner='cuda_graph'` must have slots on GPUs, batches of one size, a loss of each example alone, and no "
                f"recurrent layer of cuDNN, but {why}; use `runner='loop'`, or give the `Batching` a size."
            )

    def _auto(self, obstacle: Obstacle | None) -> Execution:
        size = self.wishes.cohort_size
        if size is not None and size > 1:
            if obstacle:
                raise ConfigurationError(
                    f"`cohort_size` must be 1 for a model with {obstacle.what}, but is {size}; {obstacle.remedy}."
                )
            return self._taken("vmap", min(size, self.work.participants))
        if not self.on_cpu:
            # Capture and compiled steps have never run on a card, so there is one way to be surprised by.
            return self._taken("loop")
        uncompiled = self._uncompiled(obstacle)
        if obstacle or size == 1 or not self._compiling_pays():
            return uncompiled
        if not compiler():
            return replace(uncompiled, reasons=(*uncompiled.reasons, "not compiled: no C++ compiler was found"))
        why = f"{self.work.total:,.0f} local steps of a small model"
        return self._taken("compiled", self._size("compiled"), why, fallback=self._taken("loop"))

    def _uncompiled(self, obstacle: Obstacle | None) -> Execution:
        """Cohorts where they pay, or one client at a time."""
        if obstacle:
            return self._taken("loop", 1, f"the model has {obstacle.what}")
        few = self.work.participants < self.rules.cohort_from
        if self.wishes.cohort_size == 1 or few or self.work.balance < self.rules.balance or not self._dense():
            return self._taken("loop")
        why = "a small dense model, clients of similar sizes"
        return self._taken("vmap", self._size("vmap"), why, fallback=self._taken("loop"))

    def _compiling_pays(self) -> bool:
        if not self.work.batched:
            return False
        if self._dense():
            return self.work.total >= self.rules.compile_dense
        long, filled = self.work.total >= self.rules.compile_convolving, self.work.filled >= self.rules.filled
        return self._dense(CONVOLVING) and long and filled

    def _dense(self, others: tuple[type[nn.Module], ...] = ()) -> bool:
        """Whether the model is small, and of layers that gain."""
        leaves = [m for m in self.task.model.modules() if not list(m.children()) and list(m.parameters())]
        return all(isinstance(leaf, DENSE + others) for leaf in leaves) and self.layout.size < self.rules.heavy

    def _size(self, runner: str) -> int:
        """How many clients are handed over together."""
        half = int(self.work.participants * self.rules.cohort_part)
        if self.wishes.cohort_size is not None:
            return min(self.wishes.cohort_size, self.work.participants)
        if runner == "vmap":
            return max(1, min(self.rules.cohort_most, half))
        if runner in ("traced", "compiled") and not self._large(runner):
            return max(1, min(self.rules.together_most, half))
        return 1


def slots_for(wishes: Wishes, participants: int, rules: AutoRules) -> tuple[Slot, ...]:
    """The slots that were named, or as many as were asked for, or as many as pay."""
    return tuple(wishes.slots) if isinstance(wishes.slots, list) else choose_slots(wishes.slots, participants, rules)


def choose_slots(wish: int | None, participants: int, rules: AutoRules) -> tuple[Slot, ...]:
    """So many slots, or for None as many as pay if each step is Python for the most part."""
    devices, free = torch.cuda.device_count(), not interpreter.gil_enabled()
    if wish is not None:
        count = wish
    elif devices:
        count = min(participants, devices * (rules.slots_per_gpu if free else 1))
    else:
        count = min(participants, cpu_count() if free else 1)
    if devices:
        return tuple(sorted(Slot("cuda", i % devices, i // devices) for i in range(count)))
    return tuple(Slot("cpu", 0, i) for i in range(count))


def with_lock(execution: Execution, work: Workload, flops: Callable[[], float], rules: AutoRules) -> Execution:
    """The slots that pay on a CPU with the GIL: compiled steps run without it, others wait for each other's Python."""
    together = execution.cohort_size if execution.runner == "vmap" else 1
    if execution.runner == "compiled":
        pay = cpu_count()
    else:
        pay = 1 if execution.runner == "traced" else 1 + int(together * flops() // rules.flops_per_slot)
    slots = choose_slots(min(pay, cpu_count(), work.participants), work.participants, rules)
    return replace(execution, slots=slots)


def step_flops(task: FederatedTask, data: FederatedDataModule) -> float:
    """Floating-point operations of products and convolutions in a local step on a full batch; nothing is computed.

    0 for a model that must see values, e.g. as NumPy's numbers: it cannot be counted, and trains all the same.
    """
    batch = Batch(*(tensor.to("meta") for tensor in first_batch(data)))
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            deepcopy(task).to("meta").loss(batch).mean().backward()
    except Exception:  # noqa: BLE001 - a model may fail in any way where there are no values; a real error comes again
        return 0.0
    size = len(data.clients.indices) / data.clients.num_clients
    return float(counter.get_total_flops()) / max(len(batch.inputs), 1) * min(data.batching.size or size, size)
