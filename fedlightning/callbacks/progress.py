"""What a run says of itself: what will run, how far it is (a bar in a terminal, plain lines elsewhere), and how it went."""

from __future__ import annotations

import inspect
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from fedlightning._checked import checked
from fedlightning.callbacks.base import Callback, CohortResult
from fedlightning.callbacks.story import Story, clock, opening
from fedlightning.errors import ConfigurationError, shown
from fedlightning.method import Round

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_EVALUATIONS = 1.0
_SECONDS_OF_SILENCE = 15.0


class RoundProgress(Callback):
    """Says what will run and why, how far it is and how long it will take, and how it went.

    Before the first round: the method, the data, the rounds, how they are executed and why so, and the folder. Then rounds, the
    latest metrics, clients per second and the time left: a bar in a terminal, with as much beside it as there is room for, and
    elsewhere plain lines, e.g. `round 12/50  train/loss 1.234  test/accuracy 0.4312  83 clients/s  ETA 0:42`. Such a line comes
    each five seconds at most, or each second for evaluations; where a round or an evaluation takes longer, a line each fifteen
    seconds says how far it is. After the last round: the time, the bytes, the metric that is watched, the folder, and what looks
    at it and goes on with it.

    The time left is known after the second round, since the first one does what is done once; after the first, if that took
    a minute.

    Args:
        refresh_rate: how often the bar is drawn, in 1/s.
        metrics: names of the metrics to show, where they are logged.
        console: where to show it; None for the standard output.
        story: whether to say what will run and how it went, too.
        goes_on: gives the command that goes on with the run; None for the call in Python.

    Raises:
        ConfigurationError: `refresh_rate` is not positive, or `goes_on` cannot be called with the trainer.
    """

    logs = ()

    @checked(refresh_rate="(0, inf)")
    def __init__(
        self,
        refresh_rate: float = 4.0,
        metrics: Sequence[str] = ("train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy"),
        console: Console | None = None,
        story: bool = True,
        goes_on: Callable[..., str] | None = None,
    ) -> None:
        self.refresh_rate, self.metrics, self.console = refresh_rate, tuple(metrics), console
        if goes_on is not None and not _takes_one(goes_on):
            raise ConfigurationError(
                f"`goes_on` of RoundProgress must be a function of the trainer that gives a command, but is {shown(goes_on)}; "
                "leave it out for the call in Python."
            )
        self.story, self.goes_on = story, goes_on
        self._pace = _Pace()
        self._told: Story | None = None
        self._display: _Bar | _Lines | None = None
        self._participants = 1
        self._evaluated = False

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Say what will run, and open the display."""
        console = self.console or Console()
        self._pace, self._told = _Pace(), Story(trainer) if self.story else None
        if self.story and trainer.round < trainer.max_rounds:
            _print(console, *opening(trainer))
        self._display = _Bar(console, trainer, self.refresh_rate) if console.is_interactive else _Lines(console)

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """Note how many clients there are to come."""
        self._participants = round.num_participants
        self._pace.on_round_start(trainer.strategy.compile_seconds)

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Advance by the cohort's clients."""
        self._pace.clients += len(cohort.clients)
        if self._display is not None:
            self._display.advance(trainer, len(cohort.clients) / self._participants)
            self._display.stay(trainer, f"{self._pace.clients} of {self._participants} clients have trained")

    def on_evaluation_progress(self, trainer: FederatedTrainer, done: int, total: int) -> None:
        """Show how far the evaluation is."""
        if self._display is not None:
            self._display.stay(trainer, f"{done:,} of {total:,} examples are evaluated")

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Show an evaluation before the first round now, any other with its round."""
        self._evaluated = True
        if self._told:
            self._told.note(metrics)
        if trainer.round == trainer.start_round:
            self._show(trainer)

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Show the round."""
        self._pace.on_round_end(trainer.strategy.compile_seconds)
        if self._told:
            self._told.note(metrics)
        self._show(trainer)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Close the display, and say why the run was stopped, if it was, and how it went."""
        if self._display is None:
            return
        if self._evaluated:  # after the last round, since the run ended between evaluations
            self._show(trainer)
        self._display.close(trainer, self._text(trainer))
        if trainer.should_stop and trainer.stop_reason:
            _print(self._display.console, f"stopped after round {trainer.round}: {trainer.stop_reason}")
        if self._told:
            _print(self._display.console, *self._told.ending(self.goes_on))
        self._display = None

    def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
        """Close the display."""
        if self._display is not None:
            self._display.close(trainer, self._text(trainer))
            self._display = None

    def _show(self, trainer: FederatedTrainer) -> None:
        if self._display is not None:
            self._display.show(trainer, self._text(trainer), self._evaluated)
        self._evaluated = False

    def _text(self, trainer: FederatedTrainer) -> RoundText:
        """Latest metrics, clients per second and time left, as far as they are known."""
        values = trainer.metrics
        text = RoundText([f"{name} {values[name]:.4g}" for name in self.metrics if name in values])
        if self._pace.is_known:
            rate = self._pace.clients_per_second
            text.rate = f"{rate:,.0f} clients/s" if rate >= 10 else f"{rate:.2g} clients/s"
            text.left = f"ETA {clock((trainer.max_rounds - trainer.round) * self._pace.seconds_per_round)}"
        return text


@dataclass
class RoundText:
    """What is shown beside the round.

    Attributes:
        metrics: each with its name.
        rate: clients per second.
        left: the time left.
    """

    metrics: list[str]
    rate: str = ""
    left: str = ""

    def line(self) -> str:
        """All of it."""
        return "  ".join(filter(None, (*self.metrics, self.rate, self.left)))

    def within(self, width: int) -> str:
        """As much as there is room for: the time left, then the first and the last metric, the rate and the other metrics."""
        shown = ""
        for part in dict.fromkeys((self.left, *self.metrics[:1], *self.metrics[-1:], self.rate, *self.metrics)):
            longer = f"{shown}  {part}" if shown else part
            shown = longer if len(longer) <= width else shown
        return shown


_SECONDS_OF_A_LONG_ROUND = 60.0
"""From which on what is done once in the first round does not matter for the pace: loading code, allocating, tracing."""


class _Pace:
    """The time and the clients of the latest 32 rounds, from the end of one to the end of the next, less what compiling took.

    The first round counts only until there is a second one.
    """

    def __init__(self) -> None:
        self.rounds: deque[tuple[float, int]] = deque(maxlen=32)
        self._finished = 0
        self.clients = 0
        self._mark: float | None = None
        self._compiled = 0.0

    def on_round_start(self, compiled: float) -> None:
        self.clients = 0
        if self._mark is None:
            self._mark, self._compiled = perf_counter(), compiled

    def on_round_end(self, compiled: float) -> None:
        now = perf_counter()
        seconds = now - (self._mark or now) - (compiled - self._compiled)
        if self._finished == 1:
            self.rounds.clear()
        self.rounds.append((max(seconds, 0.0), self.clients))
        self._finished += 1
        self._mark, self._compiled = now, compiled

    @property
    def is_known(self) -> bool:
        """Whether the rounds so far tell how long the others will take."""
        return self._finished > 1 or (self._finished == 1 and self.rounds[0][0] >= _SECONDS_OF_A_LONG_ROUND)

    @property
    def seconds_per_round(self) -> float:
        """The mean, each round counted as ten times the median at most, so that one hiccup does not spoil it."""
        seconds = [duration for duration, _ in self.rounds]
        most = 10 * statistics.median(seconds)
        return statistics.fmean(min(duration, most) for duration in seconds)

    @property
    def clients_per_second(self) -> float:
        return statistics.fmean(clients for _, clients in self.rounds) / max(self.seconds_per_round, 1e-9)


class _Bar:
    """A bar in a terminal, advanced within a round too."""

    def __init__(self, console: Console, trainer: FederatedTrainer, refresh_rate: float) -> None:
        self.console, self._width = console, 16 if console.width >= 100 else 8
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=self._width),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            refresh_per_second=refresh_rate,
            expand=True,
        )
        label = _label(trainer)
        self._task: TaskID = self._bar.add_task(label, total=trainer.max_rounds, completed=trainer.round, text="")
        self._bar.start()

    def advance(self, trainer: FederatedTrainer, rounds: float) -> None:
        self._bar.advance(self._task, rounds)

    def stay(self, trainer: FederatedTrainer, how_far: str) -> None:
        if trainer.round == trainer.start_round:  # later the metrics are there
            self._bar.update(self._task, text=how_far)

    def show(self, trainer: FederatedTrainer, text: RoundText, evaluated: bool = False) -> None:
        label = _label(trainer)
        line = text.within(self.console.width - len(label) - self._width - 2)
        self._bar.update(self._task, completed=trainer.round, description=label, text=line)

    def close(self, trainer: FederatedTrainer, text: RoundText) -> None:
        self.show(trainer, text)
        self._bar.stop()


class _Lines:
    """Plain lines, not too many."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._round, self._time = -1, perf_counter()
        self._spoken = self._time

    def advance(self, trainer: FederatedTrainer, rounds: float) -> None:
        pass

    def stay(self, trainer: FederatedTrainer, how_far: str) -> None:
        if perf_counter() - max(self._time, self._spoken) >= _SECONDS_OF_SILENCE:
            _print(self.console, f"{_label(trainer)}  {how_far}")
            self._spoken = perf_counter()

    def show(self, trainer: FederatedTrainer, text: RoundText, evaluated: bool = False) -> None:
        ends = trainer.round == trainer.start_round or trainer.round >= trainer.max_rounds or trainer.should_stop
        wait = _SECONDS_BETWEEN_EVALUATIONS if evaluated else _SECONDS_BETWEEN_LINES
        if ends or perf_counter() - self._time >= wait:
            self._write(trainer, text)

    def close(self, trainer: FederatedTrainer, text: RoundText) -> None:
        if self._round != trainer.round and trainer.round > trainer.start_round:
            self._write(trainer, text)

    def _write(self, trainer: FederatedTrainer, text: RoundText) -> None:
        _print(self.console, f"{_label(trainer)}  {text.line()}".rstrip())
        self._round, self._time = trainer.round, perf_counter()


def _label(trainer: FederatedTrainer) -> str:
    return f"round {trainer.round}/{trainer.max_rounds}"


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _takes_one(function: Callable[..., str]) -> bool:
    """Whether a function can be called with one argument."""
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True
