"""Checkpoints of the best rounds and of the last one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlightning._atomic import remove_leftovers
from fedlightning._checked import COUNT, checked
from fedlightning.callbacks.monitor import Mode, Monitored
from fedlightning.errors import ConfigurationError

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer


class ModelCheckpoint(Monitored):
    """Keeps the checkpoints of the k best rounds, and of the last one as `last.ckpt`.

    A file is written before an older one is deleted, and only files that this callback wrote are deleted. A round in
    which the monitored metric was not logged, or is a NaN, cannot be among the best. Of equal rounds the older stays.
    However the run ends, `last.ckpt` holds its last finished round.

    Args:
        dirpath: the folder, in which one run at a time may write; None for `checkpoints` in the run's folder, which is
            `logs/<method>/version_N` for a run whose loggers have none.
        filename: name of a file, without a folder and with `{round}` in it; the monitored metric is added to it, as in
            `round=12-val_accuracy=0.4312.ckpt`; the test set's name where that stands in.
        monitor: the metric by which rounds are ranked; None ranks the latest first.
        mode: whether a smaller ("min") or a larger ("max") metric is better.
        save_top_k: k; -1 keeps every round, 0 none.
        save_last: whether to write `last.ckpt`.
        every_n_rounds: save after each n-th round only.

    Attributes:
        last_model_path: the newest `last.ckpt` of this run, or "".

    Raises:
        ConfigurationError: a number is out of range, `filename` lacks `{round}`, the folder cannot be made, or the
            monitored metric does not exist.
    """

    stage = "save"

    @checked(save_top_k="[-1, inf)", every_n_rounds=COUNT)
    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str = "round={round}",
        monitor: str | None = None,
        mode: Mode = "max",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_rounds: int = 1,
    ) -> None:
        super().__init__(monitor, mode)
        _check_filename(filename)
        self.dirpath, self.filename = dirpath, filename
        self.save_top_k, self.save_last, self.every_n_rounds = save_top_k, save_last, every_n_rounds
        self.last_model_path = ""
        self._folder: Path | None = None
        self._scores: dict[str, float] = {}  # by file name, best first
        self._last_round: int | None = None
        self._due: _Due | None = None

    # -- what was kept ------------------------------------------------------------------------------------------------
    @property
    def best_k_models(self) -> dict[str, float]:
        """The kept files that are still there, by path, best first, with their metric (or round, without `monitor`)."""
        return {str(path): self._scores[path.name] for path in self._present()}

    @property
    def best_model_path(self) -> str:
        """The best of them, or ""."""
        return next(iter(self.best_k_models), "")

    @property
    def best_model_score(self) -> float | None:
        """Its metric; None without `monitor`."""
        return None if self.monitor is None else next(iter(self.best_k_models.values()), None)

    @property
    def folders(self) -> Sequence[Path | None]:
        """`dirpath`, or the run's own folder."""
        return (None if self.dirpath is None else Path(self.dirpath),)

    # -- protocol -----------------------------------------------------------------------------------------------------
    @property
    def state_key(self) -> str:
        """The class with what it watches and how often."""
        return f"{super().state_key[:-1]}, every_n_rounds={self.every_n_rounds}]"

    def state_dict(self) -> dict[str, Any]:
        """Names of the kept files, relative to the folder, so that a run's folder may be moved."""
        return {"scores": dict(self._scores)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the kept files; those that are not in this run's folder are forgotten."""
        self._scores = dict(state.get("scores", {}))

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Make the folder."""
        super().on_fit_start(trainer)
        folder = Path(self.dirpath) if self.dirpath is not None else trainer.log_dir / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The folder of ModelCheckpoint must be writable, but {folder} cannot be made "
                f"({error.strerror}); give another `dirpath`."
            ) from error
        self._folder, self._last_round, self._due = folder, None, None
        remove_leftovers(folder, ".*.ckpt.*")

    def decide(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """See whether the round is one of the best; its file is written, and others are deleted, by `save`."""
        self._due = _Due(trainer.round, None, self._scores, self._scores)
        score = self.score(trainer, metrics) if self.monitor is not None else float(trainer.round)
        if trainer.round % self.every_n_rounds or score is None or math.isnan(score):
            return
        name = self._name(trainer.round, score)
        before = {path.name: self._scores[path.name] for path in self._present() if path.name != name}
        scores = before | {name: score}
        largest_first = self.monitor is None or self.mode == "max"
        ranked = sorted(scores, key=scores.__getitem__, reverse=largest_first)
        kept = ranked if self.save_top_k == -1 else ranked[: self.save_top_k]
        if name in kept:
            self._due = _Due(trainer.round, name, before, {n: scores[n] for n in kept})
            self._scores = self._due.after  # every checkpoint of the round says so, whoever writes it

    def save(self, trainer: FederatedTrainer) -> None:
        """Save the round if it is one of the best."""
        due = self._due
        if due is None or due.name is None or self._folder is None or due.round != trainer.round:
            return
        self._scores = due.after  # what the file says, too
        try:
            trainer.save_checkpoint(self._folder / due.name)
        except BaseException:
            self._scores = due.before
            raise
        for old in due.before.keys() - due.after.keys():
            (self._folder / old).unlink(missing_ok=True)
        self._due = replace(due, name=None, written=self._folder / due.name)

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Save the round as the last, and if it is one of the best."""
        if self._due is None or self._due.round != trainer.round:
            self.decide(trainer, metrics)
        self.save(trainer)
        if self._folder is not None and self._due and self.save_last and trainer.round % self.every_n_rounds == 0:
            self._write_last(trainer, self._folder, self._due.written)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """See to it that the last finished round is saved."""
        if self._folder is None:
            return
        self.save(trainer)
        if not self.save_last:
            return
        unsaved = trainer.round > trainer.start_round and trainer.round != self._last_round
        if unsaved or not (self._folder / "last.ckpt").exists():
            self._write_last(trainer, self._folder, None)

    def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
        """Write `last.ckpt` of the last finished round, unless the run was refused before its first one."""
        refused = isinstance(exception, ConfigurationError) and trainer.round == trainer.start_round
        if not refused:
            self.on_fit_end(trainer)

    # -- files --------------------------------------------------------------------------------------------------------
    def _present(self) -> list[Path]:
        if self._folder is None:
            return []
        return [path for path in (self._folder / name for name in self._scores) if path.exists()]

    def _name(self, round: int, score: float) -> str:
        metric = "" if self.watched is None else f"-{self.watched.replace('/', '_')}={score:.4f}"
        return f"{self.filename.format(round=round)}{metric}.ckpt"

    def _write_last(self, trainer: FederatedTrainer, folder: Path, written: Path | None) -> None:
        """Write `last.ckpt`, as a second name of the file just written where the file system has such."""
        last = folder / "last.ckpt"
        if written is None or not _link(written, last):
            trainer.save_checkpoint(last)
        self.last_model_path, self._last_round = str(last), trainer.round


@dataclass(frozen=True)
class _Due:
    """What was decided for a round.

    Attributes:
        round: which.
        name: of the file that is to be written; None where there is none, or none any more.
        before: the files that there are, with their scores.
        after: those that are kept, that one among them.
        written: the file of the round, once it is there.
    """

    round: int
    name: str | None
    before: dict[str, float]
    after: dict[str, float]
    written: Path | None = None


def _link(file: Path, name: Path) -> bool:
    beside = name.with_name(f".{name.name}.link")
    try:
        beside.unlink(missing_ok=True)
        os.link(file, beside)
    except OSError:
        return False
    os.replace(beside, name)
    return True


def _check_filename(filename: str) -> None:
    try:
        varies = filename.format(round=1) != filename.format(round=2)
    except (LookupError, ValueError):
        varies = False
    if not varies or Path(filename).name != filename:
        raise ConfigurationError(
            f"`filename` of ModelCheckpoint must hold the field '{{round}}', no other, and no folder, but is "
            f"{filename!r}; give e.g. 'round={{round}}' or 'r{{round:04d}}'."
        )
