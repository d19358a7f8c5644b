"""Who takes part in the rounds of a run, how much they do, and on which batches: all known before a round begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral

from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.errors import ConfigurationError
from fedlightning.method import Round
from fedlightning.participation.batching_policy import BatchingPolicy, CheckedBatches, FromData
from fedlightning.participation.samplers import ClientSampler, UniformSampling, named_clients
from fedlightning.participation.stragglers import Stragglers, Work


class Participation:
    """Answers for each round of a run who trains, how much, and on which batches.

    Every answer is a function of the seed and the round, and of nothing that an earlier round gave. So rounds can be asked
    for in any order, by several threads, and before their time.

    Args:
        data: the clients' data, set up.
        wish: `clients_per_round` of the trainer; an int is a number of clients, a float a fraction of them.
        sampler: chooses the clients of a round.
        stragglers: decides which of them do less than asked.
        batching_policy: decides which examples are in their batches.
        seed: of the run.
        lr: η_t, the clients' learning rate in round t.
        local_steps: K that the method asks of every client in round t, or None.

    Attributes:
        num_clients: N.
        clients_per_round: m.

    Raises:
        ConfigurationError: one of the rules is not made for this run.
    """

    def __init__(
        self,
        data: FederatedDataModule,
        wish: int | float = 1.0,
        sampler: ClientSampler | None = None,
        stragglers: Stragglers | None = None,
        batching_policy: BatchingPolicy | None = None,
        seed: int = 0,
        lr: Callable[[int], float] = lambda round: math.nan,
        local_steps: Callable[[int], int | None] = lambda round: None,
    ) -> None:
        self.data, self.seed, self.local_steps, self._lr = data, seed, local_steps, lr
        self.num_clients = data.clients.num_clients
        self.clients_per_round = clients_in(wish, self.num_clients)
        self.sampler = (sampler or UniformSampling()).bind(data.clients)
        self.sampler.check(self.num_clients, self.clients_per_round)
        self.stragglers = stragglers or Stragglers(0.0)
        self.stragglers.check(self)
        # A round is asked for by the trainer, by whoever draws ahead, and by an analysis; two are alive at a time.
        self.work = lru_cache(2)(self._work)
        bound = (batching_policy or FromData()).bind(self)
        # The data module's own batches are looked at where they are drawn, and cost nothing more here.
        self.batches = bound if batching_policy is None else CheckedBatches(bound, type(batching_policy).__name__, data)

    def plan(self, t: int) -> RoundPlan:
        """The plan of round t.

        Raises:
            ConfigurationError: a rule gives what is no answer for this round.
        """
        return RoundPlan(self, t, self.work(t))

    def round(self, t: int) -> Round:
        """What the method's hooks are told of round t."""
        return Round(t, self.num_clients, len(self.work(t).clients), self._lr(t))

    def chosen(self, t: int) -> list[int]:
        """The clients that the sampler names for round t, stragglers among them.

        Raises:
            ConfigurationError: it does not name different clients that exist, one at least, m at most.
        """
        answer = self.sampler.sample(t, self.num_clients, self.clients_per_round, self.seed)
        most = None if self.sampler.any_count else self.clients_per_round
        return named_clients(answer, f"{type(self.sampler).__name__}.sample", t, self.num_clients, most)

    def active(self, rule: Stragglers, chosen: Sequence[int], count: int, t: int) -> set[int]:
        """The clients that a rule names as no stragglers.

        Raises:
            ConfigurationError: it names others than those that were chosen.
        """
        giver = f"{type(rule).__name__}.active"
        answer = rule.active(chosen, count, t, self.seed)
        active = set(named_clients(answer, giver, t, self.num_clients, count))
        if not active <= set(chosen):
            raise ConfigurationError(
                f"`{giver}` must name some of the clients that were chosen for round {t}, {chosen!r:.80}, but gives "
                f"{answer!r:.80}; pick from its argument `chosen`."
            )
        return active

    def _work(self, t: int) -> Work:
        """Who trains in round t, as the stragglers' rule has it, checked."""
        name = f"{type(self.stragglers).__name__}.work"
        chosen = self.chosen(t)
        found = self.stragglers.work(chosen, t, self)
        if not isinstance(found, Work) or not isinstance(found.steps, Mapping):
            raise ConfigurationError(
                f"`{name}` must give the `Work` of a round, but gives {found!r:.80} in round {t}; return `Work(clients)`."
            )
        clients = named_clients(found.clients, name, t, self.num_clients)
        if strangers := sorted(set(clients) - set(chosen)):
            raise ConfigurationError(
                f"`{name}` must give work to clients that were chosen for round {t}, {chosen!r:.80}, but gives some to "
                f"{strangers[0]}; pick from its argument `chosen`."
            )
        for client, steps in found.steps.items():
            most = self.data.num_steps(client, self.local_steps(t)) if client in clients else 0
            if not isinstance(steps, Integral) or isinstance(steps, bool) or not 1 <= steps <= most:
                raise ConfigurationError(
                    f"`steps` of the `Work` of `{name}` must be a whole number from 1 to what is asked of the client, but is "
                    f"{steps!r} for client {client!r} in round {t}, of whom {most} are asked; leave out clients that do all "
                    "their work, or nothing."
                )
        if not isinstance(found.stragglers, Integral) or not 0 <= found.stragglers <= len(chosen):
            raise ConfigurationError(
                f"`stragglers` of the `Work` of `{name}` must count some of the {len(chosen)} clients that were chosen for round "
                f"{t}, but is {found.stragglers!r}; it is logged as `round/stragglers`."
            )
        return replace(found, clients=tuple(clients))


