"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from fedlightning.compare.diary import Progress
from fedlightning.compare.runs import Run, RunMaker
from fedlightning.compare.table import Outcome
from fedlightning.errors import ConfigurationError, FedLightningError, first_line, shown
from fedlightning.methods import working_directory

if TYPE_CHECKING:
    from fedlightning.compare.comparison import Comparison

Key = tuple[int, int]
"""Whose run it is: a comparison's position, and the run's index there."""

_CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
_PATIENCE = 30.0
"""Seconds that processes get to end in, where they were told to end at once."""


class Processes:
    """Processes that make runs, each one after another; they are started when there is a run for them.

    A process has a session of its own, so that Ctrl-C reaches it through this one alone: the first one as SIGTERM, with which a
    run ends after its round, a second one as SIGINT, with which it ends at once. If this process dies, the others end after
    their rounds. To be used as a context, which ends them all.

    Args:
        comparisons: whose runs they make.
        jobs: how many there are at most.

    Attributes:
        stopping: whether they were told to stop.

    Raises:
        ConfigurationError: what makes the runs cannot be sent to another process.
    """

    def __init__(self, comparisons: Sequence[Comparison], jobs: int) -> None:
        self._payload, self._jobs = _pickled(comparisons, jobs), jobs
        self._all, self.stopping = list[_Process](), False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End them: at once after a second Ctrl-C, else after their rounds."""
        at_once = isinstance(error, KeyboardInterrupt) and self.stopping and bool(self.busy)
        for process in self._all:
            process.end(signal.SIGINT if at_once else signal.SIGTERM)
            process.connection.close()  # one that waits ends, and none waits to be heard
        try:
            for process in self._all:
                process.join(_PATIENCE if at_once else None)
        except BaseException:
            for process in self._all:
                process.kill()
            raise

    @property
    def busy(self) -> Collection[Path]:
        """The folders of the runs that are being made."""
        return [process.run.folder for process in self._all if process.run is not None]

    @property
    def has_room(self) -> bool:
        """Whether another run can be begun."""
        return not self.stopping and len(self.busy) < self._jobs

    def begin(self, key: Key, run: Run) -> None:
        """Let a process that has nothing to do make a run."""
        free = next((process for process in self._all if process.run is None), None)
        if free is None:
            free = _Process(len(self._all), self._jobs, self._payload)
            self._all.append(free)
        free.begin(key, run)
        if self.stopping:  # a signal came meanwhile
            free.end(signal.SIGTERM)

    def wait(self) -> Iterator[tuple[Key, Progress | Outcome]]:
        """What is told next, by one or more processes; nothing of those that were told to stop.

        Raises:
            FedLightningError: a process has died.
            Exception: what a run ended with.
        """
        busy = {process.connection: process for process in self._all if process.run is not None}
        for connection in wait(list(busy)):
            process = busy[connection]  # type: ignore[index]
            key, news = process.hear(self.stopping)
            if news is not None:
                yield key, news

    def stop(self, reason: str) -> None:
        """Tell all to end after their rounds; called by a handler of signals."""
        self.stopping = True
        for process in list(self._all):
            process.end(signal.SIGTERM)


class _Process:
    """A process.

    Args:
        number: counted from 0.
        jobs: how many there are at most.
        payload: what makes the runs, pickled.

    Attributes:
        run: what it makes now.
        connection: to it.
    """

    def __init__(self, number: int, jobs: int, payload: bytes) -> None:
        self.run: Run | None = None
        self._key: Key = (0, 0)
        self.connection, other = _CONTEXT.Pipe()
        arguments = (other, payload, _Surroundings.here())
        self._process = _CONTEXT.Process(target=_serve, args=arguments, name=f"job {number}")
        with _on_cores(_share(number, jobs)):
            self._process.start()
        other.close()

    def begin(self, key: Key, run: Run) -> None:
        """Let it make a run."""
        self._key, self.run = key, run
        with contextlib.suppress(OSError):  # it has died, which `hear` finds
            self.connection.send_bytes(pickle.dumps((key[0], run)))

    def hear(self, stopping: bool) -> tuple[Key, Progress | Outcome | None]:
        """What it says; None where it has stopped because it was told to.

        Raises:
            FedLightningError: it has died.
            Exception: what its run ended with.
        """
        run = self.run
        try:
            news, text = self.connection.recv()
        except (EOFError, OSError):
            news, text = self._death(run, stopping), ""
        if not isinstance(news, Progress):
            self.run = None
        if isinstance(news, BaseException) and not (stopping and isinstance(news, KeyboardInterrupt)):
            raise news from (_Elsewhere(text) if text else None)
        return self._key, None if isinstance(news, BaseException) else news

    def _death(self, run: Run | None, stopping: bool) -> BaseException:
        self._process.join()
        if stopping:
            return KeyboardInterrupt()
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with status {code}"
        return FedLightningError(
            f"The process of a run must live until the run ends, but that of {run} {how}; see what it has printed. The same "
            "call goes on from its last checkpoint."
        )

    def end(self, number: signal.Signals) -> None:
        """Tell it to end, if it makes a run."""
        if self.run is not None and self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def join(self, seconds: float | None) -> None:
        """Wait until it has ended; kill it after some seconds, if they are given."""
        self._process.join(seconds)
        self.kill()

    def kill(self) -> None:
        """Kill it, if it lives."""
        if self._process.exitcode is None:
            self._process.kill()
        self._process.join()


class _Elsewhere(Exception):
    """Shows where an error was raised in another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# -- what is sent ------------------------------------------------------------------------------------------------------
