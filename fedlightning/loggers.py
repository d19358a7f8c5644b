"""Lightning's loggers, made to share one folder and to take up a run where it was left."""

from __future__ import annotations

import csv
import importlib
import itertools
import math
import os
import re
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from fedlightning._atomic import remove_leftovers, written
from fedlightning._checked import checked
from fedlightning.errors import ConfigurationError, SaveError


@checked()
def run_loggers(root: str | Path, name: str | None = None) -> list[Logger]:
    """TensorBoard's and CSV's loggers, both writing to one new folder.

    Args:
        root: where the runs of one setting lie, e.g. `logs/<recipe>/<partition>/<method>`.
        name: the run's folder in `root`; None for `version_N` with the next free N. The folder of an earlier run is
            continued: what it logged before the first round that is logged now stays, the rest is replaced.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    root = Path(root)
    check_writable(root)
    version = name or claim_version(root)
    check_writable(root / version)
    return [RunTensorBoardLogger(root, version=version), RunCSVLogger(root, version=version)]


class Rows:
    """The loggers of a fit. Each is given every row, whichever of them fails.

    Attributes:
        status: how the run ended; "success" and "failed" are the two that all loggers know.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers, self.status = list(loggers), "failed"

    def write(self, row: Mapping[str, float], step: int) -> list[Exception]:
        """Log a round's row, or, with a step that was logged before, what joins it; what the loggers raised."""
        return self._each(lambda logger: _log(logger, row, step), f"could not log round {step}")

    def write_again(self, row: Mapping[str, float], step: int) -> list[Exception]:
        """Log the row of the round that a run goes on from, in place of what the run logged that was stopped after it.

        That is the same, but for what was logged at its end alone; a logger that cannot take a row back is left as it is.
        """
        return self._each(lambda logger: _log_again(logger, row, step), f"could not go on after round {step}")

    def close(self) -> list[Exception]:
        """Finish the logs."""
        return self._each(lambda logger: logger.finalize(self.status), "could not be closed")

    def _each(self, act: Callable[[Logger], object], failed: str) -> list[Exception]:
        failures: list[Exception] = []
        for logger in self.loggers:
            try:
                act(logger)
            except OSError as error:
                failures.append(
                    SaveError(
                        f"What a run logs must be written, but {type(logger).__name__} {failed} ({error}); make room or choose "
                        "another folder, and go on from the last checkpoint."
                    )
                )
            except Exception as error:  # noqa: BLE001 - raised once the round is saved
                error.add_note(f"({type(logger).__name__} {failed})")
                failures.append(error)
        return failures


def _log(logger: Logger, row: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(row), step=step)
    logger.save()


def _log_again(logger: Logger, row: Mapping[str, float], step: int) -> None:
    if isinstance(logger, RunTensorBoardLogger | RunCSVLogger) and logger.has_logged:
        _log(logger, row, step)


def log_hyperparameters(loggers: Iterable[Logger], hyperparameters: Mapping[str, Any]) -> None:
    """Give a flat dictionary to each logger; what is no number, string, bool or None is logged as its text."""
    plain = (bool, int, float, str, type(None))
    flat = {name: value if isinstance(value, plain) else str(value) for name, value in hyperparameters.items()}
    for logger in loggers:
        logger.log_hyperparams(flat)


