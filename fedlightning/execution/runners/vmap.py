"""A cohort of clients at once under `torch.func.vmap`; for small dense models, whose operations have batching rules.

Clients stand side by side, the one with most steps first. As clients finish, the cohort narrows to the next power of two, so
that few shapes occur. A step of one shape that was taken often is traced and from then on taken without vmap and autograd, to
its bits: these cost more than a small step computes. To trace one takes a tenth of a second and saves half a millisecond a
step.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.execution.plan import CohortPlan, PhasePlan
from fedlightning.execution.runners._trace import trace
from fedlightning.execution.runners.base import Backend, begun, check_cancelled, examples_of, result, told
from fedlightning.execution.slots import Worker
from fedlightning.execution.step import Clients, FlatFunction, LocalStep, flat
from fedlightning.hooks.diagnose import calling
from fedlightning.method import Batch
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State

OFTEN = 100
"""Steps of one shape that show that more will come."""


class VmapBackend(Backend):
    """What the slots' runners share: the cohorts' size, and the graphs of steps that are often taken.

    Args:
        size: the most clients at once.
        traces: whether steps that are often taken are traced.
        often: after how many steps of one shape.
    """

    def __init__(self, size: int, traces: bool, often: int = OFTEN) -> None:
        self.cohort_size = size
        self.traces = Traces(often) if traces else None

    def __call__(self, step: LocalStep, slot: Worker) -> VmapRunner:
        """A slot's runner."""
        return VmapRunner(step, slot, self.cohort_size, self.traces)

    def prepare(self, step: LocalStep, plan: PhasePlan, inputs: RoundInputs, slot: Worker) -> None:
        """Take a step of two clients, to see whether the model and the method can be lifted."""
        pair = tuple(sorted(plan.clients, key=lambda client: (-plan.num_steps(client), client))[:2])
        if len(pair) == 2 and self.cohort_size > 1:
            VmapRunner(step, slot, 2).run([plan.shortened(pair, 1).draw(pair)], inputs)

    def before_round(self) -> None:
        """Trace what was often taken; no slot works meanwhile, since tracing changes modules for all threads."""
        if self.traces:
            self.traces.grow()


class Dense(NamedTuple):
    """A plan's rows side by side, [K, W, …] with the most steps K of a client; W is at least the number of clients.

    Attributes:
        index: positions of examples [K, W, B]; 0 where nobody takes a step.
        mask: whether each place is filled [K, W, B].
        keys: randomness [K, W].
        draws: the augmentation's integers [K, W, B, D], or None.
        filled: places of each batch that are filled [K, W].
        places: step and client of each row of the plan [ΣK].
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it
    mask: Tensor
    keys: Tensor
    draws: Tensor | None
    filled: NDArray[np.int64]
    places: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, plan: CohortPlan, width: int, device: torch.device) -> Dense:
        """The plan's rows, for so many places."""
        places = plan.step, plan.owner

        def spread(rows: NDArray[Any]) -> NDArray[Any]:
            table = np.zeros((plan.num_steps[0], width, *rows.shape[1:]), rows.dtype)
            table[places] = rows
            return table

        def laid(rows: Tensor) -> Tensor:
            return torch.from_numpy(spread(rows.numpy())).to(device)

        draws = None if plan.draws is None else laid(plan.draws)
        on_device = torch.from_numpy(places[0]).to(device), torch.from_numpy(places[1]).to(device)
        return cls(laid(plan.index), laid(plan.mask), laid(plan.keys), draws, spread(plan.filled), on_device)


