"""The training of a cohort for a round: its clients start, take their steps by an executor, and end."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.callbacks.base import CohortResult
from fedlightning.data.module import Examples
from fedlightning.errors import DivergedError
from fedlightning.execution.model import Replica
from fedlightning.execution.plan import CohortPlan, RoundJob, Steps, draw_cohort, plan_cohort
from fedlightning.execution.runners.loop import Block, Executor, Gathered, InTurnExecutor
from fedlightning.hooks.diagnose import GradientPass, Hooks
from fedlightning.state import State


class Cancelled(Exception):
    """The run is being stopped; this cohort's work is thrown away."""


Phases = Generator[None, None, CohortResult]
"""The training of a cohort, which pauses where compiled code is to take over and where that is done."""


def run_together(cohorts: Sequence[Phases]) -> list[CohortResult]:
    """Train cohorts, each phase of all of them before the next one.

    What is done for a cohort in Python takes several times as long where compiled code has just taken the cache.
    """
    seconds, results = [0.0] * len(cohorts), dict[int, CohortResult]()
    while len(results) < len(cohorts):
        for i, cohort in enumerate(cohorts):
            began = time.perf_counter()
            try:
                if i not in results:
                    next(cohort)
            except StopIteration as done:
                results[i] = done.value
            seconds[i] += time.perf_counter() - began
    return [replace(results[i], seconds=seconds[i]) for i in range(len(cohorts))]


@torch.no_grad()
def run_cohort(
    replica: Replica, job: RoundJob, clients: tuple[int, ...], plan: CohortPlan, executor: Executor, slot: str
) -> Phases:
    """Train a cohort for a round, as planned; the hooks are called in the order drawn in `method.py`."""
    server = job.server.apply(lambda tensor: tensor.to(replica.device))
    hooks = (GradientPass if job.gradient_pass else Hooks)(job.method, server, job.layout)
    replica.load_buffers(job.buffers)

    try:
        local, losses = yield from _train(executor, hooks, plan, job, replica.device)
        with hooks.calling("on_client_end"):
            upload, state = (_some(s, slice(len(clients))) for s in executor.call(hooks, "end", local, plan.clients(1)))
    except Exception as error:
        error.add_note(f"In round {job.round.index}, client{'s' * (len(clients) > 1)} {clients}, on slot {slot}.")
        raise
    loss = _mean_over_examples(losses, plan.filled, plan.num_steps)
    _check_finite(job, clients, losses, loss, upload, slot)
    num_steps = torch.tensor(plan.num_steps)
    return CohortResult(
        clients=clients,
        upload=upload,
        state=state,
        buffers=replica.buffers().expand(len(clients), -1),
        num_examples=torch.from_numpy(job.data.clients.sizes_of(clients)),
        num_steps=num_steps,
        loss=torch.from_numpy(loss),
        slot=slot,
        seconds=0.0,
    )


def _mean_over_examples(losses: Tensor, filled: NDArray[np.int64], num_steps: Sequence[int]) -> NDArray[np.float64]:
    """The mean [C] (float64) of each client's losses of steps [>= K, C], weighted by the examples of a batch [K, >= C]."""
    longest, count = num_steps[0], len(num_steps)
    columns = losses[:longest, :count].cpu().to(torch.float64).numpy()
    # Client by client in memory: for two clients of 700 steps, sums over columns cost five times as much as these. A client
    # that has finished sees no example more.
    rows, seen = (np.ascontiguousarray(table.T, dtype=np.float64) for table in (columns, filled[:longest, :count]))
    means: NDArray[np.float64] = (rows * seen).sum(1) / seen.sum(1)
    return means


def rehearse(replica: Replica, job: RoundJob, clients: tuple[int, ...], executor: Executor, slot: str) -> CohortResult:
    """Train a cohort for a block of steps, of which nothing is kept but what is given back."""
    short = replace(job, work=replace(job.work, steps=dict.fromkeys(clients, executor.block(len(clients)))))
    plan = plan_cohort(short, clients, draw_cohort(short, clients, executor.padding(len(clients))), replica.device)
    return run_together([run_cohort(replica, short, clients, plan, executor, slot)])[0]


