"""How a comparison is followed while it goes: a table in a terminal, lines elsewhere."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from fedlightning import Callback, FederatedTrainer
from fedlightning.compare import Outcome

PAUSE = 20.0
"""Seconds between the lines of a run that goes on."""


class Board:
    """The state of all runs of a point: a live table in a terminal, otherwise a line now and then.

    Args:
        title: above the table, or before each line.
        names: of the methods.
        seeds: of the runs.
        console: where to.
    """

    def __init__(self, title: str, names: Sequence[str], seeds: Sequence[int], console: Console | None = None) -> None:
        self.title, self.names, self.seeds = title, list(names), list(seeds)
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.cells: dict[tuple[str, int], str] = {}
        self._live = Live(get_renderable=self.grid, console=self.console, refresh_per_second=4)
        self._spoken = perf_counter()

    def __enter__(self) -> "Board":
        """Show the table."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave its last state on the screen."""
        if self.console.is_terminal:
            self._live.stop()

    def grid(self) -> Grid:
        """The table: a row for each method, a column for each seed."""
        grid = Grid("method", *(f"seed {seed}" for seed in self.seeds), title=self.title)
        for name in self.names:
            grid.add_row(name, *(self.cells.get((name, seed), "") for seed in self.seeds))
        return grid

    def callbacks(self, name: str, seed: int) -> list[Callback]:
        """What follows a run."""
        return [_Follow(self, name, seed)]

    def goes_on(self, name: str, seed: int, text: str) -> None:
        """A run was evaluated."""
        self._set(name, seed, text, aloud=perf_counter() - self._spoken > PAUSE)

    def ended(self, run: Outcome) -> None:
        """A run is finished, now or before."""
        done = "diverged" if run.failure else f"{run.final():.4f}"
        self._set(run.name, run.seed, f"{done}, {run.rounds} rounds, {run.seconds:.0f} s", aloud=True)

    def _set(self, name: str, seed: int, text: str, aloud: bool) -> None:
        self.cells[name, seed] = text
        if aloud and not self.console.is_terminal:
            self._spoken = perf_counter()
            self.console.print(f"{self.title}: {name}, seed {seed}: {text}", markup=False)


class _Follow(Callback):
    def __init__(self, board: Board, name: str, seed: int) -> None:
        self.board, self.name, self.seed = board, name, seed

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        accuracy = f"{metrics['test/accuracy']:.4f}"
        self.board.goes_on(self.name, self.seed, f"{accuracy}, round {trainer.round} of {trainer.max_rounds}")
