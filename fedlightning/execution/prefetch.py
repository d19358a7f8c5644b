"""When plans are made: what a cohort draws is drawn several cohorts ahead, and for the next round by slots that are idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import copy
from threading import Lock

import torch

from fedlightning.execution.plan import CohortPlan, Drawn, RoundJob, draw_cohort, plan_cohort
from fedlightning.execution.runners.loop import Executor
from fedlightning.execution.slots import Worker

_AHEAD, _ENTRIES = 8, 2**18
"""How many cohorts a slot draws at a time, and after how many drawn places [K, C, B] it stops."""


def _draw(executor: Executor, job: RoundJob, clients: tuple[int, ...]) -> Drawn:
    return draw_cohort(job, clients, executor.padding(len(clients)))


class Plans:
    """The plans of a round's cohorts.

    To draw what a small cohort needs takes a tenth of a millisecond, but eight times that just after a convolution, which has
    taken the cache. So a slot that finds its cohort undrawn also draws those that will likely be its next: every S-th, with S
    slots. What is drawn is the same whoever draws it, so nothing depends on it if another slot gets there first.

    Args:
        job: the round.
        cohorts: in the order in which slots take them.
        together: positions of those that a slot takes at a time.
        slots: S.
    """

    def __init__(
        self,
        job: RoundJob,
        cohorts: Sequence[tuple[int, ...]],
        together: Sequence[tuple[int, ...]],
        slots: int,
    ) -> None:
        self.job, self.cohorts, self.together, self._slots = job, cohorts, together, slots
        self._drawn: dict[int, Future[Drawn] | None] = {}  # None: it is taken
        self._lock = Lock()

    def of(self, job: RoundJob, clients: Sequence[int]) -> Plans | None:
        """These plans, made before the round began, for what it turned out to be; None if that is another."""
        known = self.job
        if (known.round.index, known.gradient_pass, known.work) != (job.round.index, job.gradient_pass, job.work):
            return None
        if tuple(clients) != known.work.clients:
            return None
        these = copy(self)
        these.job = job
        return these

    def take(self, position: int, executor: Executor, device: torch.device) -> CohortPlan:
        """The plan of a cohort; it is given away."""
        with self._lock:
            drawn, self._drawn[position] = self._drawn.get(position), None
        clients = self.cohorts[position]
        if drawn is not None:
            return plan_cohort(self.job, clients, drawn.result(), device)
        mine = _draw(executor, self.job, clients)
        following = range(position + self._slots, len(self.cohorts), self._slots)[: _AHEAD - 1]
        self.draw(following, executor, mine.steps.mask.numel())
        return plan_cohort(self.job, clients, mine, device)

    def draw(
        self,
        positions: Sequence[int],
        executor: Executor,
        entries: int = 0,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """Draw what the cohorts at these positions need, as far as nobody does, until there is enough or it is no use."""
        for position in positions:
            if entries > _ENTRIES or ended():
                return
            with self._lock:
                if position in self._drawn:
                    continue
                self._drawn[position] = future = Future[Drawn]()
            try:
                drawn = _draw(executor, self.job, self.cohorts[position])
            except BaseException as error:  # noqa: BLE001 - raised where the cohort is taken
                future.set_exception(error)
                return
            future.set_result(drawn)
            entries += drawn.steps.mask.numel()


class Ahead:
    """The next round's plans, drawn by slots that have nothing else to do while the trainer's thread takes the mean.

    Args:
        begin: makes the plans, of which nothing is drawn yet.
        executor: of a slot, in a round.
    """

    def __init__(self, begin: Callable[[], Plans], executor: Callable[[Worker, RoundJob], Executor]) -> None:
        self._begin, self._executor = begin, executor
        self._lock, self._closed = Lock(), False
        self._plans: Plans | None = None

    def __call__(self, worker: Worker) -> None:
        """Draw until the next round begins; for several slots at once."""
        with self._lock:
            if self._closed:
                return
            try:
                self._plans = plans = self._plans or self._begin()
            except Exception:  # noqa: BLE001 - whatever is wrong with the next round is raised when it begins
                self._closed = True
                return
        plans.draw(range(len(plans.cohorts)), self._executor(worker, plans.job), ended=lambda: self._closed)

    def close(self) -> Plans | None:
        """The next round begins: what was drawn until now, if anything was."""
        self._closed = True
        with self._lock:
            return self._plans
