"""The random streams of the FedProx program (Li et al., MLSys 2020): its clients, stragglers, straggler epochs and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch

from fedlightning._checked import checked
from fedlightning.data.module import Schedule
from fedlightning.errors import ConfigurationError
from fedlightning.participation.batching_policy import Batches, BatchingPolicy
from fedlightning.participation.participation import Participation
from fedlightning.participation.samplers import ClientSampler
from fedlightning.participation.stragglers import Stragglers, Work
from fedlightning.randomness import legacy

Array = np.ndarray[Any, np.dtype[np.int64]]

_SHUFFLE_SEED = 100
"""With which the program seeds NumPy before each epoch."""


@dataclass(frozen=True)
class RoundSeeded(ClientSampler):
    """The clients that the program chooses: the same for every seed.

    The round seeds NumPy's legacy generator, `RandomState(round).choice(N, count, replace=False)`; the order is kept. The
    generator shuffles all N clients: 20 ms for a million.
    """

    @checked(round="[0, 4294967295]", num_clients="[1, 100000000]")
    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        """The clients that take part in a round."""
        self.check(num_clients, count)
        chosen: list[int] = legacy(round).choice(num_clients, count, replace=False).tolist()
        return chosen


@dataclass(frozen=True)
class RoundSeededStragglers(Stragglers):
    """Stragglers, of whom the active clients are drawn as the program draws them: the same for every seed.

    How much a straggler does comes from the run's seed, as `Stragglers` has it. `ReplayedStragglers` replays that, too.
    """

    def active(self, chosen: Sequence[int], count: int, round: int, seed: int) -> list[int]:
        """The clients that are no stragglers, in the program's order."""
        active: list[int] = legacy(round).choice(chosen, count, replace=False).tolist()
        return active


@lru_cache(maxsize=4096)
def _shuffle(size: int) -> Array:
    """P_n, the order [n] in which the program's one shuffle leaves n examples."""
    order = np.arange(size)
    np.random.RandomState(_SHUFFLE_SEED).shuffle(order)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4096)
def _epochs_after(size: int, epochs: int) -> int:
    """What the program draws from {1, …, E − 1} after it has shuffled n examples: the generator was left in that state."""
    generator = np.random.RandomState(_SHUFFLE_SEED)
    generator.shuffle(np.arange(size))
    return int(generator.randint(1, epochs))


def _power(order: Array, exponent: int) -> Array:
    """A permutation applied `exponent` times, by repeated squaring."""
    result = np.arange(len(order))
    while exponent:
        if exponent & 1:
            result = result[order]
        order, exponent = order[order], exponent >> 1
    return result


def _epochs(participation: Participation, client: int, steps: int | None) -> int:
    """The epochs of a client that takes so many local steps; all E where it does all its work."""
    batching = participation.data.batching
    if steps is None:
        return batching.epochs or 1
    return steps // batching.batches(participation.data.clients.size(client))


def _check(participation: Participation, name: str) -> None:
    """Check that the run is one that the program could make.

    Raises:
        ConfigurationError: the sampler, the local steps or the data are not those of the program.
    """
    data, wish = participation.data, participation.local_steps(0)
    if not isinstance(participation.sampler, RoundSeeded):
        raise ConfigurationError(
            f"`sampler` must be RoundSeeded() for {name}, but is {participation.sampler!r}; use `sampler=RoundSeeded()`."
        )
    if data.batching.steps is not None or wish is not None or data.augmentation is not None:
        raise ConfigurationError(
            f"Clients must train for epochs, without augmentation, for {name}, but {type(data).__name__} has "
            f"steps={data.batching.steps!r} and augmentation={data.augmentation!r}, and the method asks for {wish!r} steps; use "
            "`Batching(epochs=…)`, or `Stragglers`."
        )
    if data.batching.drop_last:
        raise ConfigurationError(
            f"`batching.drop_last` of {type(data).__name__} must be False for {name}, since the program trains on every "
            "example; leave it out."
        )


