"""Who takes part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedlightning.errors import ConfigurationError
from fedlightning.streams import stream


class ClientSampler(ABC):
    """Chooses the clients of a round: a pure function of the round and the seed, which remembers nothing."""

    @abstractmethod
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round, each once.

        Args:
            round: t, counted from 0.
            num_clients: N; the clients are 0 … N − 1.
            count: m, how many are wanted.
            seed: the run's seed.

        Raises:
            ConfigurationError: see `check`.
        """

    def check(self, num_clients: int, count: int) -> None:
        """Check before the first round that `sample` can do what is asked.

        Raises:
            ConfigurationError: `count` is not in 1 … `num_clients`.
        """
        if not 1 <= count <= num_clients:
            raise ConfigurationError(
                f"The clients of a round must be between 1 and the {num_clients} that there are, but are {count}; "
                "change `clients_per_round` or the partition."
            )


@dataclass(frozen=True)
class UniformSampling(ClientSampler):
    """Each set of `count` clients equally likely, in ascending order. The cost depends on `count`, not on N."""

    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        chosen = stream(seed, "sample", round).choice(num_clients, count, replace=False, shuffle=False)
        return sorted(chosen.tolist())


@dataclass(frozen=True)
class RoundSeeded(ClientSampler):
    """The clients that the authors' program of FedProx (Li et al., MLSys 2020) chooses: the same for every seed.

    The round seeds NumPy's legacy generator, `RandomState(round).choice(N, count, replace=False)`; the order is kept.
    """

    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        chosen: list[int] = np.random.RandomState(round).choice(num_clients, count, replace=False).tolist()
        return chosen


@dataclass(frozen=True)
class FixedSchedule(ClientSampler):
    """Given clients in each round, from the beginning again after the last; how many are wanted does not matter.

    Args:
        rounds: the clients of each round.

    Raises:
        ConfigurationError: there is no round, or a round has no client, a client twice or a negative id.
    """

    rounds: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ConfigurationError(
                "`rounds` of FixedSchedule must hold the clients of at least one round, but is ()."
            )
        for index, clients in enumerate(self.rounds):
            if not clients or len(set(clients)) < len(clients) or min(clients) < 0:
                raise ConfigurationError(
                    "Each of the `rounds` of FixedSchedule must hold at least one client, none twice, numbered from 0, "
                    f"but rounds[{index}] is {clients!r}."
                )

    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        return list(self.rounds[round % len(self.rounds)])

    def check(self, num_clients: int, count: int) -> None:
        """Check that the clients exist."""
        for index, clients in enumerate(self.rounds):
            if max(clients) >= num_clients:
                raise ConfigurationError(
                    f"The clients in FixedSchedule must be in 0…{num_clients - 1}, but rounds[{index}] is {clients!r}; "
                    "was it made for another partition?"
                )
