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
from fedlightning.errors import ConfigurationError
from fedlightning.execution.grid import Grid, Padding
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, Round
from fedlightning.participation.stragglers import Work
from fedlightning.randomness import keys
from fedlightning.server.client_memory import ClientMemory
from fedlightning.state import State, stack


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

    def schedules(self, clients: Sequence[int], num_steps: Sequence[int]) -> list[Schedule]:
        """The batches of clients: those of their local steps, or of the gradient pass.

        Raises:
            ConfigurationError: there is not one for each step.
        """
        found = self.work.schedules(self.data, clients, self.round.index, self.seed, num_steps)
        if len(found) < len(clients):  # one for all, which a module's own `schedule` never is
            return found
        for client, k, schedule in zip(clients, num_steps, found, strict=True):
            if len(schedule.index) != k:
                raise ConfigurationError(
                    f"`schedule` must give a batch for each of the {k} local steps of client {client} in round "
                    f"{self.round.index}, but that of {type(self.data).__name__} gives {len(schedule.index)}; return "
                    f"[{k}, B] positions, or override `num_steps` too."
                )
        return [each._replace(index=each.index.to(torch.int64)) for each in found]


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


class Steps(NamedTuple):
    """What each local step of C clients has of its own.

    Where clients stand side by side, it is [K, C, …] with the most steps K of a client. Where they follow one another it is
    [R, 1, …]: the first steps of all of them, if those are taken alone, and then the other steps of one client after another,
    each client's filled up to a multiple of U.

    Attributes:
        index: positions in the training set [K, C, B]; 0 where nothing is.
        mask: whether each place of `index` is filled [K, C, B].
        active: who takes each step [K, C]; whoever does has examples in its batch.
        keys: randomness [K, C].
        draws: the augmentation's integers [K, C, B, D], or None.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of steps
    mask: Tensor
    active: Tensor
    keys: Tensor
    draws: Tensor | None

    def apply(self, function: Callable[[Tensor], Tensor]) -> Steps:
        """The function's result for each tensor, e.g. for some of the steps."""
        draws = None if self.draws is None else function(self.draws)
        return Steps(function(self.index), function(self.mask), function(self.active), function(self.keys), draws)

    def trimmed(self, longest: int) -> Steps:
        """Without the places of a batch from `longest` on."""
        draws = None if self.draws is None else self.draws[:, :, :longest]
        return self._replace(index=self.index[:, :, :longest], mask=self.mask[:, :, :longest], draws=draws)


@dataclass(frozen=True)
class Drawn:
    """What a cohort of C clients, the one with most steps first, draws in a round; on the host.

    Attributes:
        num_steps: K of each client, falling; as many as there are clients, while C may be more.
        padding: how the steps are laid out.
        steps: what each has of its own.
        filled: how many places of each batch are, the ones in front [K, C], wherever the steps lie.
        ends: randomness of `on_client_start` and of `on_client_end` [2, C].
    """

    num_steps: list[int]
    padding: Padding
    steps: Steps
    filled: NDArray[np.int64]
    ends: Tensor


@dataclass(frozen=True)
class CohortPlan(Drawn):
    """All that a cohort's training needs: what it draws, and what its clients know; on their device, but for `filled`.

    Attributes:
        gradient, state, numbers: as in `Clients`.
    """

    gradient: Tensor
    state: State
    numbers: State

    def clients(self, moment: int) -> Clients:
        """The clients at their start (0) or their end (1)."""
        return Clients(self.gradient, self.state, self.numbers, self.ends[moment])

    def clients_in(self, key: Tensor, first: int, last: int) -> Clients:
        """The clients from `first` to before `last`, with the keys of some of their steps."""
        if first == 0 and last == len(self.gradient):
            return Clients(self.gradient, self.state, self.numbers, key)
        state, numbers = (states.apply(lambda tensor: tensor[first:last]) for states in (self.state, self.numbers))
        return Clients(self.gradient[first:last], state, numbers, key)


