"""Systems heterogeneity: devices that do less work than asked of them in a round, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from fedlightning._checked import check_fields
from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.errors import ConfigurationError, require_within
from fedlightning.participation.samplers import ClientSampler, named_clients
from fedlightning.randomness import stream


@dataclass(frozen=True)
class Work:
    """Who trains in a round, and how much.

    Attributes:
        clients: those whose work is aggregated, in the sampler's order.
        steps: K of those among them that do less than asked; the others are not in it.
        stragglers: how many of the chosen were stragglers, whether dropped or not.
    """

    clients: tuple[int, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    stragglers: int = 0

    def schedules(
        self, data: FederatedDataModule, clients: Sequence[int], round: int, seed: int, num_steps: Sequence[int]
    ) -> list[Schedule]:
        """The batches of clients in this round, as `FederatedDataModule.schedules` gives them."""
        return data.schedules(clients, round, seed, num_steps)


@dataclass(frozen=True)
class Rounds:
    """What a run's rounds are made of, known before the first one.

    Attributes:
        data: the clients' data, set up.
        sampler: who is chosen.
        count: m, how many are.
        seed: of the run.
        local_steps: K that the method asks of every client in a round, or None; `FedMethod.local_steps`.
    """

    data: FederatedDataModule
    sampler: ClientSampler
    count: int
    seed: int
    local_steps: Callable[[int], int | None]

    def chosen(self, round: int) -> list[int]:
        """The clients of a round, stragglers among them.

        Raises:
            ConfigurationError: the sampler does not name different clients that exist, one at least, m at most.
        """
        sampler, num_clients = self.sampler, self.data.clients.num_clients
        answer = sampler.sample(round, num_clients, self.count, self.seed)
        most = None if sampler.any_count else self.count
        return named_clients(answer, f"{type(sampler).__name__}.sample", round, num_clients, most)

    def works(self, stragglers: Stragglers) -> Callable[[int], Work]:
        """The work of each round t, as `Stragglers.plan` has it.

        Raises:
            ConfigurationError: what the rule gives for a round is no work that these clients can do.
        """
        plan, name = stragglers.plan(self), f"{type(stragglers).__name__}.plan"

        def work(round: int) -> Work:
            found = plan(round)
            if not isinstance(found, Work):
                raise ConfigurationError(
                    f"`{name}` must give the `Work` of a round, but gives {found!r:.80} in round {round}."
                )
            clients = set(named_clients(found.clients, name, round, self.data.clients.num_clients))
            for client, steps in found.steps.items():
                if client not in clients or not isinstance(steps, Integral) or steps < 1:
                    raise ConfigurationError(
                        f"`steps` of the `Work` of `{name}` must be a whole number from 1 on for clients of the round, but is "
                        f"{steps!r} for client {client!r} in round {round}; leave out who does all, or nothing."
                    )
            return found

        return work


@dataclass(frozen=True)
class Stragglers:
    """A fraction of a round's clients is slow: Li et al., MLSys 2020, section 5.2.

    max(1, round(m (1 − fraction))) of the m chosen clients are active and do all their work (`round` is Python's, to the
    even neighbour of a half), as the sampler draws them: uniformly by the seed and the round; `RoundSeeded` draws the clients
    that the authors' program does. The others are stragglers. Who they are, and how much they do, is the same for every
    method under one seed, and the stragglers of a fraction are among those of a larger one.

    A straggler of `partial=True` does e ~ U{1, …, E} of its E epochs (the program takes {1, …, E − 1}). Where there are no
    epochs to share (the `Batching` of the data has `steps`, the method sets `local_steps`, or E = 1) it does U{1, …, K} of its
    K local steps; the paper's experiments with E = 1 do the same.

    Args:
        fraction: of the chosen clients that are stragglers; the paper takes 0, 0.5 and 0.9.
        partial: aggregate what the stragglers did, as FedProx does; False drops them, as FedAvg does in the paper.

    Raises:
        ConfigurationError: `fraction` is not in [0, 1).
    """

    fraction: float
    partial: bool = True

    def __post_init__(self) -> None:
        require_within(self.fraction, "[0, 1)", f"`fraction` of {type(self).__name__}", "0.9 is nine tenths")
        check_fields(self)

    def plan(self, rounds: Rounds) -> Callable[[int], Work]:
        """The work of each round t of a run, as a function of t."""

        def work(round: int) -> Work:
            chosen = rounds.chosen(round)
            if self.num_active(len(chosen)) == len(chosen):
                return Work(tuple(chosen))
            active = _active(rounds, chosen, max(1, self.num_active(len(chosen))), round)
            stragglers = [client for client in chosen if client not in active]
            if not self.partial:
                return Work(tuple(client for client in chosen if client in active), {}, len(stragglers))
            steps = {client: _part(rounds, round, client) for client in stragglers}
            return Work(tuple(chosen), steps, len(stragglers))

        return work

    def num_active(self, count: int) -> int:
        """How many of `count` chosen clients are no stragglers, before at least one is asked for."""
        return round(count * (1 - self.fraction))


def _active(rounds: Rounds, chosen: list[int], count: int, round: int) -> set[int]:
    """Those of the chosen clients that are no stragglers, as the sampler says."""
    giver, num_clients = f"{type(rounds.sampler).__name__}.active", rounds.data.clients.num_clients
    answer = rounds.sampler.active(chosen, count, round, rounds.seed)
    active = set(named_clients(answer, giver, round, num_clients, count))
    if not active <= set(chosen):
        raise ConfigurationError(
            f"`{giver}` must name some of the clients that were chosen for round {round}, {chosen!r:.80}, but gives "
            f"{answer!r:.80}; pick from its argument `chosen`."
        )
    return active


def _part(rounds: Rounds, round: int, client: int) -> int:
    """The local steps of a straggler, whose work is E epochs, or K steps."""
    wish, data = rounds.local_steps(round), rounds.data
    steps = data.num_steps(client, wish)
    epochs = data.batching.epochs if wish is None else None
    units = epochs if epochs and epochs > 1 else steps
    return int(stream(rounds.seed, "stragglers", round, client).integers(1, units + 1)) * (steps // units)
