"""What a slot is given: the round, and the work of a cohort in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.data.module import Examples, FederatedDataModule, Schedule
from fedlightning.data.stragglers import Work
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
        cancelled: whether the run is being stopped; looked at before each block of local steps.
        gradient_pass: whether this is the pass that computes ∇f_i(x), before the local steps.
        gradients: what that pass gave, by client; empty without one.
        work: who does less than asked, and how the batches are made.
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
    work: Work = field(default_factory=Work)

    def num_steps(self, client: int) -> int:
        """K of a client; in the gradient pass, the batches of one pass over its data."""
        if self.gradient_pass:
            size = self.data.clients.size(client)
            return -(-size // (self.data.batch_size or size))
        if client in self.work.steps:
            return self.work.steps[client]
        return self.data.num_steps(client, self.method.local_steps(self.round.index))

    def schedule(self, client: int, num_steps: int) -> Schedule:
        """The batches of a client: those of its local steps, or of the gradient pass."""
        return self.work.schedule(self.data, client, self.round.index, self.seed, num_steps)


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


@dataclass(frozen=True)
class CohortPlan:
    """The batches and numbers of a cohort of C clients, the one with most steps first.

    Attributes:
        num_steps: K of each client, falling; as many as there are clients, while C may be more.
        index: positions in the training set [max K, C, B]; 0 where nothing is.
        mask: whether each place of `index` is filled [max K, C, B].
        filled: how many places of each batch are, the ones in front [max K, C]; on the host.
        active: who takes each step [max K, C]; whoever does has examples in its batch.
        draws: the augmentation's integers [max K, C, B, D], or None.
        keys: randomness of `on_client_start`, of `on_client_end`, and of each step [2 + max K, C].
        gradient, state, numbers: as in `Clients`.
    """

    num_steps: list[int]
    index: Tensor
    mask: Tensor
    filled: NDArray[np.int64]
    active: Tensor
    draws: Tensor | None
    keys: Tensor
    gradient: Tensor
    state: State
    numbers: State

    def clients(self, moment: int) -> Clients:
        """The clients at their start (0) or their end (1)."""
        return Clients(self.gradient, self.state, self.numbers, self.keys[moment])

    def clients_in(self, k: int, count: int, width: int) -> Clients:
        """The first `width` clients in the steps k, …, k + count − 1; their keys are [count, width]."""
        key = self.keys[2 + k : 2 + k + count, :width]
        if width == len(self.gradient):
            return Clients(self.gradient, self.state, self.numbers, key)
        state, numbers = (states.apply(lambda tensor: tensor[:width]) for states in (self.state, self.numbers))
        return Clients(self.gradient[:width], state, numbers, key)


class Padding(NamedTuple):
    """What an executor asks a cohort to be padded to.

    Attributes:
        width: C, at least the number of clients; the last one stands in the places left, and takes no step there.
        unroll: the steps after the first `lead` ones are padded to a multiple of it.
        lead: steps that are taken alone.
    """

    width: int
    unroll: int = 1
    lead: int = 0


def plan_cohort(job: RoundJob, clients: tuple[int, ...], device: torch.device, padding: Padding) -> CohortPlan:
    """Draw the batches of a cohort, the client with most steps first, from their addresses, and pad them to one size.

    In NumPy, whose calls cost a few times less where a slot comes to them from a step that has filled the cache.
    """
    steps = [job.num_steps(client) for client in clients]
    length = padding.lead + -(-(max(steps) - padding.lead) // padding.unroll) * padding.unroll
    schedules = [job.schedule(client, k) for client, k in zip(clients, steps, strict=True)]
    purpose = "gradient" if job.gradient_pass else "client"
    x, width = job.server.x, padding.width
    places = [*clients, *clients[-1:] * (width - len(clients))]
    # A graph takes batches of one size: with whole data sets as batches, the largest client's.
    whole = padding.unroll > 1 and job.data.batch_size is None
    index = _pad([s.index for s in schedules], -1, length, width, job.data.clients.largest if whole else 0)
    mask = index >= 0
    filled = mask.sum(-1)
    draws = [schedule.draws for schedule in schedules if schedule.draws is not None]
    remembered = [job.memory.get(client) or job.method.configure_client(x) for client in places]
    gradients = [job.gradients[client].to(device) for client in places if client in job.gradients]
    return CohortPlan(
        steps,
        torch.from_numpy(np.maximum(index, 0)).to(device),
        torch.from_numpy(mask).to(device),
        filled,
        torch.from_numpy(filled > 0).to(device),
        torch.from_numpy(_pad(draws, 0, length, width, index.shape[-1])).to(device) if draws else None,
        keys(2 + length, job.seed, purpose, *((job.round.index, client) for client in places)).to(device),
        torch.stack(gradients) if gradients else x.new_empty((width, 0), device=device),
        stack([state.apply(lambda tensor: tensor.to(device)) for state in remembered]),
        _numbers(job, places, device),
    )


def _numbers(job: RoundJob, clients: Sequence[int], device: torch.device) -> State:
    names = ("lr", "num_steps", "num_examples", "round")
    table = [[job.round.lr, job.num_steps(c), job.data.clients.size(c), job.round.index] for c in clients]
    columns = torch.from_numpy(np.array(table).T.copy()).to(device, job.server.x.dtype).unbind()
    return State(**dict(zip(names, columns, strict=True)))


def _pad(tensors: list[Tensor], value: int, length: int, width: int, batch: int = 0) -> NDArray[np.int64]:
    """Tensors [K_i, B_i, …] of several sizes as one array [K, C, B, …], B at least `batch`, filled up with `value`."""
    arrays = [tensor.numpy() for tensor in tensors]
    inner = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    inner[0] = max(inner[0], batch)
    if width == 1 and arrays[0].shape == (length, *inner):
        return arrays[0][:, np.newaxis]
    padded = np.full((length, width, *inner), value)
    for c, array in enumerate(arrays):
        place: tuple[int | slice, ...] = (slice(len(array)), c, *(slice(size) for size in array.shape[1:]))
        padded[place] = array
    return padded
