"""Ending a run when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedlightning._checked import COUNT, checked
from fedlightning.callbacks.monitor import Mode, Monitored

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer


class EarlyStopping(Monitored):
    """Ends the run when a metric no longer improves, diverges, or is good enough.

    It checks at the end of each round in which the metric was logged: with `evaluate_every=5` and a metric of the
    evaluation, each fifth round, so `patience=3` means three evaluations or 15 rounds. A metric that is infinite or a
    NaN ends the run at once.

    Args:
        monitor: the metric, e.g. "val/loss".
        mode: whether a smaller ("min") or a larger ("max") metric is better.
        patience: checks in a row without improvement after which the run ends.
        min_delta: an improvement is a change for the better of more than this.
        divergence_threshold: end as soon as the metric is worse than this.
        stopping_threshold: end as soon as the metric is better than this.

    Attributes:
        wait_count: checks since the last improvement.
        best_score: the best metric so far, or None before the first check.

    Raises:
        ConfigurationError: `patience` is below 1, `min_delta` is negative, or the metric does not exist.
    """

    @checked(patience=COUNT, min_delta="[0, inf)")
    def __init__(
        self,
        monitor: str,
        mode: Mode = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        divergence_threshold: float | None = None,
        stopping_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.patience, self.min_delta = patience, min_delta
        self.divergence_threshold, self.stopping_threshold = divergence_threshold, stopping_threshold
        self.wait_count = 0
        self.best_score: float | None = None
        self._last_score: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the count, the scores, and what they are of."""
        return {
            "wait_count": self.wait_count,
            "best_score": self.best_score,
            "last_score": self._last_score,
            "watched": self.watched,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.wait_count, self.best_score = state.get("wait_count", 0), state.get("best_score")
        self._last_score, self.watched = state.get("last_score"), state.get("watched", self.monitor)

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """End a resumed run that had been ended, unless this callback has become more patient."""
        super().on_fit_start(trainer)
        self._judge(trainer)

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Check the metric, if it was logged in this round."""
        score = self.score(trainer, metrics)
        if score is None:
            return
        margin = self.min_delta if self.mode == "max" else -self.min_delta
        improved = self.best_score is None or self.is_better(score - margin, self.best_score)
        if improved and not math.isnan(score):
            self.best_score = score
        self.wait_count = 0 if improved else self.wait_count + 1
        self._last_score = score
        self._judge(trainer)

    def _judge(self, trainer: FederatedTrainer) -> None:
        if reason := self._verdict():
            trainer.should_stop, trainer.stop_reason = True, reason

    def _verdict(self) -> str:
        score = self._last_score
        if score is None:
            return ""
        shown = f"{self.watched} is {score:.6g}"
        if not math.isfinite(score):
            return f"{shown}, which is not finite"
        if self.stopping_threshold is not None and self.is_better(score, self.stopping_threshold):
            return f"{shown}, better than the stopping threshold {self.stopping_threshold:g}"
        if self.divergence_threshold is not None and self.is_better(self.divergence_threshold, score):
            return f"{shown}, worse than the divergence threshold {self.divergence_threshold:g}"
        if self.wait_count >= self.patience:
            return f"{self.watched} has not improved on {self.best_score:.6g} in {self.wait_count} checks"
        return ""