@dataclass(frozen=True)
class ReplayedStragglers(Stragglers):
    """Stragglers as the program draws them, epochs included.

    It needs `sampler=RoundSeeded()`. In round t NumPy's legacy generator is seeded with t and draws the active clients from
    the chosen. A straggler's epochs come from the generator as the client before it left it. Before each epoch the program seeds
    the generator with 100 and shuffles that client's n examples, so the epochs are a function of that n. Only where the first
    client of a round is a straggler do they depend on t. They are in {1, …, E − 1}, not {1, …, E}. The run's seed
    changes nothing.

    With `batching_policy=ReplayedBatches()` the run is the program's to rounding.

    Args:
        fraction: of the chosen clients that are stragglers; round(m (1 − fraction)) are active.
        partial: True as the program's FedProx, False as its FedAvg.

    Raises:
        ConfigurationError: `fraction` is not in [0, 1).
    """

    def check(self, participation: Participation) -> None:
        """Check that the run is one that the program could make.

        Raises:
            ConfigurationError: the sampler, the local steps or the data are not those of the program.
        """
        name, count, epochs = type(self).__name__, participation.clients_per_round, participation.data.batching.epochs
        _check(participation, name)
        active = self.num_active(count)
        if self.partial and active < count and (epochs or 1) < 2:
            raise ConfigurationError(
                f"`batching.epochs` of {type(participation.data).__name__} must be at least 2 for {name}, since the program "
                f"draws a straggler's from 1…E − 1, but is {epochs}; use `Stragglers`."
            )
        if not self.partial and active < 1:
            raise ConfigurationError(
                f"At least one of the chosen clients must be active for {name}(partial=False), but `fraction` "
                f"{self.fraction} leaves none of {count}; use a smaller fraction, or more `clients_per_round`."
            )

    def work(self, chosen: Sequence[int], round: int, participation: Participation) -> Work:
        """Who trains in a round, in the program's order, and how much."""
        data = participation.data
        epochs, size = data.batching.epochs or 1, data.clients.size
        generator = np.random.RandomState(round)
        active: list[int] = generator.choice(chosen, self.num_active(len(chosen)), replace=False).tolist()
        stragglers = len(chosen) - len(active)
        if not self.partial:
            return Work(tuple(active), {}, stragglers)
        if not stragglers:
            return Work(tuple(chosen))
        before = (_epochs_after(size(client), epochs) for client in chosen[:-1])
        drawn = dict(zip(chosen, (int(generator.randint(1, epochs)), *before), strict=True))
        slow = [client for client in chosen if client not in active]
        steps = {client: drawn[client] * data.batching.batches(size(client)) for client in slow}
        return Work(tuple(chosen), steps, stragglers)


@dataclass(frozen=True)
class ReplayedBatches(BatchingPolicy):
    """Batches as the program makes them.

    It needs `sampler=RoundSeeded()`. Each epoch seeds NumPy's generator with 100 and shuffles the client's examples in place,
    where they stay: epoch e of a client's life visits them in the order P_n^(e + 1), for the one permutation P_n of n elements
    that the seed 100 gives. How many epochs a client has lived through before round t follows from who trained in the rounds
    before, which is known without training. A run that begins at round t counts them, too.
    """

    def bind(self, participation: Participation) -> Batches:
        """The batches of a run.

        Raises:
            ConfigurationError: the sampler, the local steps or the data are not those of the program.
        """
        _check(participation, type(self).__name__)
        history = _History(participation)

        def batches(clients: Sequence[int], num_steps: Sequence[int], round: int) -> list[Schedule]:
            passes = history.before(round)
            return [
                _schedule(participation, client, k, passes[client])
                for client, k in zip(clients, num_steps, strict=True)
            ]

        return batches


def _schedule(participation: Participation, client: int, num_steps: int, passes: int) -> Schedule:
    """The batches [K, B] of a client that has lived through so many epochs."""
    data = participation.data
    owned = data.clients.positions(client)
    size = len(owned)
    batch = data.largest_batch if data.batching.size else size
    per_epoch, shuffle = data.batching.batches(size), _shuffle(size)
    index = np.full((-(-num_steps // per_epoch), per_epoch * batch), -1, dtype=np.int64)
    order = _power(shuffle, passes)
    for epoch in index:
        order = order[shuffle]
        epoch[:size] = owned[order]
    return Schedule(torch.from_numpy(index.reshape(-1, batch)[:num_steps]), None)


class _History:
    """How many epochs each client has been trained before a round. It is counted once, from the last round that was asked for."""

    def __init__(self, participation: Participation) -> None:
        self._participation = participation
        self._lock = Lock()
        self._next, self._passes = 0, Counter[int]()

    def before(self, round: int) -> Mapping[int, int]:
        """The epochs by client; a client that was never trained has 0."""
        with self._lock:
            if round < self._next:
                self._next, self._passes = 0, Counter()
            while self._next < round:
                work = self._participation.work(self._next)
                self._passes.update({c: _epochs(self._participation, c, work.steps.get(c)) for c in work.clients})
                self._next += 1
            return self._passes.copy()
