"""The order in which the runs of comparisons are made: one after another, or side by side in processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlightning._checked import COUNT, checked
from fedlightning._signals import stop_on_signal
from fedlightning.compare.diary import Progress
from fedlightning.compare.processes import Processes
from fedlightning.compare.runs import Run
from fedlightning.compare.table import Outcome, Table

if TYPE_CHECKING:
    from fedlightning.compare.comparison import Comparison

OnTable = Callable[[int, Table], None]


@checked("comparisons", "on_table", jobs=COUNT)
def run_together(comparisons: Sequence[Comparison], jobs: int = 1, on_table: OnTable | None = None) -> list[Table]:
    """Check several comparisons, run what is missing of them, and return their tables.

    A run that several of them have in one folder is made once.

    Args:
        comparisons: in the order in which they are worked off.
        jobs: see `Comparison`; what each of them says of itself does not count here.
        on_table: called with a comparison's position and its table, in this order, as soon as it is there.

    Raises:
        ConfigurationError, ClientError, MethodError, KeyboardInterrupt: see `Comparison.run`.
    """
    processes = Processes(comparisons, jobs) if jobs > 1 else None  # first, since this loads nothing
    for comparison in comparisons:
        comparison.check()
    courses, told = [_Course(comparison) for comparison in comparisons], on_table or _nobody
    if processes is None:
        for place, course in enumerate(courses):
            while (index := course.next()) is not None:
                course.make(index)
            told(place, course.table)
    else:
        _side_by_side(courses, processes, told)
    return [course.table for course in courses]


def _nobody(place: int, table: Table) -> None:
    """Is not interested."""


class _Course:
    """How far a comparison has come.

    Attributes:
        runs: of its present stage.
        ended: whether it has its table.
        table: what it ends with.
    """

    table: Table

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.ended = comparison, False
        self._stages = comparison.stages()
        self._begin_stage(next(self._stages))

    def _begin_stage(self, runs: Sequence[Run]) -> None:
        self.runs, self._waiting, self._done = runs, list(range(len(runs))), dict[int, Outcome]()

    def next(self, busy: Collection[Path] = ()) -> int | None:
        """The index of a run that nobody has begun and in whose folder nobody is busy; None where there is none now."""
        index = next((index for index in self._waiting if self.runs[index].folder not in busy), None)
        if index is not None:
            self._waiting.remove(index)
        return index

    def make(self, index: int) -> None:
        """Make a run in this process, or read it."""
        self.done(index, self.comparison.maker.make(self.runs[index], self.report))

    def report(self, progress: Progress) -> None:
        """Tell of an evaluation."""
        if self.comparison.on_progress:
            self.comparison.on_progress(progress)

    def done(self, index: int, outcome: Outcome) -> None:
        """Take what came of a run, and begin the next stage after the last one of this."""
        self._done[index] = outcome
        if self.comparison.on_run_end:
            self.comparison.on_run_end(outcome)
        if len(self._done) == len(self.runs):
            try:
                self._begin_stage(self._stages.send([self._done[index] for index in range(len(self.runs))]))
            except StopIteration as end:
                self.table, self.ended = end.value, True


def _side_by_side(courses: Sequence[_Course], processes: Processes, told: OnTable) -> None:
    tables = 0
    with processes, stop_on_signal(processes.stop):
        while processes.busy or not processes.stopping:
            for place, course in enumerate(courses):
                _begin_runs(place, course, processes)
            while tables < len(courses) and courses[tables].ended:
                told(tables, courses[tables].table)
                tables += 1
            if tables == len(courses):
                return
            for (place, index), news in processes.wait():
                if isinstance(news, Progress):
                    courses[place].report(news)
                else:
                    courses[place].done(index, news)


def _begin_runs(place: int, course: _Course, processes: Processes) -> None:
    """Begin as many runs as there are processes without one; what is finished is read here."""
    while processes.has_room and (index := course.next(processes.busy)) is not None:
        run = course.runs[index]
        if run.is_finished:
            course.make(index)
        else:
            processes.begin((place, index), run)
