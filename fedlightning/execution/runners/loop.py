"""One client after another, through the module itself; serves any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from fedlightning.execution.plan import CohortPlan
from fedlightning.execution.runners.base import Backend, begun, check_cancelled, examples_of, result, told
from fedlightning.execution.slots import Worker
from fedlightning.execution.step import Clients, LocalStep, by_module
from fedlightning.hooks.diagnose import calling
from fedlightning.method import Batch, ClientContext
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State, stack

BLOCK = 8
"""Steps whose batches are gathered at once: from eight on, the gather's call costs nothing beside them, and small batches
stay in the cache until they are used."""


class LoopBackend(Backend):
    """Each slot's runner has nothing to share."""

    def __call__(self, step: LocalStep, slot: Worker) -> LoopRunner:
        """A slot's runner."""
        return LoopRunner(step, slot)


class LoopRunner:
    """One client after another, one step after another. Each gradient is a backward pass through the module.

    Args:
        step: what a local step is.
        slot: where it is taken.
    """

    def __init__(self, step: LocalStep, slot: Worker) -> None:
        self._step, self._slot = step, slot

    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """Train the cohorts, one after another."""
        return [self._cohort(plan, inputs) for plan in plans]

    @torch.no_grad()
    def _cohort(self, plan: CohortPlan, inputs: RoundInputs) -> CohortResult:
        step, slot = self._step, self._slot
        plan = plan.to(slot.device)
        uploads, states, losses, buffers = list[State](), list[State](), list[Tensor](), list[Tensor]()
        with told(plan, slot):
            clients = plan.known(step.method, inputs, slot.device)
            after = plan.after(clients)
            for c, (first, last) in enumerate(pairwise(plan.offsets.tolist())):
                server = begun(inputs, slot)
                with calling(step.method, "on_client_start", server):
                    local = step.start(server, clients.some(c))
                local = self.steps(plan, server, local, clients.some(c), (first, last), losses)
                with calling(step.method, "on_client_end", server):
                    upload, state = step.end(server, local, after.some(c))
                uploads.append(upload)
                states.append(state)
                buffers.append(slot.replica.buffers())
        return result(plan, inputs, (stack(uploads), stack(states)), torch.stack(losses), torch.stack(buffers), slot)

    def steps(
        self,
        plan: CohortPlan,
        server: State,
        local: State,
        client: Clients,
        rows: tuple[int, int],
        losses: list[Tensor],
    ) -> State:
        """The local state of one client after its steps, which are the plan's `rows`: from the first to before the last."""
        slot, (first, last) = self._slot, rows
        context = self._step.context(server, client)
        numbers = torch.arange(last - first, dtype=context.x.dtype, device=slot.device)
        for begin in range(first, last, BLOCK):
            check_cancelled(slot)
            some = slice(begin, min(begin + BLOCK, last))
            filled = plan.filled[some].tolist()
            longest = max(filled)
            draws = None if plan.draws is None else plan.draws[some, :longest]
            batches = *examples_of(slot, plan.index[some, :longest], draws), plan.mask[some, :longest]
            keys = plan.keys[some], numbers[begin - first : begin - first + BLOCK]
            with calling(self._step.method, "on_local_step", server):
                # One call takes a tensor of the block apart: a view made anew for each step costs what a small layer costs.
                for size, key, number, *parts in zip(filled, *(t.unbind() for t in (*keys, *batches)), strict=True):
                    # The filled places are those in front, so that a batch of one client has no empty place.
                    batch = Batch(*(parts if size == longest else (tensor[:size] for tensor in parts)))
                    context = replace(context, key=key, step=number)
                    local, loss = self.take(local, context, batch)
                    losses.append(loss)
        return local

    def take(self, local: State, context: ClientContext, batch: Batch) -> tuple[State, Tensor]:
        """One step of one client, on a batch without an empty place."""
        self._step.model.begin_step()
        return self._step.take(local, context, batch, by_module)
