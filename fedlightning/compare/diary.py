"""What a run of a comparison leaves beside its logs, so that it is known again and can go on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from time import perf_counter
from typing import Any

from fedlightning._atomic import remove_leftovers, written
from fedlightning._hashing import digest
from fedlightning.callbacks.base import Callback
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, SaveError, nearest
from fedlightning.method import FedMethod, hyperparameters
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer


class Diary(Callback):
    """Keeps `run.json`: what the run is, how far it came, and how long each piece of it took."""

    logs = ()

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], metric: str) -> None:
        self.path, self.name, self.metric = folder / "run.json", name, metric
        self.failure: str | None = None
        self._identity, self._pieces = identity, list(read_diary(folder).get("pieces", []))
        self._began = perf_counter()
        self._written = 0.0

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Begin a piece."""
        remove_leftovers(self.path.parent, f".{self.path.name}.*")
        self._pieces.append({"from": trainer.start_round, "to": trainer.start_round, "seconds": 0.0})
        self._write()

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Check that there is what is compared."""
        if self.metric not in metrics:
            raise ConfigurationError(
                f"`metric` of a comparison must be one of the evaluations', but is {self.metric!r}. "
                f"{nearest(self.metric, metrics)}"
            )

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


class Checked(Exception):
    """Everything is set up and checked."""


class Probe(Callback):
    """Ends a run before its first evaluation."""

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """End it."""
        raise Checked


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

    Raises:
        ConfigurationError: it holds one.
    """
    found, wanted = read_diary(folder).get("run", {}), json.loads(json.dumps(identity))
    differing = [key for key in wanted if found and found.get(key) != wanted[key]]
    if differing:
        given = ", ".join(f"`{key}` {found.get(key)!r} instead of {wanted[key]!r}" for key in differing)
        raise ConfigurationError(
            f"{folder} must hold the same run as before, but it has {given}; choose another folder, or move it away."
        )


def identify_run(method: FedMethod, trainer: FederatedTrainer) -> dict[str, Any]:
    """What determines a run but its problem."""
    return {
        "method": type(method).__name__,
        **{f"method/{name}": value for name, value in hyperparameters(method).items()},
        "seed": trainer.seed,
        "rounds": trainer.max_rounds,
        "clients_per_round": repr(trainer._participation),
        "evaluate_every": trainer.evaluate_every,
        "evaluate_on": list(trainer.evaluate_on),
        "sampler": repr(trainer.sampler),
        "stragglers": repr(trainer.stragglers),
    }


def identify_problem(task: FederatedTask, data: FederatedDataModule) -> dict[str, Any]:
    """The start model and the data, by hashes."""
    splits = [data.split_fingerprint(name) for name in ("val", "test")]
    return {
        "task": f"{type(task).__name__}({type(task.model).__name__})",
        "start": digest(task.state_dict().values()),
        "data": f"{type(data).__name__} {digest(data.train)} {splits}",
        "partition": data.clients.fingerprint,
        "batches": list(astuple(data.batching)),
        "augmentation": f"{type(data.augmentation).__name__} {data.fingerprint}",
    }


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
