"""Runs that go on without their terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

_REPORT = "FEDLIGHTNING_REPORT_TO"


class Detach(Callback):
    """At the start of the first round, says so to the program that waits, and sends all output to output.txt."""

    logs = ()

    @staticmethod
    def wanted() -> bool:
        """Whether this program was started by `start_in_background`."""
        return _REPORT in os.environ

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """What is printed from now on is the run's; what was refused before was still shown."""
        detach(trainer.log_dir)


def detach(folder: Path) -> None:
    """Tell the waiting program the run's folder, and write standard output and error to `output.txt` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    report = int(os.environ.pop(_REPORT))
    sys.stdout.flush()
    sys.stderr.flush()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.write(report, os.fsencode(folder))
    os.close(report)


def start_in_background(command: Sequence[str]) -> tuple[int, Path | None]:
    """Start a program in a session of its own, and wait until it has called `detach` or has ended.

    Closing the terminal, or Ctrl-C in it, no longer reaches the program; SIGTERM does.

    Returns:
        The process id and the run's folder; or the exit status and None, if it ended before.
    """
    read, write = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(write,),
        env={**os.environ, _REPORT: str(write)},
    )
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            folder = pipe.read()
    except KeyboardInterrupt:
        process.terminate()
        raise
    return (process.pid, Path(os.fsdecode(folder))) if folder else (process.wait(), None)
