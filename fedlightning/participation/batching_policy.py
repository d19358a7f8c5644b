"""Which examples are in the batches that a client trains on in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlightning.data.module import Schedule

if TYPE_CHECKING:
    from fedlightning.participation.participation import Participation

Batches = Callable[[Sequence[int], Sequence[int], int], list[Schedule]]
"""`batches(clients, num_steps, round)`: each client's schedule, or one schedule [ΣK, B] of all clients, one after another."""


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