class VmapRunner:
    """Takes each step of a cohort's clients at once.

    Args:
        step: what a local step is.
        slot: where it is taken.
        size: the most clients at once.
        traces: graphs of steps that are often taken; None takes all steps under vmap.
    """

    def __init__(self, step: LocalStep, slot: Worker, size: int, traces: Traces | None = None) -> None:
        self._step, self._slot, self._size, self._traces = step, slot, size, traces

    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """Train the cohorts, one after another."""
        return [self._cohort(plan, inputs) for plan in plans]

    @torch.no_grad()
    def _cohort(self, plan: CohortPlan, inputs: RoundInputs) -> CohortResult:
        step, slot, count = self._step, self._slot, len(plan.clients)
        with told(plan, slot):
            server = begun(inputs, slot)
            width = self._width(count)
            known = plan.known(step.method, inputs, slot.device)
            # The last client stands in the places left; what comes of it there is thrown away.
            stand = torch.arange(width, device=slot.device).clamp(max=count - 1)
            clients = known if width == count else known.some(stand)
            with calling(step.method, "on_client_start", server):
                local = step.starts(server, clients)
            local, losses = self.steps(plan, Dense.of(plan, width, slot.device), server, local, clients)
            after = plan.after(known)
            with calling(step.method, "on_client_end", server):
                upload, state = step.ends(server, local, after if width == count else after.some(stand))
            ends = _some(upload, slice(count)), _some(state, slice(count))
        return result(plan, inputs, ends, losses, slot.replica.buffers().expand(count, -1), slot)

    def steps(
        self, plan: CohortPlan, dense: Dense, server: State, local: State, clients: Clients
    ) -> tuple[State, Tensor]:
        """The local states after all steps, and the losses in the plan's order [ΣK]."""
        slot, wide = self._slot, len(clients.key)
        numbers = torch.arange(plan.num_steps[0], dtype=server.x.dtype, device=slot.device)
        losses = torch.zeros(dense.index.shape[:2], dtype=server.x.dtype, device=slot.device)
        finished: list[State] = []
        for k in range(plan.num_steps[0]):
            check_cancelled(slot)
            count = _active(plan.num_steps, k)
            width = self._width(count)
            if width < wide:
                finished.insert(0, _some(local, slice(width, None)))
                local, wide = _some(local, slice(width)), width
                clients = clients.some(slice(width))
            now = clients._replace(key=dense.keys[k, :width], step=numbers[k].expand(width))
            batch = self._batch(dense, k, width)
            with calling(self._step.method, "on_local_step", server):
                after, loss = self.take(server, local, now, batch)
            local = after if count == width else _keep_finished(after, local, count)
            losses[k, :width] = loss
        if finished:
            local = State(**{name: torch.cat([s[name] for s in (local, *finished)]) for name in local})
        return local, losses[dense.places]

    def _batch(self, dense: Dense, k: int, width: int) -> Batch:
        """The batches [W, B, …] of step k, without places that no batch fills."""
        longest = int(dense.filled[k, :width].max())
        draws = None if dense.draws is None else dense.draws[k, :width, :longest]
        return Batch(*examples_of(self._slot, dense.index[k, :width, :longest], draws), dense.mask[k, :width, :longest])

    def take(self, server: State, local: State, clients: Clients, batch: Batch) -> tuple[State, Tensor]:
        """One step of C clients: their local states, and their losses [C]."""
        take = self._traces.take if self._traces else LocalStep.side_by_side
        return take(self._step, server, local, clients, batch)

    def _width(self, active: int) -> int:
        """The cohort's size, or a power of two, that holds so many clients."""
        return min(self._size, 1 << (active - 1).bit_length())


class Traces:
    """The graphs of a run's steps, by what they take; they give the step's own bits, so that it does not matter who takes which.

    Args:
        often: steps of one shape after which it is traced.

    Attributes:
        graphs: the graph of each shape that was traced.
        seen: how often a step of each shape was taken without one.
    """

    def __init__(self, often: int = OFTEN) -> None:
        self._often = often
        self.graphs: dict[Any, Callable[[Sequence[Tensor]], Any]] = {}
        self.seen: Counter[Any] = Counter()
        self._wanted: dict[Any, Callable[[], Callable[[Sequence[Tensor]], Any]]] = {}
        self._lock = threading.Lock()
        self._off = False

    def take(
        self, step: LocalStep, server: State, local: State, clients: Clients, batch: Batch
    ) -> tuple[State, Tensor]:
        """A step of C clients, by its graph where there is one."""
        if self._off:
            return step.side_by_side(server, local, clients, batch)
        given = (server, local, clients, batch)
        tensors = flat(*given)
        key = (step.phase.name, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors))
        if graph := self.graphs.get(key):
            taken: tuple[State, Tensor] = graph(tensors)
            return taken
        with self._lock:
            self.seen[key] += 1
            if self.seen[key] == self._often:
                self._wanted[key] = partial(_traced, step, given)
        return step.side_by_side(*given)

    def grow(self) -> None:
        """Trace what was often taken since the last call."""
        while self._wanted and not self._off:
            key, make = self._wanted.popitem()
            try:
                self.graphs[key] = make()
            except Exception as error:  # noqa: BLE001 - the same steps are taken without a graph
                self._off = True
                rank_zero_info(f"Cohorts take their steps under vmap, since these cannot be traced: {error}")


def _traced(step: LocalStep, given: tuple[Any, ...]) -> Callable[[Sequence[Tensor]], Any]:
    function = FlatFunction(step.side_by_side, *given)
    with calling(step.method, "on_local_step", given[0]):
        run = trace(function, flat(*given)).forward
    return lambda tensors: function.unflat(run(*tensors))


def _active(num_steps: list[int], k: int) -> int:
    """How many clients, of falling numbers of steps, take step k."""
    return bisect_left(num_steps, -k, key=lambda steps: -steps)


def _some(state: State, clients: slice) -> State:
    return state.apply(lambda tensor: tensor[clients])


def _keep_finished(after: State, before: State, active: int) -> State:
    """The new states of the first `active` clients, the old ones of those that had finished."""
    return State(**{name: torch.cat([after[name][:active], before[name][active:]]) for name in after})
