"""What a run of a comparison leaves beside its logs, so that it is known again and can go on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from fedlightning._atomic import remove_leftovers, written
from fedlightning.callbacks.base import Callback
from fedlightning.errors import ConfigurationError, SaveError, nearest
from fedlightning.server.round_state import difference
from fedlightning.trainer import FederatedTrainer


@dataclass(frozen=True)
class Progress:
    """An evaluation of a run that goes on.

    Attributes:
        name: of the run.
        seed: of the run.
        round: finished rounds.
        rounds: in all.
        value: of the metric that is compared.
    """

    name: str
    seed: int
    round: int
    rounds: int
    value: float


class Diary(Callback):
    """Keeps `run.json`: what the run is, how far it came, and how long each piece of it took; reports its evaluations."""

    logs = ()

    def __init__(
        self,
        folder: Path,
        name: str,
        seed: int,
        identity: Mapping[str, Any],
        metric: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.path, self.name, self.seed, self.metric = folder / "run.json", name, seed, metric
        self._report = report
        self.failure: str | None = None
        self._identity, self._pieces = identity, list(read_diary(folder).get("pieces", []))
        self._began = perf_counter()
        self._written = 0.0

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Begin a piece."""
        remove_leftovers(self.path.parent, f".{self.path.name}.*")
        began = trainer.start_round
        self._pieces.append({"from": began, "to": began, "seconds": 0.0, "runner": trainer.strategy.asked})
        self._write()

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Check that there is what is compared, and report it."""
        if self.metric not in metrics:
            raise ConfigurationError(
                f"`metric` of a comparison must be one of the evaluations', but is {self.metric!r}. "
                f"{nearest(self.metric, metrics)}"
            )
        self._report(Progress(self.name, self.seed, trainer.round, trainer.max_rounds, metrics[self.metric]))

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Note how far the run came, on disk at most once a second."""
        self._note(trainer)
        if perf_counter() - self._written > 1:
            self._write()

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Note how far the piece came."""
        self._note(trainer)
        self._write()

    def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
        """Note how far the piece came before it failed."""
        self.on_fit_end(trainer)

    def diverged(self, failure: str) -> None:
        """Note why the run ended early."""
        self.failure = failure
        self._write()

    def close(self) -> None:
        """Note that the run is finished."""
        self._write(finished=True)

    def _note(self, trainer: FederatedTrainer) -> None:
        self._pieces[-1] |= {"to": trainer.round, "seconds": perf_counter() - self._began}

    def _write(self, finished: bool = False) -> None:
        content = {"name": self.name, "finished": finished, "failure": self.failure, "pieces": self._pieces}
        write(self.path, json.dumps({**content, "run": self._identity}, indent=1))
        self._written = perf_counter()


def read_diary(folder: Path) -> dict[str, Any]:
    """The content of a run's `run.json`; empty where there is none.

    Raises:
        ConfigurationError: it is damaged.
    """
    path = folder / "run.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if os.path.isfile(path) else {}
    except ValueError as error:
        raise ConfigurationError(
            f"{path} must say what run it is, but cannot be read ({error}); move {folder} away and run it again."
        ) from error
    return content


def check_folder(folder: Path, name: str) -> None:
    """Check that a folder can be written, or made, and make nothing.

    Args:
        folder: it, or what it will be.
        name: of the argument that names it, for the message.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except FileNotFoundError:
        check_folder(folder.absolute().parent, name)
    except OSError as error:
        raise ConfigurationError(
            f"{name} must be a folder that can be written, but {folder} is not ({error.strerror}); choose another one, or "
            "change its permissions."
        ) from error


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a folder holds no other run.

    Args:
        folder: of a run; one that holds none is taken.
        identity: what the run must be, as far as it is known.

    Raises:
        ConfigurationError: it holds another one.
    """
    found = read_diary(folder).get("run")
    wanted = _flat(identity)
    if found and (unlike := difference(_flat(found), wanted, wanted)):
        name, there, here = unlike
        raise ConfigurationError(
            f"{folder} must hold the same run as before, but its `{name}` is {there}, and {here} is asked for; choose another "
            "folder, or move it away."
        )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters each by itself, so that a message names the one that differs."""
    own = {f"hyperparameters/{name}": value for name, value in identity["hyperparameters"].items()}
    return {**{name: value for name, value in identity.items() if name != "hyperparameters"}, **own}


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        SaveError: the disk is full, or the folder cannot be written; what was there before is whole.
    """
    try:
        with written(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SaveError(
            f"What a comparison leaves must be written, but {path} cannot be ({error.strerror or error}); make room and run it "
            "again, which goes on where it was."
        ) from error
