"""What a run logs, and the folder that it writes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from fedlightning._locks import locked
from fedlightning.errors import ConfigurationError, add_notes, raise_first
from fedlightning.loggers import Rows, check_writable, claim_version, run_loggers


def open_folder(
    logger: bool | Logger | Sequence[Logger], method: str, written: Collection[Path | None], opened: ExitStack
) -> tuple[Path, Rows]:
    """Make the loggers and the folder of a run, and lock it: until `opened` is closed, no other run writes there.

    Args:
        logger: as `FederatedTrainer` takes it.
        method: the method's name, which names the folder where no logger has one.
        written: the folders that the callbacks write to; None stands for the run's own folder.
        opened: closes the loggers and unlocks the folders at the end.

    Returns:
        The run's folder, which is the loggers', or `logs/<method>/version_N` where they have none and a callback writes to it;
        and what writes to all loggers.

    Raises:
        ConfigurationError: a folder cannot be written, or another run writes to it.
    """
    rows = Rows(_made(logger, method))
    own = [Path(str(each.log_dir)) for each in rows.loggers if each.log_dir]
    unnamed = None in written and not own
    folder = own[0] if own else Path("logs")
    if unnamed:
        folder = Path("logs", method)
        folder /= claim_version(folder)
    if None in written or rows.loggers:
        check_writable(folder)
        if logger is True or unnamed:  # otherwise whoever made the loggers made the folder
            opened.callback(_remove_if_empty, folder)
        opened.enter_context(locked(folder))
    for other in {other for other in written if other is not None}:
        with suppress(OSError):  # the callback says so
            other.mkdir(parents=True, exist_ok=True)
            opened.enter_context(locked(other))
    opened.push(partial(_close, rows))
    return folder, rows


def _close(rows: Rows, kind: object, error: BaseException | None, trace: object) -> None:
    failures = rows.close()
    if error is None:
        raise_first(failures)
    else:
        add_notes(error, failures)


class RunLog:
    """What is logged: the row of the current round, and the latest value of every metric.

    Attributes:
        metrics: the latest values by name.
        row: of the current round.
        own: the names of the run's metrics. All others are the callbacks'.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.row: dict[str, float] = {}
        self.own: set[str] = set()

    def add(self, metrics: Mapping[str, float], *, own: bool = False) -> None:
        """Add numbers to the row.

        Raises:
            ConfigurationError: one is no number.
        """
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        self.metrics.update(numbers)
        self.row.update(numbers)
        if own:
            self.own.update(numbers)

    def later_than(self, row: Mapping[str, float]) -> dict[str, float]:
        """The entries of the row that an earlier copy of it lacks, or has from before they were logged again."""
        return {name: value for name, value in self.row.items() if name not in row or row[name] is not value}


def _made(logger: bool | Logger | Sequence[Logger], method: str) -> list[Logger]:
    if isinstance(logger, bool):
        return run_loggers(Path("logs", method)) if logger else []
    return [logger] if isinstance(logger, Logger) else list(logger)


def _number(name: str, value: Any) -> float:
    """A metric as it is logged.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"`log` of the trainer takes numbers, but {name!r} is {value!r:.80}; log a number, or write it elsewhere."
        ) from error


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that was refused."""
    with suppress(OSError):
        folder.rmdir()