def start(executor: Executor, hooks: Hooks, plan: CohortPlan) -> State:
    """The local states before the first step, entries [C, …]."""
    with hooks.calling("on_client_start"):
        local: State = executor.call(hooks, "start", plan.clients(0))
    return local


def _train(
    executor: Executor, hooks: Hooks, plan: CohortPlan, job: RoundJob, device: torch.device
) -> Generator[None, None, tuple[State, Tensor]]:
    """The local states after all steps, entries [C, …], and the losses [K, clients], 0 where a client had finished."""
    local, examples = start(executor, hooks, plan), job.examples(device)
    if isinstance(executor, InTurnExecutor):
        return (yield from _in_turn(executor, hooks, plan, job, examples, local))
    losses = torch.zeros(plan.steps.active.shape, dtype=hooks.server.x.dtype, device=device)
    finished: list[State] = []
    wide = losses.shape[1]
    for k, count, width in _spans(plan.num_steps, executor):
        if job.cancelled():
            raise Cancelled
        if width < wide:
            finished.insert(0, _some(local, slice(width, None)))
            local, wide = _some(local, slice(width)), width
        block = take(job, plan, examples, k, count, width)
        with hooks.calling("on_local_step"):
            local, loss = executor.steps(hooks, local, block)
        losses[k : k + len(loss), :width] = loss
    if finished:
        local = _joined(local, *finished)
    return local, torch.where(plan.steps.active, losses, 0)[:, : len(plan.num_steps)]


def _in_turn(
    executor: InTurnExecutor, hooks: Hooks, plan: CohortPlan, job: RoundJob, examples: Examples, local: State
) -> Generator[None, None, tuple[State, Tensor]]:
    """The same, for clients that follow one another, but for the first step if it is taken alone."""
    count, lengths = len(plan.num_steps), plan.padding.lengths(plan.num_steps)
    losses, flat, row = list[Tensor](), list[Tensor](), 0
    if plan.padding.lead:
        with hooks.calling("on_local_step"):
            local, loss = executor.steps(hooks, local, take_first(job, plan, examples))
        losses, row = [loss], count
    for c, part in _parts(lengths, executor.block(count)):
        if job.cancelled():
            raise Cancelled
        whole, clients = len(part) == count, slice(c, c + len(part))
        block = take_rows(job, plan, examples, row, c, part, job.data.only_gathers)
        run = executor.prepare(hooks, local if whole else _some(local, clients), block)
        if not flat:
            yield
        state, loss = run()
        local = state if whole else _joined(_some(local, slice(c)), state, _some(local, slice(c + len(part), None)))
        flat.append(loss)
        row += len(loss)
    yield
    if flat:
        losses.append(_side_by_side(torch.cat(flat), lengths))
    return local, torch.cat(losses)


