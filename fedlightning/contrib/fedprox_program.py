"""The random streams of the FedProx program, replayed: its stragglers, its straggler epochs and its batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch

from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.errors import ConfigurationError
from fedlightning.participation.samplers import RoundSeeded
from fedlightning.participation.stragglers import Rounds, Stragglers, Work

Array = np.ndarray[Any, np.dtype[np.int64]]

_SHUFFLE_SEED = 100
"""With which the program seeds NumPy before each epoch."""


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


@dataclass(frozen=True)
class ReplayedWork(Work):
    """The work of a round of the FedProx program.

    Attributes:
        passes: how many epochs each client has been trained before this round; it is not in it before its first.
    """

    passes: Mapping[int, int] = field(default_factory=dict)

    def schedules(
        self, data: FederatedDataModule, clients: Sequence[int], round: int, seed: int, num_steps: Sequence[int]
    ) -> list[Schedule]:
        """Each client's batches."""
        return [self.schedule(data, client, k) for client, k in zip(clients, num_steps, strict=True)]

    def schedule(self, data: FederatedDataModule, client: int, num_steps: int) -> Schedule:
        """The batches [K, B] of a client: epoch e of its life visits its examples in the order P_n^(e + 1)."""
        owned = data.clients.positions(client)
        size = len(owned)
        batch = data.largest_batch if data.batching.size else size
        per_epoch, passed, shuffle = -(-size // batch), self.passes.get(client, 0), _shuffle(size)
        index = np.full((-(-num_steps // per_epoch), per_epoch * batch), -1, dtype=np.int64)
        order = _power(shuffle, passed)
        for epoch in index:
            order = order[shuffle]
            epoch[:size] = owned[order]
        return Schedule(torch.from_numpy(index.reshape(-1, batch)[:num_steps]), None)


@dataclass(frozen=True)
class FedProxReplay(Stragglers):
    """Stragglers and batches as the program of Li et al., MLSys 2020, draws them, to replay its runs to rounding.

    Needs `sampler=RoundSeeded()`. In round t NumPy's legacy generator is seeded with t and draws the active clients from
    the chosen. Each epoch seeds it with 100 and shuffles the client's examples in place, where they stay: epoch e of a
    client's life visits them in the order P_n^(e + 1), for the one permutation P_n of n elements that the seed 100 gives.
    A straggler's epochs come from the generator as the client before it left it, so they are a function of that client's n;
    only where the first client of a round is a straggler do they depend on t. They are in {1, …, E − 1}, not {1, …, E}.
    The seed of the run changes nothing.

    The history is a pure function of the round: a run that begins at round t counts the epochs of the rounds before it.

    Args:
        fraction: of the chosen clients that are stragglers; round(m (1 − fraction)) are active.
        partial: True as the program's FedProx, False as its FedAvg.

    Raises:
        ConfigurationError: `fraction` is not in [0, 1).
    """

    def plan(self, rounds: Rounds) -> Callable[[int], ReplayedWork]:
        """The work of each round t of a run, as a function of t.

        Raises:
            ConfigurationError: the sampler, the local steps or the data are not those of the program.
        """
        self._check(rounds)
        return _History(self, rounds).work

    def split(self, chosen: list[int], round: int) -> tuple[tuple[int, ...], np.random.RandomState]:
        """The active clients in the program's order, and the generator after they were drawn."""
        generator = np.random.RandomState(round)
        active = generator.choice(chosen, self.num_active(len(chosen)), replace=False)
        return tuple(active.tolist()), generator

    def _check(self, rounds: Rounds) -> None:
        data, batching, name = rounds.data, rounds.data.batching, type(self).__name__
        active = self.num_active(rounds.count)
        if not isinstance(rounds.sampler, RoundSeeded):
            raise ConfigurationError(
                f"`sampler` must be RoundSeeded() for {name}, but is {rounds.sampler!r}; use `sampler=RoundSeeded()`."
            )
        if batching.steps is not None or rounds.local_steps(0) is not None or data.augmentation is not None:
            raise ConfigurationError(
                f"Clients must train for epochs, without augmentation, for {name}, but {type(data).__name__} has "
                f"steps={batching.steps!r} and augmentation={data.augmentation!r}, and the method asks for "
                f"{rounds.local_steps(0)!r} steps; use `epochs`, or `Stragglers`."
            )
        if batching.drop_last:
            raise ConfigurationError(
                f"`batching.drop_last` of {type(data).__name__} must be False for {name}, since the program trains on every "
                "example, but is True; leave it out."
            )
        if self.partial and active < rounds.count and (batching.epochs or 1) < 2:
            raise ConfigurationError(
                f"`batching.epochs` of {type(data).__name__} must be at least 2 for {name}, since the program draws a "
                f"straggler's from 1…E − 1, but is {batching.epochs}; use `Stragglers`."
            )
        if not self.partial and active < 1:
            raise ConfigurationError(
                f"At least one of the chosen clients must be active for {name}(partial=False), but `fraction` "
                f"{self.fraction} leaves none of {rounds.count}; use a smaller fraction, or more `clients_per_round`."
            )


class _History:
    """How often each client has been trained before a round; counted once, going on from the last round asked for."""

    def __init__(self, rule: FedProxReplay, rounds: Rounds) -> None:
        self._rule, self._rounds = rule, rounds
        self._epochs = rounds.data.batching.epochs or 1
        self._size = rounds.data.clients.size
        self._lock = Lock()
        self._next, self._passes = 0, Counter[int]()

    def work(self, round: int) -> ReplayedWork:
        """The work of a round."""
        with self._lock:
            if round < self._next:
                self._next, self._passes = 0, Counter()
            while self._next < round:
                self._passes.update(self._trained(self._next))
                self._next += 1
            passes = dict(self._passes)
        trained = self._trained(round)
        steps = {c: e * -(-self._size(c) // self._batch(c)) for c, e in trained.items() if e < self._epochs}
        count = self._rounds.count
        return ReplayedWork(tuple(trained), steps, count - self._rule.num_active(count), passes)

    def _trained(self, round: int) -> dict[int, int]:
        """The epochs of each client that is trained in a round, in the program's order."""
        chosen = self._rounds.chosen(round)
        active, generator = self._rule.split(chosen, round)
        if not self._rule.partial:
            return dict.fromkeys(active, self._epochs)
        if len(active) == len(chosen):
            return dict.fromkeys(chosen, self._epochs)
        before = (_epochs_after(self._size(client), self._epochs) for client in chosen[:-1])
        drawn = (int(generator.randint(1, self._epochs)), *before)
        return {c: self._epochs if c in active else e for c, e in zip(chosen, drawn, strict=True)}

    def _batch(self, client: int) -> int:
        return self._rounds.data.batching.size or self._size(client)
