"""When a run evaluates, and what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from fedlightning.data.module import FederatedDataModule, SplitName
from fedlightning.errors import ConfigurationError
from fedlightning.evaluation.pooled import PREFIXES, GlobalEvaluator
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.layout import Layout, flatten_buffers, persistent_buffers
from fedlightning.method import FedMethod
from fedlightning.server.round_state import RoundState
from fedlightning.task import FederatedTask


class Evaluation:
    """Evaluates the models of a run at their time.

    Args:
        evaluator: scores a model.
        every: rounds between evaluations; 0 for none.
        rounds: T. The model after the last round is always evaluated.
        goes_on: told between batches how many examples of how many are done; whether anybody still waits for the metrics.
    """

    def __init__(
        self, evaluator: GlobalEvaluator, every: int, rounds: int, goes_on: Callable[[int, int], bool]
    ) -> None:
        self._evaluator, self._every, self._rounds, self._goes_on = evaluator, every, rounds, goes_on

    def after(self, t: int, state: RoundState) -> dict[str, float] | None:
        """The metrics of the model after t rounds; None where it is not its turn.

        Raises:
            EvaluationGivenUp: nobody waits for them.
        """
        due = self._every and (t % self._every == 0 or t == self._rounds)
        return self.run(state) if due else None

    def run(self, state: RoundState) -> dict[str, float]:
        """The metrics of a state's model.

        Raises:
            EvaluationGivenUp: nobody waits for them.
        """
        return self._evaluator.run(state.model, state.buffers, self._goes_on)

    def is_missing(self, t: int, row: Iterable[str]) -> bool:
        """Whether the model after t rounds was not evaluated, as after a run that ended between evaluations.

        Args:
            t: finished rounds.
            row: the names of what was logged for the last one.
        """
        splits = self._evaluator.prefixes
        logged = any(name.startswith(tuple(f"{split}/" for split in splits)) for name in row)
        return bool(self._every and splits and t > 0 and not logged)

    @property
    def names(self) -> list[str]:
        """The names of all that evaluations log, `*` for any part of one."""
        splits = self._evaluator.prefixes
        return [*(f"{name}/*" for split in splits for name in (split, f"{split}_clients")), "server/*"]
