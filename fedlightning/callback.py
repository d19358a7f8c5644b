"""The contract of a callback, after Lightning's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedlightning.method import Round
from fedlightning.state import State

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer


@dataclass(frozen=True)
class CohortResult:
    """What a cohort of C clients did in a round.

    Attributes:
        clients: their ids, in packing order.
        upload: what they uploaded, entries [C, …].
        state: what they remember, entries [C, …].
        buffers: their modules' buffers, flat [C, Q] (float64); Q is 0 for a model without running statistics.
        num_examples: [C].
        num_steps: local steps taken [C].
        loss: mean training loss of each client over the examples of its steps [C] (float64): an example counts as often as it
            is seen.
        slot: where it ran.
        seconds: how long it took.
    """

    clients: tuple[int, ...]
    upload: State
    state: State
    buffers: Tensor
    num_examples: Tensor
    num_steps: Tensor
    loss: Tensor
    slot: str
    seconds: float


class Callback:
    """Looks at a run and may stop it; never changes its numbers. Hooks run in the trainer's thread.

    A callback with something to remember returns it from `state_dict` as plain numbers, strings, lists and dictionaries;
    it is written to checkpoints under `state_key`.
    """

    @property
    def state_key(self) -> str:
        """The name of this callback's part of a checkpoint."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """What to write to a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Everything is set up and checked; no round has run."""

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """A round begins."""

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """A cohort has finished; called in packing order."""

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """The global model was evaluated; before the first round too, when `trainer.round` is 0."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """A round has ended; `metrics` holds all that is logged for it, evaluation included."""

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """The last round has ended, or the run was stopped by `trainer.should_stop`."""

    def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
        """The run ends by an exception or Ctrl-C; `trainer.state` is that of the last finished round."""
