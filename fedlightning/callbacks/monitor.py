"""Watching one logged metric."""

from __future__ import annotations

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

    Args:
        monitor: the metric's name, e.g. "val/accuracy"; None watches nothing.
        mode: whether smaller ("min") or larger ("max") is better.

    Raises:
        ConfigurationError: `mode` is neither.
    """

    stage: ClassVar[Literal["observe", "decide", "save"]] = "decide"
    logs: ClassVar[tuple[str, ...] | None] = ()

    @checked()
    def __init__(self, monitor: str | None, mode: Mode) -> None:
        self.monitor, self.mode = monitor, mode
        self._evaluated = False

    @property
    def state_key(self) -> str:
        """The class with what it watches, so that several can be used side by side."""
        return f"{type(self).__name__}[monitor={self.monitor}, mode={self.mode}]"

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Forget the last fit, unless this one goes on from it."""
        self._evaluated = False
        if trainer.start_round == 0:
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
        patterns, unsaid = [*known, *trainer.metrics], any(each.logs is None for each in trainer.callbacks)
        if self.monitor is not None and not unsaid and not _is_among(self.monitor, [*patterns, *_said(trainer)]):
            names = [*patterns, *_said(trainer)]
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
        logged = self.monitor in metrics or self.monitor in trainer.metrics
        if self._evaluated and not logged and not _is_among(self.monitor, _said(trainer)):
            raise ConfigurationError(
                f"`monitor` of {type(self).__name__} must be a logged metric, but {self.monitor!r} was not logged by "
                f"the end of round {trainer.round}, evaluation included. {nearest(self.monitor, trainer.metrics)}"
            )
        return metrics.get(self.monitor)

    def is_better(self, score: float, than: float) -> bool:
        """Whether a score beats another; a NaN beats nothing."""
        return score < than if self.mode == "min" else score > than


def _said(trainer: FederatedTrainer) -> list[str]:
    """What callbacks say that they log."""
    return [name for callback in trainer.callbacks for name in callback.logs or ()]


def _is_among(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
