"""One run of a comparison: what it is, and how it is made, from the start or from its last checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedlightning._hashing import digest
from fedlightning._locks import locked
from fedlightning.callbacks import ModelCheckpoint, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.compare.diary import Diary, Progress, check_folder, check_identity, read_diary
from fedlightning.compare.table import Outcome, Table, read_run
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, DivergedError, MethodError, shown
from fedlightning.loggers import RunTensorBoardLogger, log_hyperparameters, run_loggers
from fedlightning.method import FedMethod
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer

Task = FederatedTask | Callable[[int], FederatedTask]
Data = FederatedDataModule | Callable[[int], FederatedDataModule]
Trainer = Mapping[str, Any] | Callable[..., FederatedTrainer] | None
Callbacks = Callable[[str, int], Sequence[Callback]] | None


@dataclass(frozen=True)
class Run:
    """A run that a comparison wants.

    Attributes:
        name: of its method, with the point of the grid that it has.
        method: what trains.
        seed: of the trainer, and what the functions of the task and the data are given.
        folder: where it is kept.
        metric: that its outcome has.
        rounds: in all; None for as many as the trainer has.
    """

    name: str
    method: FedMethod
    seed: int
    folder: Path
    metric: str
    rounds: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether its folder says so."""
        return bool(read_diary(self.folder).get("finished"))


@dataclass(frozen=True)
class Problem:
    """What all methods of a seed share.

    Attributes:
        seed: of the run.
        task: with the start model.
        data: the clients' data, loaded.
    """

    seed: int
    task: FederatedTask
    data: FederatedDataModule


_OF_ALL_SEEDS = (
    "method", "classes", "hyperparameters", "batches", "sampler", "stragglers", "batching_policy", "precision",
)  # fmt: skip
"""What of a run's identity does not depend on the seed."""