def _side_by_side(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows [ΣS, 1], so many of each client, as [S, C]; 0 where a client has none."""
    if len(set(lengths)) == 1:
        return rows.view(len(lengths), -1).T
    there = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return rows.new_zeros(there.shape).masked_scatter_(there.to(rows.device), rows).T.contiguous()


def _parts(lengths: Sequence[int], most: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Blocks of at most so many rows: the first client of each, and the rows of that and of those that follow it."""
    first, part = 0, list[int]()
    for c, length in enumerate(lengths):
        left = length
        while left:
            part.append(min(left, most - sum(part)))
            left -= part[-1]
            if sum(part) == most:
                yield first, tuple(part)
                first, part = c if left else c + 1, []
    if part:
        yield first, tuple(part)


def _spans(num_steps: list[int], executor: Executor) -> Iterator[tuple[int, int, int]]:
    """First step, number of steps and width of each block of clients side by side."""
    k = 0
    while k < num_steps[0]:
        least = active = _active(num_steps, k)
        width = executor.width(active)
        while least > 1 and executor.width(least - 1) == width:
            least -= 1
        count = min(executor.block(width), num_steps[least - 1] - k)
        yield k, count, width
        k += count


def _active(num_steps: list[int], k: int) -> int:
    """How many clients, of falling numbers of steps, take step k."""
    return bisect_left(num_steps, -k, key=lambda steps: -steps)


def take(job: RoundJob, plan: CohortPlan, examples: Examples, k: int, count: int, width: int) -> Block:
    """The steps k, …, k + count − 1 of the first `width` clients, side by side, without places that no batch fills."""
    filled = plan.filled[k : k + count]
    part = plan.steps.apply(lambda tensor: tensor[k : k + count, :width]).trimmed(int(filled[:, :width].max()))
    clients, active = plan.clients_in(part.keys, 0, width), _active(plan.num_steps, k)
    batch = _batch(job, examples, part)
    return Block(clients, batch, part.mask, part.active, active, first=k == 0, filled=filled[:, 0].tolist())


def take_first(job: RoundJob, plan: CohortPlan, examples: Examples) -> Block:
    """The first step of clients that follow one another afterwards."""
    count = len(plan.num_steps)
    part = plan.steps.apply(lambda tensor: tensor[:count].transpose(0, 1))
    clients, batch = plan.clients_in(part.keys, 0, count), _batch(job, examples, part)
    return Block(clients, batch, part.mask, part.active, count, first=True)


def take_rows(
    job: RoundJob, plan: CohortPlan, examples: Examples, row: int, first: int, lengths: tuple[int, ...], gathered: bool
) -> Block:
    """So many rows of each client from `first` on, the first of them at `row`; their examples, or where those lie."""
    end, part = row + sum(lengths), plan.steps
    if end - row < len(part.mask):
        part = part.apply(lambda tensor: tensor[row:end])
    clients = plan.clients_in(part.keys, first, first + len(lengths))
    block = Block(clients, (), part.mask, part.active, len(lengths), first=False, lengths=lengths)
    if gathered:
        return block._replace(gathered=tuple(Gathered(tensor, part.index) for tensor in examples))
    return block._replace(batch=_batch(job, examples, part))


def _batch(job: RoundJob, examples: Examples, steps: Steps) -> tuple[Tensor, ...]:
    """The examples of some steps, augmented: tensors [S, C, B, …]."""
    draws = None if steps.draws is None else steps.draws.flatten(0, 2)
    flat = job.data.batch(examples, steps.index.reshape(-1), draws)
    return tuple(tensor.view(*steps.index.shape, *tensor.shape[1:]) for tensor in flat)


def _some(state: State, clients: slice) -> State:
    return state.apply(lambda tensor: tensor[clients])


def _joined(*states: State) -> State:
    return State(**{name: torch.cat([state[name] for state in states]) for name in states[0]})


def _check_finite(
    job: RoundJob,
    clients: tuple[int, ...],
    losses: Tensor,
    means: NDArray[np.float64],
    upload: State,
    slot: str,
) -> None:
    if np.isfinite(means).all() and all(map(_is_finite, upload.values())):
        return
    for c, client in enumerate(clients):
        if not bool(torch.isfinite(losses[:, c]).all()):
            step = int((~torch.isfinite(losses[:, c])).nonzero()[0])
            what = f"the loss of client {client} at local step {step} is {float(losses[step, c])}"
        elif not all(bool(torch.isfinite(tensor[c]).all()) for tensor in upload.values()):
            what = f"what client {client} uploads is not"
        else:
            continue
        raise DivergedError(
            f"Every number of a client must be finite, but {what}, in round {job.round.index} on slot {slot}; look at its data, "
            f"use a smaller `lr` (now {job.round.lr:g}), or set `clip_norm`."
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; the sum tells, unless it overflows."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