def check_writable(folder: Path, what: str = "The log folder") -> None:
    """Make a folder and check that files can be written there.

    Args:
        folder: which.
        what: it is, for the message.

    Raises:
        ConfigurationError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{what} must be writable, but {folder} is not ({error.strerror}); choose another one, or change "
            "its permissions."
        ) from error


def next_version(root: Path) -> str:
    """`version_N` with N one more than the largest in `root`, or 0."""
    found = (path.name.removeprefix("version_") for path in root.glob("version_*"))
    return f"version_{max((int(number) for number in found if number.isdecimal()), default=-1) + 1}"


def latest_run(root: Path) -> Path | None:
    """Find the run's folder in `root` whose `checkpoints/last.ckpt` is the newest; None where there is none."""
    newest = max(root.glob("*/checkpoints/last.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path), default=None)
    return None if newest is None else newest.parent.parent


def claim_version(root: Path) -> str:
    """Make the folder of a run that has no name, and give its name: `version_N` with the next free N."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        version = next_version(root)
        try:
            (root / version).mkdir()
        except FileExistsError:  # another run was quicker
            continue
        except OSError:  # check_writable says so
            pass
        return version


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's, opened by the first metrics, with a line for each run on TensorBoard's page of hyperparameters.

    A resumed run hides the points that the interrupted one logged after the round it resumes from. No list of
    hyperparameters and metrics is written, so TensorBoard makes it of all runs; with such a list it takes that of one
    run, which lacks the other methods' hyperparameters.

    Args:
        root: where the runs lie.
        version: the run's folder in `root`.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        super().__init__(root, name="", version=version, default_hp_metric=False, flush_secs=10)
        self._begun = False

    @property
    def has_logged(self) -> bool:
        """Whether an earlier start of the run left its events."""
        return bool(_event_files(Path(self.log_dir)))

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Keep the hyperparameters until the first metrics; `metrics` are ignored."""
        super().log_hyperparams(params)
        if self._begun:
            self._write_session()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a point of each curve."""
        if not self._begun:
            self._begun = True
            _put_before(Path(self.log_dir), int(time.time()))
            # tensorboardX names a file by the second alone: one that is resumed at once would overwrite its own past.
            self._kwargs.update(purge_step=step, filename_suffix=f".{time.time_ns()}")
            self._write_session()
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is still in memory."""
        if self._experiment is not None:
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; metrics logged after this open another one."""
        super().finalize(status)
        self._experiment, self._begun = None, False

    def _write_session(self) -> None:
        writer = self.experiment  # torch's or tensorboardX's; the summaries must be of the same kind
        summary = importlib.import_module(type(writer).__module__.replace("writer", "summary"))
        _, session, _ = summary.hparams(dict(self.hparams), {})
        writer.file_writer.add_summary(session)


_EVENTS = re.compile(r"(events\.out\.tfevents\.)(\d+)(\..*)")


def _event_files(folder: Path) -> list[tuple[int, Path]]:
    """The files of a run's starts, with the second in which each began, as TensorBoard reads them: by their names."""
    named = ((_EVENTS.fullmatch(path.name), path) for path in sorted(folder.glob("events.out.tfevents.*")))
    return [(int(match[2]), path) for match, path in named if match]


def _put_before(folder: Path, now: int) -> None:
    """Rename the files of earlier starts that do not begin before now by their names, as where the clock was put back since.

    TensorBoard reads by name, and drops the points that it has read and a resumed run replaces: that run's must come last.
    """
    bound = now
    for second, path in reversed(_event_files(folder)):
        if second >= bound:
            second = max(bound - 1, 0)
            path.rename(path.with_name(_EVENTS.sub(rf"\g<1>{second:010d}\g<3>", path.name)))
        bound = second


class RunCSVLogger(CSVLogger):
    """Lightning's, but in a folder with other files, writing each row at once, and keeping a resumed run's rows.

    What is logged for a round a second time joins its row. A file that cannot be read is put aside, with a line.

    Args:
        root: where the runs lie.
        version: the run's folder in `root`.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        super().__init__(root, name="", version=version, flush_logs_every_n_steps=1)

    @property
    def has_logged(self) -> bool:
        """Whether an earlier start of the run left its rows."""
        return os.path.exists(os.path.join(self.log_dir, ExperimentWriter.NAME_METRICS_FILE))

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer of `metrics.csv` and `hparams.yaml`."""
        if not isinstance(self._experiment, ExperimentWriter):
            self._experiment = _ResumableWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; the next metrics are those of a resumed run."""
        super().finalize(status)
        self._experiment = None


class _ResumableWriter(ExperimentWriter):
    """Rows before a step that is logged stay, the others go; Lightning's deletes the file with a warning."""

    def _check_log_dir_exists(self) -> None:
        remove_leftovers(Path(self.log_dir), f".{self.NAME_METRICS_FILE}.*")
        self._last: tuple[float, dict[str, float]] = (math.inf, {})  # the last row, and its step

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        last, row = self._last
        if step <= last and os.path.exists(self.metrics_file_path):
            kept = [row for row in self._rows() if int(row["step"]) < step]
            self.metrics_keys = sorted({name for row in kept for name, value in row.items() if value})
            self._write(self.metrics_keys, [{name: row[name] for name in self.metrics_keys} for row in kept])
        self.metrics = []  # one that could not be written is here again, or is given up
        self._last = (step, {**row, **metrics_dict} if step == last else dict(metrics_dict))
        super().log_metrics(self._last[1], step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self._rows())

    def _rows(self) -> list[dict[str, str]]:
        """The whole rows; where more than the last one is torn, as a kill leaves it, the file is kept beside."""
        try:
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                found = list(reader)
            if "step" not in (reader.fieldnames or ["step"]):
                raise ValueError("it has no column `step`")
        except (IsADirectoryError, ValueError, csv.Error) as error:
            self._put_aside(error)
            return []
        whole = [None not in row and None not in row.values() and row["step"].isdecimal() for row in found]
        if not all(whole[:-1]):
            self._put_aside("rows of it are torn")
        return [row for row, is_whole in zip(found, whole, strict=True) if is_whole]

    def _put_aside(self, why: object) -> None:
        names = (f"{self.metrics_file_path}.damaged{number or ''}" for number in itertools.count())
        beside = next(name for name in names if not os.path.exists(name))
        os.rename(self.metrics_file_path, beside)
        rank_zero_info(
            f"{self.metrics_file_path} is damaged ({why}); it is kept as {beside}, and what is whole goes on."
        )

    def _write(self, fieldnames: Sequence[str], rows: list[dict[str, str]]) -> None:
        """Whole or not at all: a run that is killed here keeps its rows."""
        with written(Path(self.metrics_file_path), "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
