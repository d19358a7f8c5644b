"""Watching one logged metric."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from fedlightning._checked import checked
from fedlightning.callbacks.base import Callback
from fedlightning.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

Mode = Literal["min", "max"]


class Monitored(Callback):
    """A callback that watches one logged metric; the base of `ModelCheckpoint` and `EarlyStopping`.

    Where the data have no validation split, `val/…` is read from the test set as `test/…`, with one warning a fit.

    Args:
        monitor: the metric's name, e.g. "val/accuracy"; None watches nothing.
        mode: whether smaller ("min") or larger ("max") is better.

    Attributes:
        watched: the name that the metric is logged under in this fit: `monitor`, or that of the test set in its place.

    Raises:
        ConfigurationError: `mode` is neither.
    """

    stage: ClassVar[Literal["observe", "decide", "save"]] = "decide"
    logs: ClassVar[tuple[str, ...] | None] = ()

    @checked()
    def __init__(self, monitor: str | None, mode: Mode) -> None:
        self.monitor, self.mode = monitor, mode
        self.watched = monitor
        self._evaluated = self._stands_in = False

    @property
    def state_key(self) -> str:
        """The class with what it watches, so that several can be used side by side."""
        return f"{type(self).__name__}[monitor={self.monitor}, mode={self.mode}]"

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Forget the last fit, unless this one goes on from it."""
        self._evaluated = self._stands_in = False
        if trainer.start_round == 0:
            self.watched = self.monitor
            self.load_state_dict({})

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """From now on a metric that was never logged is a mistake."""
        self._evaluated = True

    def check(self, trainer: FederatedTrainer, known: Iterable[str]) -> None:
        """Refuse a metric that the run does not log, as far as that is known before the first round.

        Args:
            trainer: the run, with its callbacks.
            known: what it logs itself, `*` for any part of a name.

        Raises:
            ConfigurationError: none of these is the metric, and no callback may log it.
        """
        if self.monitor is None or any(each.logs is None for each in trainer.callbacks):
            return
        names = [*known, *trainer.metrics, *_said(trainer)]
        if not _is_among(self._find(self.monitor, names, trainer), names):
            raise ConfigurationError(
                f"`monitor` of {type(self).__name__} must be a metric that this run logs, but is {self.monitor!r}. "
                f"{nearest(self.monitor, names)}"
            )

    def score(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> float | None:
        """Return the metric of the round that has just ended, or None where it was not logged in this round.

        Raises:
            ConfigurationError: an evaluation and a round have ended, the metric was not logged in either, and no callback says
                that it logs it.
        """
        if self.monitor is None:
            return None
        names = [*metrics, *trainer.metrics, *_said(trainer)]
        watched = self._find(self.monitor, names, trainer)
        if self._evaluated and not _is_among(watched, names):
            raise ConfigurationError(
                f"`monitor` of {type(self).__name__} must be a logged metric, but {self.monitor!r} was not logged by "
                f"the end of round {trainer.round}, evaluation included. {nearest(self.monitor, trainer.metrics)}"
            )
        return metrics.get(watched)

    def _find(self, monitor: str, names: list[str], trainer: FederatedTrainer) -> str:
        """The name that the metric is logged under, of the names that there are; the test set's where nothing else has it."""
        split, _, metric = monitor.partition("/")
        stand_in = f"{_STAND_INS.get(split, split)}/{metric}"
        self.watched = monitor
        if not _is_among(monitor, names) and _is_among(stand_in, names) and trainer.data.val is None:
            self.watched = stand_in
            if not any(isinstance(each, Monitored) and each._stands_in for each in trainer.callbacks):
                warnings.warn(
                    f"There is no validation split, so `{monitor}` is read from the test set as `{stand_in}`; what is chosen by "
                    "it has seen the test set. A data set of images sets a split aside with `validation=0.1`, TensorData takes "
                    "`val=`.",
                    stacklevel=2,
                )
            self._stands_in = True
        return self.watched

    def is_better(self, score: float, than: float) -> bool:
        """Whether a score beats another; a NaN beats nothing."""
        return score < than if self.mode == "min" else score > than


_STAND_INS = {"val": "test", "val_clients": "test_clients"}


def _said(trainer: FederatedTrainer) -> list[str]:
    """What callbacks say that they log."""
    return [name for callback in trainer.callbacks for name in callback.logs or ()]


def _is_among(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
