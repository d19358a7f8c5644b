"""The protocol of a runner, and what all runners share: where batches come from, and what a cohort gives back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.errors import ConfigurationError, DivergedError, shown
from fedlightning.execution.plan import CohortPlan, PhasePlan
from fedlightning.execution.slots import Worker
from fedlightning.execution.step import LocalStep
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State


class Runner(Protocol):
    """Takes the local steps of cohorts on one slot. It is made once for each slot and phase, by `Runner(step, slot)`.

    Args:
        step: what a local step is, on this slot's model.
        slot: its device, its model, the examples on its device, and whether the run is being stopped.
    """

    def __init__(self, step: LocalStep, slot: Worker) -> None: ...

    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """Train the clients of each plan; the results, in the order of the plans.

        It is called in the slot's thread. The result must depend on nothing but the arguments.

        Raises:
            Cancelled: the run is being stopped.
        """


class Backend(ABC):
    """Makes the slots' runners, and holds what they share. A runner of one's own needs none: `Custom` wraps it.

    Attributes:
        cohort_size: the most clients of a cohort.
        share: a cohort of several clients takes at most this part of a round's steps: then no slot is long at work while others
            wait.
        together: whether a slot takes its share of a round's cohorts at a time, and so draws nothing ahead.
        seconds: spent on graphs.
    """

    cohort_size = 1
    share = 1.0
    together = False
    seconds = 0.0

    def prepare(  # noqa: B027 - most have nothing to make
        self, step: LocalStep, plan: PhasePlan, inputs: RoundInputs, slot: Worker
    ) -> None:
        """Make a phase's graph, or try what may fail, before the first round; no slot works meanwhile."""

    @abstractmethod
    def __call__(self, step: LocalStep, slot: Worker) -> Runner:
        """A slot's runner for a phase."""

    def before_round(self) -> None:  # noqa: B027 - the same
        """Do what only one thread may do; no slot works meanwhile."""


class Custom(Backend):
    """A user's own runner.

    Args:
        make: `make(step, slot)` gives a slot's runner.
        cohort_size: the most clients that are handed over together.
    """

    def __init__(self, make: Callable[[LocalStep, Worker], Runner], cohort_size: int = 1) -> None:
        self._make, self.cohort_size = make, cohort_size

    def __call__(self, step: LocalStep, slot: Worker) -> Runner:
        """What the user's class or function makes.

        Raises:
            ConfigurationError: it makes no runner.
        """
        name = getattr(self._make, "__name__", "the runner")
        try:
            made = self._make(step, slot)
        except TypeError as error:
            if _is_inside(error):
                raise
            raise ConfigurationError(
                f"`runner` of SlotStrategy must be made by `runner(step, slot)`, but {name} is not: {error}; see `LoopRunner`."
            ) from error
        if not callable(getattr(made, "run", None)):
            raise ConfigurationError(
                f"`runner` of SlotStrategy must make objects that have `run(plans, inputs)`, but {name} makes {shown(made)}."
            )
        return _Watched(made)


class _Watched:
    """A user's runner, of which what it gives and writes to is looked at: a wrong result would be a wrong number later."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._run = runner, f"`run` of {type(runner).__name__}"

    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """What the runner gives.

        Raises:
            ConfigurationError: it is not what these clients did, or the runner wrote to the server's tensors.
        """
        versions = [tensor._version for tensor in inputs.server.values()]
        try:
            results = self._runner.run(plans, inputs)
        except TypeError as error:
            if _is_inside(error):
                raise
            raise ConfigurationError(f"{self._run} must take `(plans, inputs)`, but does not: {error}.") from error
        if not isinstance(results, list) or len(results) != len(plans):
            given = f"{len(results)} of them" if isinstance(results, list) else shown(results)
            raise ConfigurationError(
                f"{self._run} must give a list of {len(plans)} results, one for each plan, but gives {given}."
            )
        for plan, one in zip(plans, results, strict=True):
            if fault := _fault(plan, one):
                raise ConfigurationError(
                    f"{self._run} must give a CohortResult of what the clients {plan.clients} did in round "
                    f"{plan.round.index}, but {fault}; `LoopRunner` gives one."
                )
        if [tensor._version for tensor in inputs.server.values()] != versions:
            raise ConfigurationError(
                f"{self._run} must leave the server's tensors as they are, but writes to them in place."
            )
        return results


def _is_inside(error: BaseException) -> bool:
    """Whether an error comes from within what was called, and not from the call itself."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def _fault(plan: CohortPlan, result: Any) -> str:
    """What is wrong with a result of a plan, in words; "" if nothing is."""
    if not isinstance(result, CohortResult):
        return f"one of them is {shown(result)}"
    count = len(plan.clients)
    if tuple(result.clients) != plan.clients:
        return f"it names {result.clients!r:.80} as its clients"
    for name in ("upload", "state"):
        states = getattr(result, name)
        if not isinstance(states, State) or any(tensor.shape[:1] != (count,) for tensor in states.values()):
            return f"its `{name}` is no State of entries [{count}, …]"
    for name in ("buffers", "num_examples", "num_steps", "loss"):
        tensor = getattr(result, name)
        if not isinstance(tensor, Tensor) or tensor.shape[:1] != (count,) or (name != "buffers" and tensor.dim() != 1):
            return f"its `{name}` is no tensor [{count}]"
    if result.num_examples.tolist() != plan.round.data.clients.sizes_of(plan.clients).tolist():
        return f"its `num_examples` are {result.num_examples.tolist()!r:.80}"
    if result.num_steps.tolist() != plan.num_steps:
        return f"its `num_steps` are {result.num_steps.tolist()!r:.80}"
    if not all(map(_is_finite, (result.loss, *result.upload.values(), *result.state.values()))):
        return "a loss, an upload or what a client remembers is not finite"
    return ""


