"""Who takes part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fedlightning._checked import COUNT, check_fields, checked
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream


class ClientSampler(ABC):
    """Chooses the clients of a round: a pure function of the round and the seed, which remembers nothing.

    It may be asked once for several uses, and, by a slot that is idle, before the round begins. The trainer refuses an answer
    that names nobody, a client twice, one that does not exist, or more of them than were asked for.

    Attributes:
        any_count: whether it may name more clients than were asked for, as a schedule does.
    """

    any_count: ClassVar[bool] = False

    @abstractmethod
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> Sequence[int]:
        """The clients that take part in a round, each once, in the order in which they are to be known.

        Args:
            round: t, counted from 0.
            num_clients: N; the clients are 0 … N − 1.
            count: m, how many are wanted; one at least must be found, and fewer than m may be.
            seed: the run's seed.

        Returns:
            A list, a tuple, or a one-dimensional array or tensor of whole numbers.

        Raises:
            ConfigurationError: see `check`.
        """

    @checked()
    def bind(self, clients: Partition) -> ClientSampler:
        """The sampler for clients that own these examples; the same object where their sizes do not matter."""
        return self

    @checked(num_clients=COUNT)
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


def named_clients(answer: Any, giver: str, round: int, num_clients: int, most: int | None = None) -> list[int]:
    """The clients that a sampler or another rule names for a round, checked.

    Args:
        answer: what it gave.
        giver: its class and method, for the message.
        round: t.
        num_clients: N.
        most: how many it may name; None for any number.

    Raises:
        ConfigurationError: it is no list of whole numbers, names nobody, more than `most`, or a client twice or that does not
            exist.
    """
    found = answer.tolist() if isinstance(answer, np.ndarray | Tensor) else answer
    if not isinstance(found, list | tuple | range) or not (
        set(map(type, found)) == {int} or all(map(_is_whole, found))
    ):
        fault, remedy = "which is no list of whole numbers", "return a list of client ids"
    elif not found:
        fault, remedy = "which is nobody", "name one client at least"
    elif not (min(found) >= 0 and max(found) < num_clients):
        stranger = next(c for c in found if not 0 <= c < num_clients)
        fault, remedy = f"but there is no client {stranger}", "draw from `range(num_clients)`"
    elif len(set(found)) < len(found):
        fault, remedy = f"client {Counter(found).most_common(1)[0][0]} twice", "draw without replacement"
    elif most is not None and len(found) > most:
        fault, remedy = f"which are {len(found)}", f"name {most} at most, or set `any_count = True` in the class"
    else:
        return list(map(int, found))
    raise ConfigurationError(
        f"`{giver}` must name {f'at most {most}' if most else 'some'} of the clients 0…{num_clients - 1}, each once, but gives "
        f"{answer!r:.80} in round {round}, {fault}; {remedy}."
    )


def _is_whole(client: Any) -> bool:
    return isinstance(client, Integral) and not isinstance(client, bool)


@dataclass(frozen=True)
class UniformSampling(ClientSampler):
    """Each set of `count` clients equally likely, in ascending order. The cost depends on `count`, not on N."""

    @checked(num_clients=COUNT)
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        chosen = stream(seed, "sample", round).choice(num_clients, count, replace=False, shuffle=False)
        return sorted(chosen.tolist())


@dataclass(frozen=True)
class SizeWeighted(ClientSampler):
    """Clients in proportion to their examples, p_k = n_k / n, without replacement, in ascending order.

    With the uniform mean (`weighting="uniform"` of the method) this is Algorithm 2 of FedProx (Li et al., MLSys 2020). The
    clients are drawn one after another, each in proportion to its n_k among those that are left: the `count` largest of
    log n_k + Gumbel noise (Efraimidis & Spirakis, 2006). So the first is drawn with p_k exactly, and a large client is chosen
    less than m p_k times on average. Of more than 10,000 clients the same is drawn without a number for each of them: one
    after another from the sums of the sizes, until `count` different ones were met. A draw with replacement is not offered: a
    client that is drawn twice would train twice on the same batches and count twice.

    Args:
        sizes: n_k of each client; None takes them from the data.

    Raises:
        ConfigurationError: a size is not positive.
    """

    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sizes is not None and (not self.sizes or min(self.sizes) <= 0):
            raise ConfigurationError(
                f"`sizes` of SizeWeighted must hold a positive number for each client, but is {self.sizes!r:.80}."
            )

    @checked()
    def bind(self, clients: Partition) -> SizeWeighted:
        """The same with the clients' sizes, unless they were given."""
        return self if self.sizes is not None else replace(self, sizes=tuple(clients.sizes.tolist()))

    @checked(num_clients=COUNT)
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        rng = stream(seed, "sample", round)
        if num_clients > _MANY:
            return sorted(_successive(rng, self._ends, count))
        noisy = np.log(self._sizes) + rng.gumbel(size=num_clients)
        return sorted(np.argpartition(-noisy, count - 1)[:count].tolist())

    @cached_property
    def _sizes(self) -> np.ndarray[Any, Any]:
        return np.array(self.sizes, dtype=np.int64)

    @cached_property
    def _ends(self) -> np.ndarray[Any, Any]:
        return self._sizes.cumsum()

    @checked(num_clients=COUNT)
    def check(self, num_clients: int, count: int) -> None:
        """Check that there is a size for each client."""
        super().check(num_clients, count)
        if self.sizes is None or len(self.sizes) != num_clients:
            known = "None" if self.sizes is None else f"{len(self.sizes)} of them"
            raise ConfigurationError(
                f"`sizes` of SizeWeighted must be those of the {num_clients} clients, but is {known}; leave it out in the "
                "trainer, which takes them from the data, or call `bind(data.clients)`."
            )


_MANY = 10_000


def _successive(rng: np.random.Generator, ends: np.ndarray[Any, Any], count: int) -> set[int]:
    """`count` different clients, each next one in proportion to its size among those left, from the sums of the sizes [N]."""
    found: set[int] = set()
    while True:
        draws = rng.integers(0, ends[-1], 2 * (count - len(found)) + 16)
        for client in np.searchsorted(ends, draws, side="right").tolist():
            found.add(client)
            if len(found) == count:
                return found
        sizes = np.diff(ends, prepend=0)  # those that were met are left out: a few clients may hold nearly all examples
        sizes[list(found)] = 0
        ends = sizes.cumsum()


@dataclass(frozen=True)
class FixedSchedule(ClientSampler):
    """Given clients in each round, from the beginning again after the last; how many are wanted does not matter.

    Args:
        rounds: the clients of each round.

    Raises:
        ConfigurationError: there is no round, or a round has no client, a client twice or a negative id.
    """

    any_count = True

    rounds: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        check_fields(self)
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

    @checked(num_clients=COUNT)
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        return list(self.rounds[round % len(self.rounds)])

    @checked(num_clients=COUNT)
    def check(self, num_clients: int, count: int) -> None:
        """Check that the clients exist."""
        for index, clients in enumerate(self.rounds):
            if max(clients) >= num_clients:
                raise ConfigurationError(
                    f"The clients in FixedSchedule must be in 0…{num_clients - 1}, but rounds[{index}] is {clients!r}; "
                    "was it made for another partition?"
                )
