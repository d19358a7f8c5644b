"""What a slot is given: the round, and the work of a cohort in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
        server: what the server sends, the entries of its state named by the method's `downlink`.
        memory: what the clients remember.
        buffers: the global model's buffers, flat [Q].
        data: the data module; `examples` gives its training set on a device.
        cancelled: whether the run is being stopped; looked at before each local step.
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


class Clients(NamedTuple):
    """The tensors of C clients that their hooks look at, entries [C, …]; of one client where a hook is called.

    Attributes:
        state: what the clients remember.
        numbers: `lr`, `num_steps`, `num_examples` and `round`, of w's dtype.
        key: their randomness in this step.
    """

    state: State
    numbers: State
    key: Tensor

    def first(self, count: int) -> Clients:
        """The first `count` of them."""
        if count == len(self.key):
            return self
        return Clients(self.state.apply(lambda t: t[:count]), self.numbers.apply(lambda t: t[:count]), self.key[:count])


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
        state, numbers: as in `Clients`.
    """

    num_steps: list[int]
    index: Tensor
    mask: Tensor
    filled: list[list[int]]
    draws: Tensor | None
    keys: Tensor
    state: State
    numbers: State

    def clients(self, moment: int) -> Clients:
        """The clients at their start (0), their end (1) or in step k (2 + k)."""
        return Clients(self.state, self.numbers, self.keys[moment])


def plan_cohort(job: RoundJob, clients: tuple[int, ...], device: torch.device) -> CohortPlan:
    """Draw the batches of a cohort from their addresses, and pad them to one size."""
    wish = job.method.local_steps(job.round.index)
    steps = [job.data.num_steps(client, wish) for client in clients]
    schedules = [job.data.schedule(c, job.round.index, job.seed, k) for c, k in zip(clients, steps, strict=True)]
    index = _pad([schedule.index for schedule in schedules], -1)
    draws = [schedule.draws for schedule in schedules if schedule.draws is not None]
    step_keys = _pad(
        [keys(2 + k, job.seed, "client", job.round.index, c) for c, k in zip(clients, steps, strict=True)], 0
    )
    sizes = job.data.clients.sizes[list(clients)]
    x = job.server.x
    numbers = {"lr": job.round.lr, "num_steps": steps, "num_examples": sizes, "round": job.round.index}
    filled = {
        name: torch.as_tensor(value, dtype=x.dtype, device=device).expand(len(clients))
        for name, value in numbers.items()
    }
    remembered = [job.memory.get(client) or job.method.configure_client(x) for client in clients]
    return CohortPlan(
        steps,
        index.clamp(min=0).to(device),
        (index >= 0).to(device),
        (index >= 0).sum(-1).tolist(),
        _pad(draws, 0).to(device) if draws else None,
        step_keys.to(device),
        stack([state.apply(lambda tensor: tensor.to(device)) for state in remembered]),
        State(**filled),
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
