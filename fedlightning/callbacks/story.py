"""What a run says before its first round and after its last: some lines, in a terminal as in a log."""

from __future__ import annotations

import csv
import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger

from fedlightning.callbacks.checkpoint import ModelCheckpoint
from fedlightning.callbacks.monitor import Mode, Monitored

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

USUAL: tuple[tuple[str, Mode], ...] = (
    ("val/accuracy", "max"), ("test/accuracy", "max"), ("val/loss", "min"), ("test/loss", "min"), ("train/loss", "min"),
)  # fmt: skip
"""The metrics that a run is judged by where no callback watches one, and which way is better."""


class Course:
    """The last and the best value of a metric.

    Args:
        name: the metric's.
        mode: whether a smaller ("min") or a larger ("max") value is better.

    Attributes:
        last, best: the round and the value; None before the first value, and before the first that is a number.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self.name, self.mode = name, mode
        self.last: tuple[int, float] | None = None
        self.best: tuple[int, float] | None = None

    def add(self, round: int, value: float) -> None:
        """Take a round's value; of equal ones the first stays the best."""
        self.last = round, value
        better = self.best is None or (value > self.best[1] if self.mode == "max" else value < self.best[1])
        if better and not math.isnan(value):
            self.best = round, value

    def __str__(self) -> str:
        parts = [(self.last, ""), (self.best, "best ")]
        return f"{self.name} " + ", ".join(f"{what}{at[1]:.4g} after round {at[0]}" for at, what in parts if at)


class Story:
    """Notes what happens in a fit, for the lines after its last round.

    Args:
        trainer: the fit, which begins now.
    """

    def __init__(self, trainer: FederatedTrainer) -> None:
        self._trainer, self._began = trainer, perf_counter()
        self._compiled = trainer.strategy.compile_seconds  # before the first round
        self._sent = self._received = 0.0
        self._courses: dict[str, Course] = {}
        self._latest: tuple[int, Mapping[str, float]] = 0, {}

    def note(self, metrics: Mapping[str, float]) -> None:
        """Keep what an evaluation or a round logs; what callbacks add to the same mapping is kept, too."""
        self._settle()
        self._latest = self._trainer.round, metrics

    def _settle(self) -> None:
        """Take the latest metrics, which are complete by now."""
        round, metrics = self._latest
        for name, mode in self._judged_by():
            if name in metrics:
                self._courses.setdefault(name, Course(name, mode)).add(round, metrics[name])
        self._received += metrics.get("communication/down_bytes", 0.0)
        self._sent += metrics.get("communication/up_bytes", 0.0)
        self._latest = round, {}

    def ending(self, goes_on: Callable[[FederatedTrainer], str] | None = None) -> list[str]:
        """The lines after the last round.

        Args:
            goes_on: gives the command that goes on with the run; None for the call in Python.
        """
        self._settle()
        trainer = self._trainer
        done, compiled = trainer.round - trainer.start_round, trainer.strategy.compile_seconds
        took = f"{clock(perf_counter() - self._began + self._compiled)} for {counted(done, 'round')}"
        took += f", {clock(compiled)} of it to compile" if compiled >= 1 else ""
        took += f"; clients received {sized(self._received)} and sent {sized(self._sent)}"
        command = goes_on(trainer) if goes_on else _call_again(trainer)
        return closing(took, self._course(), folder_of(trainer), _draws(trainer), command)

    def _judged_by(self) -> list[tuple[str, Mode]]:
        """What callbacks watch, and then what is usual."""
        watching = [one for one in self._trainer.callbacks if isinstance(one, Monitored)]
        return [*((one.watched, one.mode) for one in watching if one.watched is not None), *USUAL]

    def _course(self) -> Course | None:
        """That of the metric which the run is judged by, the rounds before this fit included."""
        trainer = self._trainer
        name = next((name for name, _ in self._judged_by() if name in self._courses), None)
        if name is None or not trainer.start_round:
            return self._courses.get(name or "")
        own = self._courses[name]
        whole = read_course(trainer.log_dir, name, own.mode, trainer.start_round)
        for at in filter(None, (own.best, own.last)):
            whole.add(*at)
        return whole


# -- before the first round --------------------------------------------------------------------------------------------
def opening(trainer: FederatedTrainer) -> list[str]:
    """The lines before the first round: what will run, where, and why so."""
    folder = folder_of(trainer)
    return [
        _line("Method", _method(trainer)),
        _line("Data", _data(trainer)),
        _line("Rounds", _rounds(trainer)),
        _line("Runs", f"{trainer.strategy.describe()}; client state: {_client_state(trainer)}"),
        *([_line("Folder", str(folder))] if folder else []),
    ]


def _method(trainer: FederatedTrainer) -> str:
    """Its name, with its learning rate and the hyperparameters that are not its defaults."""
    method: Any = trainer.method
    values = [(field.name, getattr(method, field.name), field.default) for field in dataclasses.fields(method)]
    shown = [f"{name} {_shown(value)}" for name, value, usual in values if name == "lr" or value != usual]
    return f"{type(method).__name__} with {', '.join(shown)}"