@dataclass(frozen=True)
class RoundPlan:
    """Who trains in a round, how much, and on which batches. It is known before the round begins.

    Attributes:
        participation: of the run.
        index: t, counted from 0.
        work: who trains, and which of them do less than asked.
    """

    participation: Participation
    index: int
    work: Work

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients that train, in the sampler's order."""
        return self.work.clients

    @property
    def round(self) -> Round:
        """What the method's hooks are told of the round."""
        return self.participation.round(self.index)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.participation.seed

    @property
    def data(self) -> FederatedDataModule:
        """The clients' data."""
        return self.participation.data

    def num_steps(self, client: int) -> int:
        """K of a client."""
        if client in self.work.steps:
            return self.work.steps[client]
        return self.data.num_steps(client, self.participation.local_steps(self.index))

    def batches(self, clients: Sequence[int], num_steps: Sequence[int]) -> list[Schedule]:
        """The batches of clients that take so many steps; see `BatchingPolicy`."""
        return self.participation.batches(clients, num_steps, self.index)

    def among(self, clients: Sequence[int]) -> RoundPlan:
        """The same round's plan for other clients. A client of theirs that is a straggler stays one."""
        return replace(self, work=replace(self.work, clients=tuple(clients)))

    def shortened(self, clients: Sequence[int], steps: int) -> RoundPlan:
        """The plan of the first steps of some clients, for a trial."""
        return replace(self, work=replace(self.work, clients=tuple(clients), steps=dict.fromkeys(clients, steps)))


def clients_in(wish: int | float, num_clients: int) -> int:
    """m, the clients of a round: a number as it is, a fraction of N rounded down.

    Raises:
        ConfigurationError: m is not in 1 … N.
    """
    count = wish * num_clients if isinstance(wish, float) else wish
    resolved = math.floor(count + 1e-9) if math.isfinite(count) else 0
    if not 1 <= resolved <= num_clients:
        given = f"{wish} ({count:g} of {num_clients} clients)" if isinstance(wish, float) else f"{wish}"
        remedy = (
            f"at least {1 / num_clients:g}"
            if isinstance(wish, float) and count < 1
            else f"a number from 1 to {num_clients}"
        )
        raise ConfigurationError(f"`clients_per_round` must be in 1…{num_clients}, but is {given}; use {remedy}.")
    return resolved
