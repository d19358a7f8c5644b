"""The contract of a callback, after Lightning's protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedlightning._capabilities import own_hooks
from fedlightning.method import Round
from fedlightning.server.wire import CohortResult

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

__all__ = ["Callback", "CohortResult"]


class Callback:
    """Looks at a run and may stop it; never changes its numbers. Hooks run in the trainer's thread.

    A callback with something to remember returns it from `state_dict` as plain numbers, strings, lists and dictionaries;
    it is written to checkpoints under `state_key`.

    The end of a round, whichever order the callbacks were given in:

        on_evaluation_end    where the round is evaluated
        on_round_end         of those that observe, which may log; then of those that decide by what is logged
        decide               of those that save: which rounds are the best
        (the loggers write the round's row; now the round is finished, and this is what a checkpoint holds)
        save                 of those that save
        on_round_end         of those that save

    Where a callback that only observes fails, the others still see the round and it is saved; then the error is raised.
    Where one fails that decides or has something to remember, or Ctrl-C comes a second time, the round is not finished: the run
    ends after the one before it, of which every callback has seen all.
    """

    stage: ClassVar[Literal["observe", "decide", "save"]] = "observe"
    """When its `on_round_end` is called."""

    logs: ClassVar[tuple[str, ...] | None] = None
    """Names of the metrics that it logs, `*` for any part of one, so that a mistaken `monitor` is found before the first
    round; None if it does not say."""

    own_hooks: ClassVar[frozenset[str]] = frozenset()
    """`state_dict`, where a class has its own: such a callback remembers something, so it must see each round whole. A class
    that only wraps it declares `own_hooks = frozenset()`."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Note whether the subclass remembers something."""
        super().__init_subclass__(**options)
        cls.own_hooks = own_hooks(cls, Callback, ("state_dict",))

    @property
    def folders(self) -> Sequence[Path | None]:
        """The folders that it writes to, in which no other run may write meanwhile; None is the run's own."""
        return ()

    def check(self, trainer: FederatedTrainer, known: Iterable[str]) -> None:
        """Refuse before the first round what cannot be.

        Args:
            trainer: the run, with its callbacks; what was logged before the first round is in `trainer.metrics`.
            known: the names of further metrics that the run will log, `*` for any part of a name.

        Raises:
            ConfigurationError: it cannot be.
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

    def on_evaluation_progress(self, trainer: FederatedTrainer, done: int, total: int) -> None:
        """A batch of an evaluation is done, and with it `done` of `total` examples; for showing."""

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """The global model was evaluated; before the first round too, when `trainer.round` is 0."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """A round has ended; `metrics` holds all that is logged for it, evaluation included."""

    def decide(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """All that is logged for the round is known; what `state_dict` returns after this is saved. For those that save."""

    def save(self, trainer: FederatedTrainer) -> None:
        """The round is finished: write what is to be kept of it. For those that save."""

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """The last round has ended, or the run was stopped by `trainer.should_stop`; what is logged now joins its row."""

    def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
        """The run ends by an exception or Ctrl-C; `trainer.state` is that of the last finished round."""
