"""When a run evaluates, and what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from fedlightning.data.module import FederatedDataModule, SplitName
from fedlightning.errors import ConfigurationError
from fedlightning.evaluation.pooled import GlobalEvaluator
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.layout import Layout, flatten_buffers, identify_model, persistent_buffers
from fedlightning.method import FedMethod
from fedlightning.server.checkpoint import load_checkpoint
from fedlightning.server.round_state import RoundState, check_model
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
        return self._evaluator.score(state.model, state.buffers, self._goes_on)

    def rehearse(self, state: RoundState) -> list[str]:
        """Evaluate two examples of each split, where the run evaluates at all, and throw the metrics away.

        Returns:
            The names of what an evaluation logs, `*` for any part of one.

        Raises:
            ConfigurationError: the model, the scores or the metrics do not fit the examples.
        """
        return [*self._evaluator.rehearse(state.model, state.buffers), "server/*"] if self._every else []

    def is_missing(self, t: int, row: Iterable[str]) -> bool:
        """Whether the model after t rounds was not evaluated, as after a run that ended between evaluations.

        Args:
            t: finished rounds.
            row: the names of what was logged for the last one.
        """
        prefixes = tuple(name.removesuffix("*") for name in self._evaluator.logs)
        return bool(self._every and prefixes and t > 0 and not any(name.startswith(prefixes) for name in row))

    @property
    def names(self) -> list[str]:
        """The names of all that evaluations log, `*` for any part of one."""
        return [*self._evaluator.logs, "server/*"] if self._every else []


@contextmanager
def evaluating_alone(
    strategy: SlotStrategy, task: FederatedTask, data: FederatedDataModule, split: SplitName
) -> Iterator[GlobalEvaluator]:
    """An evaluator of one split on a strategy's slots, outside of a run.

    Raises:
        ConfigurationError: there is no such split.
    """
    data.prepare_data()
    data.setup("fit")
    found = data.split_named(split)
    if found is None or not len(found[0].targets):
        kind, other = ("validation split", "test") if split == "val" else ("test set", "validate")
        raise ConfigurationError(
            f"{type(data).__name__} must have a {kind} that holds an example, but has none; give one, e.g. by "
            f"`{'validation=0.1` or `val=' if split == 'val' else 'test='}`, or use `{other}`."
        )
    task.check(*found[0])
    strategy.set_up_evaluation(task, Layout.of(task), data)
    try:
        yield GlobalEvaluator(strategy, task, data, (split,))
    finally:
        strategy.teardown()


def model_of(task: FederatedTask, path: Path | None) -> tuple[Tensor, Tensor]:
    """The parameters [P] and buffers [Q] of a checkpoint's model, or of the task as it is.

    Raises:
        ConfigurationError: the checkpoint is damaged, or another model's.
    """
    if path is None:
        x = Layout.of(task).read(task)
        return x, flatten_buffers(persistent_buffers(task).values(), x.device)
    state, _ = load_checkpoint(path)
    check_model(state, identify_model(task), f"`{type(task).__name__}`")
    return state.model, state.buffers


def check_evaluations(
    method: FedMethod, data: FederatedDataModule, evaluate_every: int, evaluate_on: tuple[SplitName, ...]
) -> None:
    """Check that there is what is evaluated, and that a method that reacts to it gets the training loss after every round.

    Raises:
        ConfigurationError: a split is empty, or the method does not get what it reacts to.
    """
    for split in evaluate_on if evaluate_every else ():
        if (found := data.split_named(split)) is not None and not len(found[0].targets):
            raise ConfigurationError(
                f"The {split} split of {type(data).__name__} must hold an example for `evaluate_on={evaluate_on!r}`, but is "
                f"empty; leave {split!r} out of `evaluate_on` of FederatedTrainer."
            )
    if "on_evaluation" not in method.own_hooks:
        return
    name = type(method).__name__
    if evaluate_every != 1:
        raise ConfigurationError(
            f"`evaluate_every` of FederatedTrainer must be 1 for {name}, which reacts to the training loss of every round, "
            f"but is {evaluate_every}; use `evaluate_every=1`."
        )
    if "train" not in evaluate_on:
        raise ConfigurationError(
            f"`evaluate_on` of FederatedTrainer must hold 'train' for {name}, which reacts to the training loss of every round, "
            f'but is {evaluate_on!r}; use `evaluate_on=("test", "train")`.'
        )