class Cancelled(Exception):
    """The run is being stopped; this cohort's work is thrown away."""


def check_cancelled(slot: Worker) -> None:
    """Look whether the run is being stopped; between blocks of steps.

    Raises:
        Cancelled: it is.
    """
    if slot.cancelled():
        raise Cancelled


def examples_of(slot: Worker, index: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inputs and targets [..., …] of the examples at positions [...], augmented by draws [..., D]; one gather for all of them."""
    flat = index.reshape(-1).to(slot.device)
    drawn = None if draws is None else draws.reshape(-1, draws.shape[-1]).to(slot.device)
    inputs, targets = slot.data.batch(slot.examples, flat, drawn)
    return inputs.view(*index.shape, *inputs.shape[1:]), targets.view(*index.shape, *targets.shape[1:])


def begun(inputs: RoundInputs, slot: Worker) -> State:
    """Load the round's buffers into the slot's model; give the server's tensors on its device."""
    slot.replica.load_buffers(inputs.buffers)
    return inputs.server.apply(lambda tensor: tensor.to(slot.device))


def result(
    plan: CohortPlan, inputs: RoundInputs, ends: tuple[State, State], losses: Tensor, buffers: Tensor, slot: Worker
) -> CohortResult:
    """What a cohort gives back, once every number of it is known to be finite.

    Args:
        plan: what it was to do.
        inputs: what it was given.
        ends: what the clients upload and what they remember, entries [C, …].
        losses: of each step, in the plan's order [ΣK].
        buffers: the model's buffers after the last step of each client [C, Q].
        slot: where it was done.

    Raises:
        DivergedError: a loss or an upload is not finite.
    """
    upload, state = ends
    means = _mean_over_examples(plan, losses)
    if not (np.isfinite(means).all() and all(map(_is_finite, upload.values()))):
        _tell_diverged(plan, inputs, losses, upload, slot)
    return CohortResult(
        clients=plan.clients,
        upload=upload,
        state=state,
        buffers=buffers,
        num_examples=torch.from_numpy(plan.round.data.clients.sizes_of(plan.clients)),
        num_steps=torch.tensor(plan.num_steps),
        loss=torch.from_numpy(means),
        slot=str(slot.slot),
        seconds=0.0,
    )


@contextmanager
def told(plan: CohortPlan, slot: Worker) -> Iterator[None]:
    """Add to an error whose steps were taken, when and where."""
    try:
        yield
    except Exception as error:
        clients = plan.clients
        error.add_note(f"In round {plan.round.index}, client{'s' * (len(clients) > 1)} {clients}, on slot {slot.slot}.")
        raise


def _mean_over_examples(plan: CohortPlan, losses: Tensor) -> NDArray[np.float64]:
    """The mean [C] of each client's losses, weighted by the examples of a batch."""
    shape = len(plan.num_steps), plan.num_steps[0]
    seen: NDArray[np.float64] = plan.filled.astype(np.float64)
    weighted: NDArray[np.float64] = losses.cpu().to(torch.float64).numpy() * seen
    if plan.num_steps[-1] < plan.num_steps[0]:  # a client that has finished sees no example more
        rows, (weighted, seen) = (weighted, seen), np.zeros((2, *shape))
        weighted[plan.owner, plan.step], seen[plan.owner, plan.step] = rows
    means: NDArray[np.float64] = weighted.reshape(shape).sum(1) / seen.reshape(shape).sum(1)
    return means


def _tell_diverged(plan: CohortPlan, inputs: RoundInputs, losses: Tensor, upload: State, slot: Worker) -> None:
    """Raise for the first client of which a number is not finite."""
    for c, client in enumerate(plan.clients):
        own = losses[plan.offsets[c] : plan.offsets[c + 1]]
        if not bool(torch.isfinite(own).all()):
            step = int((~torch.isfinite(own)).nonzero()[0])
            what = f"the loss of client {client} at local step {step} is {float(own[step])}"
        elif not all(bool(torch.isfinite(tensor[c]).all()) for tensor in upload.values()):
            what = f"what client {client} uploads is not"
        else:
            continue
        raise DivergedError(
            f"Every number of a client must be finite, but {what}, in round {inputs.round.index} on slot {slot.slot}; look at "
            f"its data, use a smaller `lr` (now {inputs.round.lr:g}), or set `clip_norm`."
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; the sum tells, unless it overflows."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
