"""The only local training loop of the library."""

from __future__ import annotations

import time
from bisect import bisect_left

import torch
from torch import Tensor

from fedlightning.callback import CohortResult
from fedlightning.data.module import Examples
from fedlightning.engine.executors import CohortExecutor, Executor, LoopExecutor
from fedlightning.engine.hooks import GradientPass, Hooks
from fedlightning.engine.job import Clients, CohortPlan, RoundJob, plan_cohort
from fedlightning.engine.replica import Replica
from fedlightning.errors import ClientError
from fedlightning.method import Batch
from fedlightning.state import State


class Cancelled(Exception):
    """The run is being stopped; this cohort's work is thrown away."""


@torch.no_grad()
def run_cohort(replica: Replica, job: RoundJob, clients: tuple[int, ...], vectorized: bool, slot: str) -> CohortResult:
    """Train a cohort for a round, with most steps first; the hooks are called in the order drawn in `method.py`."""
    began = time.perf_counter()
    executor: Executor = CohortExecutor(replica) if vectorized else LoopExecutor(replica)
    server = job.server.apply(lambda tensor: tensor.to(replica.device))
    hooks = (GradientPass if job.gradient_pass else Hooks)(job.method, server, job.layout)
    plan = plan_cohort(job, clients, replica.device)
    replica.load(server.x, job.buffers)

    def end(local: State, client: Clients) -> tuple[State, State]:
        return hooks.end(local, hooks.context(client, False))

    try:
        local, losses = _train(executor, hooks, plan, job, replica.device)
        with hooks.calling("on_client_end"):
            upload, state = executor.call(end, local, plan.clients(1))
    except Exception as error:
        error.add_note(f"In round {job.round.index}, client{'s' * (len(clients) > 1)} {clients}, on slot {slot}.")
        raise
    _check_finite(job, clients, losses, upload, slot)
    return CohortResult(
        clients=clients,
        upload=upload,
        state=state,
        buffers=replica.buffers().expand(len(clients), -1),
        num_examples=torch.tensor([job.data.clients.size(client) for client in clients]),
        num_steps=torch.tensor(plan.num_steps),
        loss=losses.sum(0).cpu() / torch.tensor(plan.num_steps),
        slot=slot,
        seconds=time.perf_counter() - began,
    )


def _train(
    executor: Executor, hooks: Hooks, plan: CohortPlan, job: RoundJob, device: torch.device
) -> tuple[State, Tensor]:
    """The local states after all steps, entries [C, …], and the losses [max K, C], 0 where a client had finished."""

    def start(client: Clients) -> State:
        return hooks.start(hooks.context(client, True))

    with hooks.calling("on_client_start"):
        local = executor.call(start, plan.clients(0))
    examples, width = job.examples(device), len(plan.num_steps)
    losses = torch.zeros(len(plan.index), width, dtype=hooks.server.x.dtype, device=device)
    finished: list[State] = []
    for k in range(len(plan.index)):
        if job.cancelled():
            raise Cancelled
        active = bisect_left(plan.num_steps, -k, key=lambda steps: -steps)
        if (narrow := _width(active, width)) < width:
            finished.insert(0, State(**{name: tensor[narrow:] for name, tensor in local.items()}))
            local, width = State(**{name: tensor[:narrow] for name, tensor in local.items()}), narrow
        batch, mask = _batch(job, plan, examples, k, width)
        with hooks.calling("on_local_step"):
            after, loss = executor.step(hooks, local, plan.clients(2 + k).first(width), batch, mask, k == 0)
        local = after if active == width else _keep_finished(after, local, active)
        losses[k, :active] = loss[:active]
    if finished:
        local = State(**{name: torch.cat([part[name] for part in (local, *finished)]) for name in local})
    return local, losses


def _width(active: int, width: int) -> int:
    """The narrowest of a few fixed widths (the full one and the powers of two) that holds the active clients."""
    return min(width, 1 << (active - 1).bit_length())


def _keep_finished(after: State, before: State, active: int) -> State:
    """The new states of the first `active` clients, the old ones of those that had finished."""
    return State(**{name: torch.cat([after[name][:active], before[name][active:]]) for name in after})


def _batch(job: RoundJob, plan: CohortPlan, examples: Examples, k: int, width: int) -> tuple[Batch, Tensor]:
    """The batches of step k, tensors [width, B, …], and the mask of their filled places [width, B]."""
    longest = max(plan.filled[k][:width])
    index, mask = plan.index[k, :width, :longest], plan.mask[k, :width, :longest]
    draws = None if plan.draws is None else plan.draws[k, :width, :longest].flatten(0, 1)
    flat = job.data.batch(examples, index.reshape(-1), draws)
    return tuple(tensor.view(*index.shape, *tensor.shape[1:]) for tensor in flat), mask


def _check_finite(job: RoundJob, clients: tuple[int, ...], losses: Tensor, upload: State, slot: str) -> None:
    for c, client in enumerate(clients):
        if not _is_finite(losses[:, c]):
            step = int((~torch.isfinite(losses[:, c])).nonzero()[0])
            what = f"the loss of client {client} at local step {step} is {float(losses[step, c])}"
        elif not all(_is_finite(tensor[c]) for tensor in upload.values()):
            what = f"what client {client} uploads is not"
        else:
            continue
        raise ClientError(
            f"Every number of a client must be finite, but {what}, in round {job.round.index} on slot {slot}; look at its data, "
            f"use a smaller `lr` (now {job.round.lr:g}), or set `clip_norm`."
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite; the sum tells, unless it overflows."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
