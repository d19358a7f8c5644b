"""What a slot is given: the round, and the work of a cohort in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.memory import ClientMemory
from fedlightning.method import FedMethod, Round
from fedlightning.state import State, stack
from fedlightning.streams import keys
from fedlightning.vector import Layout


@dataclass(frozen=True)
class RoundJob:
    """Everything that the cohorts of one round share; nothing in it is changed by them.

    Attributes:
        method, round, seed, layout: as their names say.
        server: what a client sees of the server's state.
        memory: what the clients remember.
        buffers: the global model's buffers, flat [Q].
        data: the data module; `examples` gives its training set on a device.
        cancelled: whether the run is being stopped; looked at before each local step.
        gradient_pass: whether this is the pass that computes ∇f_i(x), before the local steps.
        gradients: what that pass gave, by client; empty without one.
    """

    method: FedMethod
    round: Round
    seed: int
    layout: Layout
    server: State
    memory: ClientMemory
    buffers: Tensor
    data: FederatedDataModule
    examples: Callable[[torch.device], Examples]
    cancelled: Callable[[], bool]
    gradient_pass: bool = False
    gradients: Mapping[int, Tensor] = field(default_factory=dict)

    def num_steps(self, client: int) -> int:
        """K of a client; in the gradient pass, the batches of one pass over its data."""
        if self.gradient_pass:
            size = int(self.data.clients.sizes[client])
            return -(-size // (self.data.batch_size or size))
        return self.data.num_steps(client, self.method.local_steps(self.round.index))


class Clients(NamedTuple):
    """The tensors of C clients that their hooks look at, entries [C, …]; of one client where a hook is called.

    Attributes:
        gradient: their ∇f_i(x), or nothing [C, 0].
        state: what the clients remember.
        numbers: `lr`, `num_steps`, `num_examples` and `round`, of w's dtype.
        key: their randomness in this step.
    """

    gradient: Tensor
    state: State
    numbers: State
    key: Tensor

    def first(self, count: int) -> Clients:
        """The first `count` of them."""
        if count == len(self.key):
            return self
        state, numbers = (states.apply(lambda tensor: tensor[:count]) for states in (self.state, self.numbers))
        return Clients(self.gradient[:count], state, numbers, self.key[:count])


@dataclass(frozen=True)
class CohortPlan:
    """The batches and numbers of a cohort of C clients, the one with most steps first.

    Attributes:
        num_steps: K of each client, falling.
        index: positions in the training set [max K, C, B]; 0 where nothing is.
        mask: whether each place of `index` is filled [max K, C, B].
        filled: how many places of each batch are, as a list for each step.
        draws: the augmentation's integers [max K, C, B, D], or None.
        keys: randomness of `on_client_start`, of `on_client_end`, and of each step [2 + max K, C].
        gradient, state, numbers: as in `Clients`.
    """

    num_steps: list[int]
    index: Tensor
    mask: Tensor
    filled: list[list[int]]
    draws: Tensor | None
    keys: Tensor
    gradient: Tensor
    state: State
    numbers: State

    def clients(self, moment: int) -> Clients:
        """The clients at their start (0), their end (1) or in step k (2 + k)."""
        return Clients(self.gradient, self.state, self.numbers, self.keys[moment])


def plan_cohort(job: RoundJob, clients: tuple[int, ...], device: torch.device) -> CohortPlan:
    """Draw the batches of a cohort from their addresses, and pad them to one size."""
    steps = [job.num_steps(client) for client in clients]
    schedules = [job.data.schedule(c, job.round.index, job.seed, k) for c, k in zip(clients, steps, strict=True)]
    index = _pad([schedule.index for schedule in schedules], -1)
    draws = [schedule.draws for schedule in schedules if schedule.draws is not None]
    purpose = "gradient" if job.gradient_pass else "client"
    step_keys = _pad(
        [keys(2 + k, job.seed, purpose, job.round.index, c) for c, k in zip(clients, steps, strict=True)], 0
    )
    x, width = job.server.x, len(clients)
    sizes = [job.data.clients.size(client) for client in clients]
    names = ("lr", "num_steps", "num_examples", "round")
    table = [[job.round.lr] * width, steps, sizes, [job.round.index] * width]
    numbers = torch.tensor(table, dtype=x.dtype, device=device).unbind()
    remembered = [job.memory.get(client) or job.method.configure_client(x) for client in clients]
    return CohortPlan(
        steps,
        index.clamp(min=0).to(device),
        (index >= 0).to(device),
        (index >= 0).sum(-1).tolist(),
        _pad(draws, 0).to(device) if draws else None,
        step_keys.to(device),
        torch.stack([job.gradients.get(client, x.new_empty(0)).to(device) for client in clients]),
        stack([state.apply(lambda tensor: tensor.to(device)) for state in remembered]),
        State(**dict(zip(names, numbers, strict=True))),
    )


def _pad(tensors: list[Tensor], value: int) -> Tensor:
    """Tensors [K_i, …] of several sizes as one [max K, C, …], filled up with `value`."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors, 1)
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = tensors[0].new_full((shape[0], len(tensors), *shape[1:]), value)
    for c, tensor in enumerate(tensors):
        places: tuple[int | slice, ...] = (slice(tensor.shape[0]), c, *(slice(size) for size in tensor.shape[1:]))
        padded[places] = tensor
    return padded