class RunMaker:
    """Makes the runs of a comparison. It can be sent to another process if all that it is given can.

    Args:
        task, data, trainer, callbacks, checkpoint_every: see `Comparison`.
        table: an empty one, which says what is compared.
    """

    def __init__(
        self, task: Task, data: Data, trainer: Trainer, callbacks: Callbacks, checkpoint_every: int, table: Table
    ) -> None:
        self.given = {"task": task, "data": data, "trainer": trainer, "callbacks": callbacks}
        self._make, self._callbacks = _maker(trainer), callbacks
        self._checkpoint_every, self._table = checkpoint_every, table
        self._problem: Problem | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the data that were loaded."""
        return {**vars(self), "_problem": None}

    def trainer(self, run: Run, logger: Any = False, callbacks: Sequence[Callback] = ()) -> FederatedTrainer:
        """The trainer of a run."""
        length = {} if run.rounds is None else {"max_rounds": run.rounds}
        return self._make(seed=run.seed, logger=logger, callbacks=list(callbacks), **length)

    def check(self, run: Run) -> dict[str, Any]:
        """Check that a run can be made, without a round; give what identifies it.

        Raises:
            ConfigurationError: it cannot, or its folder holds another run or cannot be written.
            MethodError: a hook of the method breaks the contract.
        """
        identity = self.identify(run)
        self.check_folder(run, identity)
        self._extra_callbacks(run)
        if not run.is_finished:
            problem = self.problem(run.seed)
            try:
                self.trainer(run).check(run.method, problem.task, problem.data)
            except (ConfigurationError, MethodError) as error:
                error.add_note(f"(method {run.name})")
                raise
        return identity

    def check_like(self, run: Run, identity: Mapping[str, Any]) -> None:
        """Check that the folder of a run of another seed or length holds no run of another kind, and can be written.

        The data of that seed are not loaded for it.

        Args:
            run: whose folder.
            identity: of a run of the same kind.

        Raises:
            ConfigurationError: it does, or it cannot.
        """
        self.check_folder(run, {name: identity[name] for name in _OF_ALL_SEEDS} | _length(self.trainer(run)))

    def check_folder(self, run: Run, identity: Mapping[str, Any]) -> None:
        """Check that a run's folder holds no other run, and can be written.

        Raises:
            ConfigurationError: it does, or it cannot.
        """
        check_identity(run.folder, identity)
        if not run.is_finished:
            check_folder(run.folder, "`root` of a comparison")

    def identify(self, run: Run) -> dict[str, Any]:
        """What the trainer says of a run, with its length and its start model, as plain JSON."""
        problem, trainer = self.problem(run.seed), self.trainer(run)
        return {
            **trainer.identify(run.method, problem.task, problem.data),
            **_length(trainer),
            "start": digest(problem.task.state_dict().values()),
        }

    def other_runners(self, run: Run) -> list[str]:
        """The runners that were asked for where the run was made, as far as it was, and are not asked for now."""
        asked = {piece["runner"] for piece in read_diary(run.folder).get("pieces", [])}
        return sorted(asked - {self.trainer(run).strategy.asked})

    def make(self, run: Run, report: Callable[[Progress], None]) -> Outcome:
        """The run from its folder, after what is missing of it has been run.

        Args:
            run: which.
            report: is told of each evaluation.

        Raises:
            ConfigurationError: the folder holds another run, or another process writes there.
            ClientError, MethodError: the run failed otherwise than by diverging.
        """
        try:
            self._finish(run, report)
            return read_run(run.folder, run.name, run.seed, run.metric)
        except Exception as error:
            error.add_note(f"(run {run})")
            raise

    def problem(self, seed: int) -> Problem:
        """What the methods of a seed share; that of the last seed is kept."""
        if self._problem is None or self._problem.seed != seed:
            self._problem = None  # before the next one is there
            data = _given("data", self.given["data"], FederatedDataModule, seed)
            data.prepare_data()
            data.setup("fit")
            self._problem = Problem(seed, _given("task", self.given["task"], FederatedTask, seed), data)
        return self._problem

    def _extra_callbacks(self, run: Run) -> list[Callback]:
        made = list(self._callbacks(run.name, run.seed)) if self._callbacks else []
        if any(isinstance(callback, ModelCheckpoint) and callback.save_last for callback in made):
            raise ConfigurationError(
                "A ModelCheckpoint in `callbacks` of a comparison must have `save_last=False`, since the comparison writes "
                "last.ckpt itself; see `checkpoint_every`."
            )
        return made

    def _finish(self, run: Run, report: Callable[[Progress], None]) -> None:
        """Run what is missing; no other process can write to the folder meanwhile."""
        identity = self.identify(run)
        check_identity(run.folder, identity)
        if run.is_finished:
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        with locked(run.folder):
            if not run.is_finished:  # nor has another one finished it just now
                diary = Diary(run.folder, run.name, run.seed, identity, run.metric, report)
                self._fit(run, diary)
                self._summarise(read_run(run.folder, run.name, run.seed, self._table.metric))
                diary.close()

    def _fit(self, run: Run, diary: Diary) -> None:
        """Run to the end, from the start or from the last checkpoint."""
        checkpoint = run.folder / "checkpoints" / "last.ckpt"
        goes_on = checkpoint.is_file() and (run.folder / "metrics.csv").is_file()
        if not goes_on:
            checkpoint.unlink(missing_ok=True)
        loggers = run_loggers(run.folder.parent, run.folder.name)
        log_hyperparameters(loggers, {"name": run.name})
        saved = ModelCheckpoint(save_top_k=0, every_n_rounds=self._checkpoint_every)
        trainer = self.trainer(run, loggers, [diary, Throughput(), *self._extra_callbacks(run), saved])
        problem = self.problem(run.seed)
        try:
            trainer.fit(run.method, problem.task, problem.data, ckpt_path=checkpoint if goes_on else None)
        except DivergedError as error:
            diary.diverged(str(error))

    def _summarise(self, run: Outcome) -> None:
        """Add the run's summary to its TensorBoard, as a file of its own."""
        table = self._table
        values = {"seconds": run.seconds, "up_bytes": run.up_bytes, "down_bytes": run.down_bytes}
        if run.failure is None:
            values |= {"final": run.final(table.last), "best": run.best(table.mode)}
        if (reached := run.rounds_to(table.target, table.mode)) is not None:
            values["rounds_to_target"] = float(reached)
        logger = RunTensorBoardLogger(run.folder.parent, run.folder.name)
        for key, value in values.items():
            logger.experiment.add_scalar(f"compare/{key}", value, run.rounds)
        logger.finalize("success")


def _length(trainer: FederatedTrainer) -> dict[str, int]:
    return {"rounds": trainer.max_rounds, "evaluate_every": trainer.evaluate_every}


def _given(what: str, given: Any, kind: type[Any], seed: int) -> Any:
    """What a comparison was given, or what its function gives for a seed.

    Raises:
        ConfigurationError: it is of another kind.
    """
    made = given if isinstance(given, kind) else given(seed)
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"`{what}` of a comparison must be a {kind.__name__}, or a function of the seed that gives one, but gives "
            f"{shown(made)}."
        )
    return made


def _made(make: Callable[..., FederatedTrainer], **options: Any) -> FederatedTrainer:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ConfigurationError(
            f"`trainer` of a comparison must be a function that takes {', '.join(options)}, but {shown(make)} does not: {error}."
        ) from error
    trainer = make(**options)
    if not isinstance(trainer, FederatedTrainer):
        raise ConfigurationError(
            f"`trainer` of a comparison must give a FederatedTrainer, but {shown(make)} gives {shown(trainer)}."
        )
    return trainer


def _maker(trainer: Trainer) -> Callable[..., FederatedTrainer]:
    if callable(trainer):
        return partial(_made, trainer)
    options = dict(trainer or {})
    if own := sorted({"seed", "logger", "callbacks"} & set(options)):
        raise ConfigurationError(
            f"`trainer` of a comparison may not hold {' and '.join(map(repr, own))}, which it sets itself; use `seeds`, "
            "`root` and `callbacks`."
        )
    return partial(_with_options, options)


def _with_options(options: Mapping[str, Any], **own: Any) -> FederatedTrainer:
    """A trainer whose length may be another than the options have."""
    return FederatedTrainer(**{**options, **own})
