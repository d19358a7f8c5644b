"""The only local training loop of the library."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import Tensor

from fedlightning.callback import CohortResult
from fedlightning.data.module import Examples
from fedlightning.engine.executors import Block, Executor, Gathered
from fedlightning.engine.hooks import GradientPass, Hooks
from fedlightning.engine.job import Clients, CohortPlan, RoundJob
from fedlightning.engine.replica import Replica
from fedlightning.errors import ClientError
from fedlightning.state import State


class Cancelled(Exception):
    """The run is being stopped; this cohort's work is thrown away."""


@torch.no_grad()
def run_cohort(
    replica: Replica, job: RoundJob, clients: tuple[int, ...], plan: CohortPlan, executor: Executor, slot: str
) -> CohortResult:
    """Train a cohort for a round, as planned; the hooks are called in the order drawn in `method.py`."""
    began = time.perf_counter()
    server = job.server.apply(lambda tensor: tensor.to(replica.device))
    hooks = (GradientPass if job.gradient_pass else Hooks)(job.method, server, job.layout)
    replica.load_buffers(job.buffers)

    def end(local: State, client: Clients) -> tuple[State, State]:
        return hooks.end(local, hooks.context(client, False))

    try:
        local, losses = _train(executor, hooks, plan, job, replica.device)
        with hooks.calling("on_client_end"):
            upload, state = (_first(len(clients), s) for s in executor.call(end, local, plan.clients(1)))
    except Exception as error:
        error.add_note(f"In round {job.round.index}, client{'s' * (len(clients) > 1)} {clients}, on slot {slot}.")
        raise
    _check_finite(job, clients, losses, upload, slot)
    num_steps = torch.tensor(plan.num_steps)
    return CohortResult(
        clients=clients,
        upload=upload,
        state=state,
        buffers=replica.buffers().expand(len(clients), -1),
        num_examples=torch.tensor([job.data.clients.size(client) for client in clients]),
        num_steps=num_steps,
        loss=losses.sum(0).cpu() / num_steps,
        slot=slot,
        seconds=time.perf_counter() - began,
    )


def start(executor: Executor, hooks: Hooks, plan: CohortPlan) -> State:
    """The local states before the first step, entries [C, …]."""
    with hooks.calling("on_client_start"):
        local: State = executor.call(lambda client: hooks.start(hooks.context(client, True)), plan.clients(0))
    return local


def _train(
    executor: Executor, hooks: Hooks, plan: CohortPlan, job: RoundJob, device: torch.device
) -> tuple[State, Tensor]:
    """The local states after all steps, entries [C, …], and the losses [K, clients], 0 where a client had finished."""
    local = start(executor, hooks, plan)
    examples = job.examples(device)
    losses = torch.zeros(plan.active.shape, dtype=hooks.server.x.dtype, device=device)
    finished: list[State] = []
    wide = losses.shape[1]
    for k, count, width in _spans(plan.num_steps, executor):
        if job.cancelled():
            raise Cancelled
        if width < wide:
            finished.insert(0, local.apply(lambda tensor: tensor[width:]))  # noqa: B023 - applied at once
            local, wide = _first(width, local), width
        block = _take(executor, job, plan, examples, k, count, width)
        with hooks.calling("on_local_step"):
            local, loss = executor.steps(hooks, local, block)
        losses[k : k + len(loss), :width] = loss
    if finished:
        local = State(**{name: torch.cat([part[name] for part in (local, *finished)]) for name in local})
    return local, torch.where(plan.active, losses, 0)[:, : len(plan.num_steps)]