def _pickled(comparisons: Sequence[Comparison], jobs: int) -> bytes:
    """What makes the runs.

    Raises:
        ConfigurationError: it cannot be sent to another process.
    """
    try:
        return pickle.dumps([(comparison.maker, comparison.methods) for comparison in comparisons])
    except Exception:
        for comparison in comparisons:
            for name, value in {"methods": comparison.methods, **comparison.maker.given}.items():
                _check_pickles(name, value, jobs)
        raise


def _check_pickles(name: str, value: Any, jobs: int) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise ConfigurationError(
            f"`{name}` of a comparison must be such that it can be sent to another process for `jobs={jobs}`, but is "
            f"{shown(value)}, of which pickle says: {first_line(error)}; give objects and functions that stand at the top of a "
            "module, or use `jobs=1`."
        ) from error


def _unpickled(content: bytes) -> Any:
    """What was sent; a module of its own may lie in the working directory.

    Raises:
        ConfigurationError: it cannot be found again in this process.
    """
    try:
        with working_directory():
            return pickle.loads(content)
    except Exception as error:
        raise ConfigurationError(
            "What a comparison is given must be such that another process finds it again for more than one of `jobs`, but there "
            f"{type(error).__name__} is raised: {first_line(error)}; define it in a module, or use `jobs=1`."
        ) from error


@dataclass(frozen=True)
class _Surroundings:
    """What decides numbers beside a run's settings, or what is said, and is set for a whole process."""

    threads: int
    dtype: torch.dtype
    matmul: str
    deterministic: bool
    level: int

    @classmethod
    def here(cls) -> _Surroundings:
        """Those of this process."""
        return cls(
            torch.get_num_threads(),  # not the share of the cores: a sum over a long vector depends on it by rounding
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            logging.getLogger("lightning.pytorch").level,
        )

    def take(self) -> None:
        """Make them those of this process."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul)
        torch.use_deterministic_algorithms(self.deterministic)
        logging.getLogger("lightning.pytorch").setLevel(self.level)


def _share(number: int, jobs: int) -> set[int]:
    """The cores of a process; none where they cannot be chosen."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs >= len(cores):
        return {cores[number % len(cores)]} if cores else set()
    return set(cores[number * len(cores) // jobs : (number + 1) * len(cores) // jobs])


@contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    """A process that is started inside has these cores from its start, by which libraries count their threads."""
    before = os.sched_getaffinity(0) if cores else set()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)


# -- in the other process ----------------------------------------------------------------------------------------------
def _serve(connection: Connection, payload: bytes, surroundings: _Surroundings) -> None:
    """Make the runs that are asked for, until nobody asks any more."""
    if hasattr(os, "setsid"):
        os.setsid()
    surroundings.take()
    _end_with_parent()
    makers: list[RunMaker] = []
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        while True:
            content = connection.recv_bytes()
            connection.send(_answer(makers, payload, content, partial(_report, connection)))


def _answer(
    makers: list[RunMaker], payload: bytes, content: bytes, report: Callable[[Progress], None]
) -> tuple[Outcome | BaseException, str]:
    """What comes of a run, or the error that it ended with and where that was raised."""
    try:
        if not makers:
            makers += [maker for maker, _ in _unpickled(payload)]
        place, run = _unpickled(content)
        return makers[place].make(run, report), ""
    except BaseException as error:  # noqa: BLE001 - raised again where the run was asked for
        return _sendable(error), traceback.format_exc()


def _report(connection: Connection, progress: Progress) -> None:
    with contextlib.suppress(OSError):
        connection.send((progress, ""))


def _end_with_parent() -> None:
    """End after the round if the process that asks dies."""
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _sendable(error: BaseException) -> BaseException:
    """The error, or one that says the same and can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickle raises of every kind
        other = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", []):
            other.add_note(note)
        return other
    return error
