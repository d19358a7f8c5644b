"""The order in which the runs of comparisons are made: one after another, or side by side in processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlightning._signals import stop_on_signal
from fedlightning.compare.diary import Progress
from fedlightning.compare.processes import Processes
from fedlightning.compare.runs import Run
from fedlightning.compare.table import Outcome, Table

if TYPE_CHECKING:
    from fedlightning.compare.comparison import Comparison

OnTable = Callable[[int, Table], None]


def in_turn(comparisons: Sequence[Comparison], told: OnTable) -> list[Table]:
    """Make what is missing of comparisons in this process, one run after another, and return their tables."""
    courses = [_Course(comparison) for comparison in comparisons]
    for place, course in enumerate(courses):
        while (index := course.next()) is not None:
            course.make(index)
        told(place, course.table)
    return [course.table for course in courses]


def side_by_side(comparisons: Sequence[Comparison], processes: Processes, told: OnTable) -> list[Table]:
    """Make what is missing of comparisons in processes, and return their tables; a run that they share is made once."""
    courses, tables = [_Course(comparison) for comparison in comparisons], list[Table]()
    with processes, stop_on_signal(processes.stop):
        while processes.busy or not processes.stopping:
            for place, course in enumerate(courses):
                _begin_runs(place, course, processes)
            while len(tables) < len(courses) and courses[len(tables)].ended:
                tables.append(courses[len(tables)].table)
                told(len(tables) - 1, tables[-1])
            if len(tables) == len(courses):
                break
            for (place, index), news in processes.wait():
                if isinstance(news, Progress):
                    courses[place].report(news)
                else:
                    courses[place].done(index, news)
    return tables


def _begin_runs(place: int, course: _Course, processes: Processes) -> None:
    """Begin as many runs as there are processes without one; what is finished is read here."""
    while processes.has_room and (index := course.next(processes.busy)) is not None:
        run = course.runs[index]
        if run.is_finished:
            course.make(index)
        else:
            processes.begin((place, index), run)


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