def draw_cohort(job: RoundJob, clients: tuple[int, ...], padding: Padding) -> Drawn:
    """Draw the batches of a cohort, the client with most steps first, from their addresses, and lay them out.

    Nothing of it depends on what earlier rounds gave: not on the server's state, nor on what clients remember. In NumPy,
    whose calls cost a few times less where a slot comes to them from a step that has filled the cache.
    """
    steps = [job.num_steps(client) for client in clients]
    schedules = job.schedules(clients, steps)
    grid = Grid.of(steps, padding)
    # A graph takes batches of one size: with whole data sets as batches, the largest client's.
    size = job.data.largest_batch if padding.unroll else 0
    index = grid.laid_out([s.index for s in schedules], -1, size)
    mask = index >= 0
    _check_batches(job, mask, size)
    filled = grid.by_step(_count_filled(mask))
    draws = [schedule.draws for schedule in schedules if schedule.draws is not None]
    addresses = [(job.round.index, client) for client in _places(clients, padding)]
    drawn = keys(2 + max(steps), job.seed, "gradient" if job.gradient_pass else "client", *addresses)
    each = Steps(
        torch.from_numpy(_with_examples(index, mask)),
        torch.from_numpy(mask),
        torch.from_numpy(mask[..., 0].copy()),  # the filled places are those in front
        torch.from_numpy(grid.picked(drawn[2:].numpy())) if padding.unroll else drawn[2:],
        torch.from_numpy(grid.laid_out(draws, 0, index.shape[-1])) if draws else None,
    )
    return Drawn(steps, padding, each, filled, drawn[:2])


def _check_batches(job: RoundJob, mask: NDArray[np.bool_], size: int) -> None:
    """Check that batches are filled from the front, and not larger than a graph's, if there is one.

    Raises:
        ConfigurationError: they are not.
    """
    name = type(job.data).__name__
    if size and mask.shape[-1] > size:
        raise ConfigurationError(
            f"`schedule` must give batches of at most `batch_size` = {size} where steps are compiled, but that of {name} gives "
            f"{mask.shape[-1]}; use a larger `batch_size`, or `compile=False`."
        )
    if (mask[..., 1:] & ~mask[..., :-1]).any():
        raise ConfigurationError(
            f"`schedule` must fill each batch from the front, -1 after the last example, but that of {name} leaves a place "
            "empty before one that is filled; sort them."
        )


def _count_filled(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many places of each batch [K, C, B] are filled [K, C]; most batches are full, and only the others are counted."""
    filled = np.full(mask.shape[:-1], mask.shape[-1])
    part = ~mask[..., -1]
    filled[part] = np.count_nonzero(mask[part], axis=-1)
    return filled


def _with_examples(index: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions with an example in each place: in an empty one the first of its batch, which nothing is computed from."""
    if mask.all():
        return index
    return np.maximum(np.where(mask, index, index[..., :1]), 0)


def plan_cohort(job: RoundJob, clients: tuple[int, ...], drawn: Drawn, device: torch.device) -> CohortPlan:
    """What a cohort has drawn, with what its clients know now."""
    x, each, places = job.server.x, drawn.steps, _places(clients, drawn.padding)
    new = job.method.configure_client(x)
    remembered = [job.memory.get(client) or new for client in places]
    gradients = [job.gradients[client].to(device) for client in places if client in job.gradients]
    return CohortPlan(
        drawn.num_steps,
        drawn.padding,
        each if device.type == "cpu" else each.apply(lambda tensor: tensor.to(device)),
        drawn.filled,
        drawn.ends.to(device),
        torch.stack(gradients) if gradients else x.new_empty((len(places), 0), device=device),
        stack([state.apply(lambda tensor: tensor.to(device)) for state in remembered]) if remembered[0] else State(),
        _numbers(job, places, drawn.num_steps, device),
    )


def _places(clients: tuple[int, ...], padding: Padding) -> list[int]:
    """Who stands in each of the C places."""
    return [*clients, *clients[-1:] * (padding.width - len(clients))]


def _numbers(job: RoundJob, clients: Sequence[int], steps: list[int], device: torch.device) -> State:
    """What `Clients` says; the last client stands in the places left."""
    table = np.empty((4, len(clients)))
    table[0], table[1, : len(steps)], table[1, len(steps) :] = job.round.lr, steps, steps[-1]
    table[2], table[3] = job.data.clients.sizes_of(clients), job.round.index
    lr, num_steps, num_examples, round = torch.from_numpy(table).to(device, job.server.x.dtype).unbind()
    return State(lr=lr, num_steps=num_steps, num_examples=num_examples, round=round)
