"""Lightning's loggers, made to share one folder and to take up a run where it was left."""

from __future__ import annotations

import csv
import importlib
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from fedlightning.checked import checked
from fedlightning.errors import ConfigurationError


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
    version = name or _claim_version(root)
    check_writable(root / version)
    return [RunTensorBoardLogger(root, version=version), RunCSVLogger(root, version=version)]


def log_hyperparameters(loggers: Iterable[Logger], hyperparameters: Mapping[str, Any]) -> None:
    """Give a flat dictionary to each logger; what is no number, string, bool or None is logged as its text."""
    plain = (bool, int, float, str, type(None))
    flat = {name: value if isinstance(value, plain) else str(value) for name, value in hyperparameters.items()}
    for logger in loggers:
        logger.log_hyperparams(flat)


def check_writable(folder: Path) -> None:
    """Make a folder and check that files can be written there.

    Raises:
        ConfigurationError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"The log folder must be writable, but {folder} is not ({error.strerror}); choose another one, or change "
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


def _claim_version(root: Path) -> str:
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


class RunCSVLogger(CSVLogger):
    """Lightning's, but in a folder with other files, writing each row at once, and keeping a resumed run's rows.

    Args:
        root: where the runs lie.
        version: the run's folder in `root`.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        super().__init__(root, name="", version=version, flush_logs_every_n_steps=1)

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
    """Rows before the first step that is logged stay, the others go; Lightning's deletes the file with a warning."""

    def _check_log_dir_exists(self) -> None:
        self._first = True

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self._first and step is not None and os.path.exists(self.metrics_file_path):
            whole = [row for row in self._rows() if None not in row.values() and (row["step"] or "").isdecimal()]
            kept = [row for row in whole if int(row["step"]) < step]
            self.metrics_keys = sorted({name for row in kept for name, value in row.items() if value})
            self._write(self.metrics_keys, [{name: row[name] for name in self.metrics_keys} for row in kept])
        self._first = False
        super().log_metrics(metrics_dict, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self._rows())

    def _rows(self) -> list[dict[str, str]]:
        with open(self.metrics_file_path, newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, fieldnames: Sequence[str], rows: list[dict[str, str]]) -> None:
        """Beside, then renamed: a run that is killed here keeps its rows."""
        beside = f"{self.metrics_file_path}.new"
        with open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.metrics_file_path)
