"""What the clients of a round do in one of its phases, drawn from addresses.

A plan is client after client, as a `Partition` is: row r of `index` is a batch, and client c takes the rows from `offsets[c]`
to before `offsets[c + 1]`. A runner that wants the rows otherwise (padded, or side by side) lays them out for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.errors import ConfigurationError
from fedlightning.execution.step import LOCAL, Clients, Phase
from fedlightning.method import FedMethod
from fedlightning.participation.participation import RoundPlan
from fedlightning.randomness import keys
from fedlightning.server.wire import RoundInputs
from fedlightning.state import State, stack


@dataclass(frozen=True)
class PhasePlan:
    """What the clients of a round do in one phase of it.

    Attributes:
        plan: who trains, how much, and on which batches.
        phase: what the steps are for.
    """

    plan: RoundPlan
    phase: Phase = LOCAL

    @property
    def clients(self) -> tuple[int, ...]:
        """Who trains."""
        return self.plan.clients

    @property
    def index(self) -> int:
        """t, counted from 0."""
        return self.plan.index

    @property
    def data(self) -> FederatedDataModule:
        """Whose batches they are."""
        return self.plan.data

    def shortened(self, clients: Sequence[int], steps: int) -> PhasePlan:
        """The plan of the first steps of some clients, for a trial."""
        return replace(self, plan=self.plan.shortened(clients, steps))

    def same_draws(self, other: PhasePlan) -> bool:
        """Whether the two draw the same batches for the same clients."""
        mine, others = ((plan.index, plan.phase.name, plan.plan.work) for plan in (self, other))
        return mine == others

    def num_steps(self, client: int) -> int:
        """K of a client; in a phase over all its data, its batches."""
        if self.phase.whole:
            return self.data.batching.batches(self.data.clients.size(client))
        return self.plan.num_steps(client)

    def draw(self, clients: tuple[int, ...]) -> CohortPlan:
        """Draw the batches and the randomness of a cohort from their addresses.

        It is NumPy's work: its calls cost a few times less than torch's where a slot comes to them from a step that has taken
        the cache.

        Raises:
            ConfigurationError: the data module's schedule is no schedule of these steps.
        """
        steps = [self.num_steps(client) for client in clients]
        schedules = self._schedules(clients, steps)
        index = _joined([schedule.index for schedule in schedules], -1)
        mask = index >= 0
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ConfigurationError(
                f"`schedule` of {type(self.data).__name__} must fill each batch from the front, -1 after the last example, but "
                "leaves a place empty before one that is filled; sort them."
            )
        draws = [schedule.draws for schedule in schedules if schedule.draws is not None]
        drawn = keys(2 + max(steps), self.plan.seed, self.phase.purpose, *((self.index, client) for client in clients))
        offsets = np.cumsum([0, *steps])
        owner = np.repeat(np.arange(len(clients)), steps)
        step = np.arange(offsets[-1]) - offsets[owner]
        rows = drawn[2:, 0] if len(clients) == 1 else torch.from_numpy(drawn.numpy()[2 + step, owner])
        return CohortPlan(
            self,
            clients,
            steps,
            offsets,
            torch.from_numpy(_with_examples(index, mask)),
            torch.from_numpy(mask),
            _count_filled(mask),
            owner,
            step,
            rows,
            drawn[:2],
            torch.from_numpy(_joined(draws, 0)) if draws else None,
        )

    def _schedules(self, clients: Sequence[int], steps: Sequence[int]) -> list[Schedule]:
        found = self.plan.batches(clients, steps)
        if len(found) == len(clients):  # else it is one for all, which a module's own `schedule` never is
            for client, k, schedule in zip(clients, steps, found, strict=True):
                if len(schedule.index) != k:
                    raise ConfigurationError(
                        f"`schedule` must give a batch for each of the {k} local steps of client {client} in round {self.index}, "
                        f"but that of {type(self.data).__name__} gives {len(schedule.index)}; return [{k}, B] positions, or "
                        "override `num_steps` too."
                    )
        return [each._replace(index=each.index.to(torch.int64)) for each in found]


@dataclass(frozen=True)
class CohortPlan:
    """What C clients, the one with most steps first, draw in a round; on the host.

    Attributes:
        round: the plan of the round's phase.
        clients: who they are.
        num_steps: K of each, falling.
        offsets: where the rows of each begin [C + 1].
        index: positions in the training set [ΣK, B]; where no example is, another of the same batch.
        mask: whether each place of `index` is filled [ΣK, B], the ones in front.
        filled: how many are, of each batch [ΣK].
        owner: which client of these a row is of, from 0 [ΣK].
        step: which of its client's steps a row is, from 0 [ΣK].
        keys: randomness of each step [ΣK].
        ends: randomness before the first step and after the last [2, C].
        draws: the augmentation's integers [ΣK, B, D], or None.
    """

    round: PhasePlan
    clients: tuple[int, ...]
    num_steps: list[int]
    offsets: NDArray[np.int64]
    index: Tensor
    mask: Tensor
    filled: NDArray[np.int64]
    owner: NDArray[np.int64]
    step: NDArray[np.int64]
    keys: Tensor
    ends: Tensor
    draws: Tensor | None

    def to(self, device: torch.device) -> CohortPlan:
        """The plan with what each row has on a device: moved at once, so that no step waits for it."""
        if device.type == "cpu":
            return self
        index, mask, keys = (tensor.to(device) for tensor in (self.index, self.mask, self.keys))
        draws = None if self.draws is None else self.draws.to(device)
        return replace(self, index=index, mask=mask, keys=keys, draws=draws)

    def known(self, method: FedMethod, inputs: RoundInputs, device: torch.device) -> Clients:
        """What the hooks of the clients look at before the first step, entries [C, …], on a device."""
        x = inputs.server.x
        new = method.configure_client(x)
        remembered = [inputs.memory.get(client) or new for client in self.clients]
        gradients = [inputs.gradients[client].to(device) for client in self.clients if client in inputs.gradients]
        table = np.empty((4, len(self.clients)))
        table[0], table[1] = inputs.round.lr, self.num_steps
        table[2], table[3] = self.round.data.clients.sizes_of(self.clients), inputs.round.index
        lr, num_steps, num_examples, index = torch.from_numpy(table).to(device, x.dtype).unbind()
        return Clients(
            torch.stack(gradients) if gradients else x.new_empty((len(self.clients), 0), device=device),
            stack([state.apply(lambda tensor: tensor.to(device)) for state in remembered])
            if remembered[0]
            else State(),
            State(lr=lr, num_steps=num_steps, num_examples=num_examples, round=index),
            self.ends[0].to(device),
            torch.zeros_like(lr),
        )

    def after(self, clients: Clients) -> Clients:
        """What they look at after the last step."""
        return clients._replace(key=self.ends[1].to(clients.key.device), step=clients.numbers.num_steps)


def _joined(tensors: Sequence[Tensor], value: int) -> NDArray[np.int64]:
    """Integers [K_i, B_i, …] as one array [ΣK, B, …]; B is the largest B_i, and what is left is filled up with a value."""
    arrays: list[NDArray[Any]] = [tensor.numpy() for tensor in tensors]
    if len(arrays) == 1:
        return arrays[0]
    widest = max(array.shape[1] for array in arrays)
    ends = [((0, 0), (0, widest - array.shape[1]), *((0, 0),) * (array.ndim - 2)) for array in arrays]
    return np.concatenate(
        [
            np.pad(array, end, constant_values=value) if array.shape[1] < widest else array
            for array, end in zip(arrays, ends, strict=True)
        ]
    )


def _count_filled(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many places of each batch [ΣK, B] are filled; most batches are full, and only the others are counted."""
    filled = np.full(len(mask), mask.shape[1])
    part = ~mask[:, -1]
    filled[part] = np.count_nonzero(mask[part], axis=1)
    return filled


def _with_examples(index: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions with an example in each place: in an empty one the first of its batch, which nothing is computed from."""
    if mask.all():
        return index
    return np.maximum(np.where(mask, index, index[:, :1]), 0)
