"""Systems heterogeneity: devices that do less work than asked of them in a round, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedlightning._checked import check_fields
from fedlightning.errors import require_within
from fedlightning.randomness import stream

if TYPE_CHECKING:
    from fedlightning.participation.participation import Participation


@dataclass(frozen=True)
class Work:
    """Who trains in a round, and how much.

    Attributes:
        clients: the clients whose work is aggregated, in the sampler's order.
        steps: K of those among them that do less than asked. Clients that do all their work are not in it.
        stragglers: the number of chosen clients that were stragglers. Dropped ones count, too.
    """

    clients: tuple[int, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    stragglers: int = 0


@dataclass(frozen=True)
class Stragglers:
    """A fraction of a round's clients is slow: Li et al., MLSys 2020, section 5.2.

    max(1, round(m (1 − fraction))) of the m chosen clients are active and do all their work (`round` is Python's, to the
    even neighbour of a half). The others are stragglers. Who they are depends on the seed and the round alone, so it is the
    same for every method, and the stragglers of a fraction are among those of a larger one.

    A straggler of `partial=True` does e ~ U{1, …, E} of its E epochs (the authors' program takes {1, …, E − 1}). Where there are
    no epochs to share (the data module has `steps`, the method sets `local_steps`, or E = 1) it does U{1, …, K} of its K local
    steps. The paper's experiments with E = 1 do the same.

    Subclass it for another rule: override `active` to choose other stragglers, or `work` for a rule of any kind.

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

    def check(self, participation: Participation) -> None:
        """Check before the first round that the rule is made for this run.

        Raises:
            ConfigurationError: it is not.
        """

    def active(self, chosen: Sequence[int], count: int, round: int, seed: int) -> Sequence[int]:
        """The `count` clients among the chosen ones that are no stragglers: drawn uniformly."""
        order = stream(seed, "stragglers", round).permutation(len(chosen))
        return [chosen[place] for place in order[:count].tolist()]

    def work(self, chosen: Sequence[int], round: int, participation: Participation) -> Work:
        """Who of the chosen clients trains, and how much: a pure function of its arguments.

        Args:
            chosen: the clients that the sampler named.
            round: t, counted from 0.
            participation: of the run; its seed, its data, and the local steps that the method asks for.
        """
        if self.num_active(len(chosen)) == len(chosen):
            return Work(tuple(chosen))
        active = participation.active(self, chosen, max(1, self.num_active(len(chosen))), round)
        stragglers = [client for client in chosen if client not in active]
        if not self.partial:
            return Work(tuple(client for client in chosen if client in active), {}, len(stragglers))
        return Work(tuple(chosen), {c: _part(participation, round, c) for c in stragglers}, len(stragglers))

    def num_active(self, count: int) -> int:
        """How many of `count` chosen clients are no stragglers, before at least one is asked for."""
        return round(count * (1 - self.fraction))


def _part(participation: Participation, round: int, client: int) -> int:
    """The local steps of a straggler, whose work is E epochs, or K steps."""
    wish, data = participation.local_steps(round), participation.data
    steps = data.num_steps(client, wish)
    epochs = data.batching.epochs if wish is None else None
    units = epochs if epochs and epochs > 1 else steps
    return int(stream(participation.seed, "stragglers", round, client).integers(1, units + 1)) * (steps // units)
