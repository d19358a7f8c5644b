"""How comparisons are followed while they go: tables in a terminal, lines elsewhere."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as Grid

from fedlightning.compare.diary import Progress
from fedlightning.compare.table import Outcome


class Board:
    """The state of all runs: a live table of each comparison in a terminal, otherwise a line now and then.

    Args:
        console: where to.
        pause: seconds between the lines of runs that go on.
    """

    def __init__(self, console: Console | None = None, pause: float = 20.0) -> None:
        self.console, self.pause = console or Console(highlight=False, soft_wrap=True), pause
        self.cells: dict[str, dict[tuple[str, int], str]] = {}
        self._live = Live(get_renderable=self.grids, console=self.console, refresh_per_second=4)
        self._spoken = perf_counter()

    def __enter__(self) -> Board:
        """Show the tables."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave their last state on the screen."""
        if self.console.is_terminal:
            self._live.stop()

    def grids(self) -> Group:
        """A table of each comparison that has begun and is not closed."""
        return Group(*(self._grid(title) for title in list(self.cells)))

    def goes_on(self, title: str, run: Progress) -> None:
        """A run of a comparison was evaluated."""
        text = f"{run.value:.4f}, round {run.round} of {run.rounds}"
        self._set(title, run.name, run.seed, text, aloud=perf_counter() - self._spoken > self.pause)

    def ended(self, title: str, run: Outcome) -> None:
        """A run of a comparison is finished, now or before."""
        done = "diverged" if run.failure else f"{run.final():.4f}"
        self._set(title, run.name, run.seed, f"{done}, {run.rounds} rounds, {run.seconds:.0f} s", aloud=True)

    def close(self, title: str) -> None:
        """A comparison has ended, and is shown elsewhere."""
        self.cells.pop(title, None)

    def _grid(self, title: str) -> Grid:
        """A row for each run's name, a column for each seed."""
        cells = self.cells.get(title, {})
        seeds = sorted({seed for _, seed in cells})
        grid = Grid("method", *(f"seed {seed}" for seed in seeds), title=title)
        for name in dict.fromkeys(name for name, _ in cells):
            grid.add_row(name, *(cells.get((name, seed), "") for seed in seeds))
        return grid

    def _set(self, title: str, name: str, seed: int, text: str, aloud: bool) -> None:
        self.cells.setdefault(title, {})[name, seed] = text
        if aloud and not self.console.is_terminal:
            self._spoken = perf_counter()
            self.console.print(f"{title}: {name}, seed {seed}: {text}", markup=False)
