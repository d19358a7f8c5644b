"""How fast rounds, clients and local steps go by."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING

from fedlightning.callbacks.base import Callback, CohortResult
from fedlightning.method import Round

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer


class Throughput(Callback):
    """Logs `throughput/rounds_per_second`, `…/clients_per_second` and `…/steps_per_second` of each round.

    The time is that from the start of the round to its end, evaluation included; steps are the clients' local steps. A round
    in which steps were compiled logs the time of that as `throughput/compile_seconds`, and its rates are without it.
    """

    logs = ("throughput/*",)

    def __init__(self) -> None:
        self._start = self._compiled = 0.0
        self._clients = self._steps = 0

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """Start the clock."""
        self._clients = self._steps = 0
        self._start, self._compiled = perf_counter(), trainer.strategy.compile_seconds

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Count."""
        self._clients += len(cohort.clients)
        self._steps += int(cohort.num_steps.sum())

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Log the rates."""
        compiled = trainer.strategy.compile_seconds - self._compiled
        seconds = max(perf_counter() - self._start - compiled, 1e-9)
        counts = {"rounds": 1, "clients": self._clients, "steps": self._steps}
        trainer.log({f"throughput/{name}_per_second": count / seconds for name, count in counts.items()})
        if compiled:
            trainer.log({"throughput/compile_seconds": compiled})