def _spans(num_steps: list[int], executor: Executor) -> Iterator[tuple[int, int, int]]:
    """First step, number of steps and width of each block.

    They are of one width, but where clients follow one another: there some may finish within a block.
    """
    k = 0
    if executor.first_alone:
        yield 0, 1, executor.width(len(num_steps))
        k = 1
    while k < num_steps[0]:
        least = active = _active(num_steps, k)
        width = executor.width(active)
        while least > 1 and (executor.in_turn or executor.width(least - 1) == width):
            least -= 1
        count = min(executor.block(width), -(-(num_steps[least - 1] - k) // executor.unroll) * executor.unroll)
        yield k, count, width
        k += count


def _active(num_steps: list[int], k: int) -> int:
    """How many clients, of falling numbers of steps, take step k."""
    return bisect_left(num_steps, -k, key=lambda steps: -steps)


def _take(
    executor: Executor, job: RoundJob, plan: CohortPlan, examples: Examples, k: int, count: int, width: int
) -> Block:
    """A block as the executor wants it."""
    if not executor.in_turn or (executor.first_alone and k == 0):
        return take(job, plan, examples, k, count, width, trim=executor.unroll == 1)
    unroll = executor.unroll
    lengths = tuple(min(count, -(-(steps - k) // unroll) * unroll) for steps in plan.num_steps[:width])

    def rows(tensor: Tensor) -> Tensor:
        if len(set(lengths)) == 1:
            return tensor[k : k + lengths[0], :width].transpose(0, 1).flatten(0, 1).unsqueeze(1)
        return torch.cat([tensor[k : k + length, c] for c, length in enumerate(lengths)]).unsqueeze(1)

    clients = plan.clients_in(0, 0, width)._replace(key=rows(plan.keys[2:]))
    block = Block(clients, (), rows(plan.mask), rows(plan.active), width, first=k == 0, lengths=lengths)
    index = rows(plan.index)
    if job.data.only_gathers:
        return block._replace(gathered=tuple(Gathered(tensor, index) for tensor in examples))
    return block._replace(batch=_batch(job, examples, index, None if plan.draws is None else rows(plan.draws)))


def take(
    job: RoundJob, plan: CohortPlan, examples: Examples, k: int, count: int, width: int, trim: bool = False
) -> Block:
    """The steps k, …, k + count − 1 of the first `width` clients; `trim` leaves out places that no batch of them fills."""
    steps = slice(k, k + count)
    filled = plan.filled[steps, 0].tolist()
    longest = int(plan.filled[steps, :width].max()) if trim else plan.mask.shape[2]
    index, mask = plan.index[steps, :width, :longest], plan.mask[steps, :width, :longest]
    batch = _batch(job, examples, index, None if plan.draws is None else plan.draws[steps, :width, :longest])
    active, clients = plan.active[steps, :width], plan.clients_in(k, count, width)
    return Block(clients, batch, mask, active, _active(plan.num_steps, k), first=k == 0, filled=filled)


def _batch(job: RoundJob, examples: Examples, index: Tensor, draws: Tensor | None) -> tuple[Tensor, ...]:
    """The examples at `index` [S, C, B], augmented by `draws` [S, C, B, D]: tensors [S, C, B, …]."""
    flat = job.data.batch(examples, index.reshape(-1), None if draws is None else draws.flatten(0, 2))
    return tuple(tensor.view(*index.shape, *tensor.shape[1:]) for tensor in flat)


def _first(count: int, state: State) -> State:
    return state.apply(lambda tensor: tensor[:count])


def _check_finite(job: RoundJob, clients: tuple[int, ...], losses: Tensor, upload: State, slot: str) -> None:
    if all(_is_finite(tensor) for tensor in (losses, *upload.values())):
        return
    for c, client in enumerate(clients):
        if not bool(torch.isfinite(losses[:, c]).all()):
            step = int((~torch.isfinite(losses[:, c])).nonzero()[0])
            what = f"the loss of client {client} at local step {step} is {float(losses[step, c])}"
        elif not all(bool(torch.isfinite(tensor[c]).all()) for tensor in upload.values()):
            what = f"what client {client} uploads is not"
        else:
            continue
        raise ClientError(
            f"Every number of a client must be finite, but {what}, in round {job.round.index} on slot {slot}; look at its data, "
            f"use a smaller `lr` (now {job.round.lr:g}), or set `clip_norm`."
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; the sum tells, unless it overflows."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
