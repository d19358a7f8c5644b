"""Which examples are in the batches that a client trains on in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from fedlightning.participation.participation import Participation

Batches = Callable[[Sequence[int], Sequence[int], int], list[Schedule]]
"""`batches(clients, num_steps, round)`: the schedule of each client."""


class BatchingPolicy(ABC):
    """Decides which examples are in a client's batches in a round. The answer is a function of seed, round and client."""

    @abstractmethod
    def bind(self, participation: Participation) -> Batches:
        """The batches of a run.

        Args:
            participation: who takes part in the run's rounds, and how much they do; its data are set up.

        Raises:
            ConfigurationError: the policy is not made for these data.
        """


@dataclass(frozen=True)
class FromData(BatchingPolicy):
    """The data module decides, by its `schedule`: each epoch visits a client's examples once, in a new order."""

    def bind(self, participation: Participation) -> Batches:
        """Ask the data module."""
        data, seed = participation.data, participation.seed
        return lambda clients, num_steps, round: data.schedules(clients, round, seed, num_steps)


class CheckedBatches:
    """The batches of a policy, which are looked at before anyone trains on them.

    Args:
        batches: what the policy's `bind` gave.
        policy: the policy's class, for messages.
        data: whose examples they are.

    Raises:
        ConfigurationError: the policy gives no function.
    """

    def __init__(self, batches: Batches, policy: str, data: FederatedDataModule) -> None:
        self._batches, self._policy, self._data = batches, policy, data
        if not callable(batches):
            raise ConfigurationError(
                f"`bind` of {policy} must give a function of (clients, num_steps, round), but gives {shown(batches)}."
            )

    def __call__(self, clients: Sequence[int], num_steps: Sequence[int], round: int) -> list[Schedule]:
        """Each client's schedule.

        Raises:
            ConfigurationError: one is no schedule of the client's steps, or has a batch without examples or with another's.
        """
        found = self._batches(clients, num_steps, round)
        if not isinstance(found, list) or len(found) != len(clients):
            raise self._refused(round, f"give a list with the schedule of each of {len(clients)} clients", shown(found))
        for client, steps, schedule in zip(clients, num_steps, found, strict=True):
            if fault := self._fault(client, steps, schedule):
                raise self._refused(round, f"give `Schedule(index [{steps}, B], draws)` for client {client}", fault)
        return found

    def _fault(self, client: int, steps: int, schedule: Any) -> str:
        """What is wrong with a client's schedule; "" if nothing is."""
        index = getattr(schedule, "index", None)
        if not isinstance(schedule, Schedule) or not isinstance(index, Tensor):
            return f"{shown(schedule)}; use `fedlightning.data.Schedule`"
        if index.dtype not in _WHOLE or index.dim() != 2 or len(index) != steps or not index.shape[1]:
            return f"an index of {index.dtype} {list(index.shape)}"
        filled = index >= 0
        if not bool(filled.any(1).all()):
            return f"no example in batch {int((~filled.any(1)).nonzero()[0])}"
        if not np.isin(index[filled].numpy(), self._data.clients.positions(client)).all():
            return "an example that the client does not own"
        return ""

    def _refused(self, round: int, must: str, fault: str) -> ConfigurationError:
        return ConfigurationError(f"The batches of {self._policy} must {must} in round {round}, but have {fault}.")


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
