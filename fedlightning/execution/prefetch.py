"""When plans are drawn: several cohorts ahead, and for the next round by slots that have nothing else to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

from fedlightning.execution.plan import CohortPlan, PhasePlan
from fedlightning.execution.slots import Worker

AHEAD, ENTRIES = 8, 2**18
"""How many cohorts a slot draws at a time, and after how many drawn places [ΣK, B] it stops."""


class Draws:
    """The plans of a round's cohorts, drawn when they are needed or before.

    To draw what a small cohort needs takes a tenth of a millisecond, but eight times that just after a convolution, which has
    taken the cache. So a slot that finds its cohort undrawn also draws those that will likely be its next: every S-th, with S
    slots. What is drawn is the same whoever draws it, so nothing depends on it if another slot gets there first.

    Args:
        plan: the round's.
        cohorts: in the order in which slots take them.
        shares: positions of those that a slot takes at a time.
        slots: S.
        ahead, entries: see `AHEAD`.
    """

    def __init__(
        self,
        plan: PhasePlan,
        cohorts: Sequence[tuple[int, ...]],
        shares: Sequence[tuple[int, ...]],
        slots: int,
        ahead: int = AHEAD,
        entries: int = ENTRIES,
    ) -> None:
        self.plan, self.cohorts, self.shares = plan, cohorts, shares
        self._slots, self._count, self._entries = slots, ahead, entries
        self._drawn: dict[int, Future[CohortPlan] | None] = {}  # None: it is taken
        self._lock = Lock()

    def pop(self, position: int) -> CohortPlan:
        """The plan of a cohort; it is given away."""
        with self._lock:
            drawn, self._drawn[position] = self._drawn.get(position), None
        if drawn is not None:
            return drawn.result()
        mine = self.plan.draw(self.cohorts[position])
        following = range(position + self._slots, len(self.cohorts), self._slots)[: self._count - 1]
        self.draw(following, mine.mask.numel())
        return mine

    def draw(self, positions: Sequence[int], entries: int = 0, ended: Callable[[], bool] = lambda: False) -> None:
        """Draw what the cohorts at these positions need, as far as nobody does, until there is enough or it is no use."""
        for position in positions:
            if entries > self._entries or ended():
                return
            with self._lock:
                if position in self._drawn:
                    continue
                self._drawn[position] = future = Future[CohortPlan]()
            try:
                drawn = self.plan.draw(self.cohorts[position])
            except BaseException as error:  # noqa: BLE001 - raised where the cohort is taken
                future.set_exception(error)
                return
            future.set_result(drawn)
            entries += drawn.mask.numel()


class Ahead:
    """The next round's draws, made by slots that have nothing else to do while the trainer's thread takes the mean.

    Args:
        begin: makes the draws, of which nothing is drawn yet.
    """

    def __init__(self, begin: Callable[[], Draws]) -> None:
        self._begin = begin
        self._lock, self._closed = Lock(), False
        self._draws: Draws | None = None

    def __call__(self, worker: Worker) -> None:
        """Draw until the next round begins; for several slots at once."""
        with self._lock:
            if self._closed:
                return
            try:
                self._draws = draws = self._draws or self._begin()
            except Exception:  # noqa: BLE001 - whatever is wrong with the next round is raised when it begins
                self._closed = True
                return
        draws.draw(range(len(draws.cohorts)), ended=lambda: self._closed)

    def close(self) -> Draws | None:
        """Let the round begin: the draws so far; what is being drawn is waited for where it is taken."""
        self._closed = True  # first, so that a slot that draws under the lock ends soon
        with self._lock:
            return self._draws