def _data(trainer: FederatedTrainer) -> str:
    """Who owns how much, and what is evaluated."""
    data, sizes = trainer.data, trainer.data.clients.sizes
    least, middle, most = int(sizes.min()), int(sizes.median()), int(sizes.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,} (median {middle:,})"
    text = f"{data.name or type(data).__name__}: {counted(trainer.num_clients, 'client')} with {each} training examples"
    found = [(name, data.split_named(name)) for name in trainer.evaluate_on]
    splits = [f"{len(split[0].targets):,} {name}" for name, split in found if split is not None]
    if not (trainer.evaluate_every and splits):
        return f"{text}; not evaluated"
    often = "every round" if trainer.evaluate_every == 1 else f"every {trainer.evaluate_every} rounds"
    same = " (the test set is the training set)" if data.test is data.train and "test" in trainer.evaluate_on else ""
    return f"{text}; evaluated {often} on {', '.join(splits)}{same}"


def _rounds(trainer: FederatedTrainer) -> str:
    """How many, and what a client does in one."""
    which = f"{trainer.round + 1:,} to {trainer.max_rounds:,}" if trainer.round else f"{trainer.max_rounds:,}"
    batching = trainer.data.batching
    work = counted(batching.steps, "local step") if batching.steps else counted(batching.epochs or 1, "epoch")
    if trainer.method.local_steps(trainer.round) is not None:
        work = f"as many local steps as {type(trainer.method).__name__} asks for"
    size = f"in batches of {batching.size:,}" if batching.size else "on all its examples at once"
    slow = f"; {trainer.stragglers!r}" if trainer.stragglers else ""
    who = f"{trainer.clients_per_round:,} of {counted(trainer.num_clients, 'client')}"
    return f"{which}, in each {who}, with {work} {size}{slow}; {counted(trainer.layout.size, 'parameter')}"


def _client_state(trainer: FederatedTrainer) -> str:
    each = trainer.method.configure_client(trainer.state.server.x).nbytes
    if not each:
        return "none"
    most = each * trainer.num_clients
    return f"{sized(each)} a client, at most {sized(most)} in {trainer.state.memory.describe(most)}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- after the last round ----------------------------------------------------------------------------------------------
def closing(took: str, course: Course | None, folder: Path | None, draws: bool, command: str | None) -> list[str]:
    """The lines after the last round.

    Args:
        took: how long the run was, in words.
        course: of the metric that the run is judged by, if there is one.
        folder: of the run, if it has one.
        draws: whether TensorBoard's events lie there.
        command: what goes on with the run; None if nothing does.
    """
    lines = [
        ("Took", took),
        ("Metric", str(course) if course and course.last else None),
        ("Folder", folder and str(folder)),
        ("Look", f"tensorboard --logdir {shlex.quote(str(folder))}" if folder and draws else None),
        ("Go on", command),
    ]
    return [_line(head, text) for head, text in lines if text]


def rounds_to_go(trainer: FederatedTrainer) -> int:
    """The rounds in all of a run that goes on: those that were asked for, and twice as many where they are over."""
    return trainer.max_rounds if trainer.round < trainer.max_rounds else 2 * trainer.max_rounds


def read_course(folder: Path, name: str, mode: Mode, until: int | None = None) -> Course:
    """A metric's course in a run's metrics.csv, as far as that can be read.

    Args:
        folder: of the run.
        name: the metric's.
        mode: which way is better.
        until: the last round that counts; None for all.
    """
    course = Course(name, mode)
    with suppress(OSError, ValueError, csv.Error), (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = row.get("step") or ""
            if row.get(name) and step.isdecimal() and (until is None or int(step) <= until):
                course.add(int(step), float(row[name]))
    return course


def folder_of(trainer: FederatedTrainer) -> Path | None:
    """The run's folder; None where nothing is written."""
    writes = any(isinstance(one, ModelCheckpoint) and one.dirpath is None for one in trainer.callbacks)
    return trainer.log_dir if writes or any(logger.log_dir for logger in trainer.loggers) else None


def _draws(trainer: FederatedTrainer) -> bool:
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def _call_again(trainer: FederatedTrainer) -> str | None:
    """The call that goes on from the last checkpoint, if there is one."""
    paths = [one.last_model_path for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    path = next(filter(None, paths), None)
    if path is None:
        return None
    return f'FederatedTrainer(max_rounds={rounds_to_go(trainer)}, …).fit(…, ckpt_path="{path}")'


# -- words -------------------------------------------------------------------------------------------------------------
def _line(head: str, text: str) -> str:
    return f"{head:8}{text}"


def counted(number: int, noun: str) -> str:
    """E.g. "1 round", or "2,000 rounds"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def sized(count: float) -> str:
    """E.g. "3.2 MiB"."""
    power = min(int(math.log2(max(count, 1)) // 10), 4)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def clock(seconds: float) -> str:
    """E.g. "1:02:03", or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
