"""Methods compared on one task: a list of runs, each in a folder of its own, and the table that they add up to."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fedlightning._arguments import refuse_unknown
from fedlightning._checked import COUNT, checked
from fedlightning.callbacks import ModelCheckpoint, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.compare.diary import (
    Checked,
    Diary,
    Probe,
    check_folder,
    check_identity,
    identify_problem,
    identify_run,
    read_diary,
)
from fedlightning.compare.names import Methods, name_methods, slug
from fedlightning.compare.table import Mode, Outcome, Table, read_run
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, DivergedError, MethodError, shown
from fedlightning.loggers import RunTensorBoardLogger, log_hyperparameters, run_loggers
from fedlightning.method import FedMethod
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer

__all__ = ["Comparison", "Outcome", "Table", "compare", "name_methods", "read_run"]


def compare(
    methods: Methods,
    task: FederatedTask | Callable[[int], FederatedTask],
    data: FederatedDataModule | Callable[[int], FederatedDataModule],
    **options: Any,
) -> Table:
    """Run methods on one task with several seeds, and sum them up: `Comparison(methods, task, data, **options).run()`.

        compare([FedAvg(lr=0.1), FedProx(lr=0.1, mu=1.0)], task, data, seeds=(0, 1), trainer={"max_rounds": 20})

    Args:
        methods: see `Comparison`, which has the other options, too.
        task: what is learned; its parameters are the start model of every method.
        data: the clients' data.
        **options: `seeds`, `trainer`, `root`, `metric`, `mode`, `target`, `last`, `checkpoint_every`, `callbacks`,
            `on_run_end`.
    """
    refuse_unknown("`compare`", [name for name in options if name not in _OPTIONS], Comparison, {})
    return Comparison(methods, task, data, **options).run()


@dataclass(frozen=True)
class _Problem:
    """What all methods of a seed share: the start model, the data, and the hashes of both."""

    seed: int
    task: FederatedTask
    data: FederatedDataModule
    identity: dict[str, Any]


class Comparison:
    """Runs one after another, each in `<root>/<method>/seed_<seed>`, and the table that they add up to.

    Each is an ordinary run with TensorBoard's events, metrics.csv, checkpoints, and a `run.json` that says what it is: the
    method's hyperparameters, the trainer's settings, and hashes of the start model and of the data. All methods of a seed
    begin at the same model on the same data. A run that is finished is read, one that was stopped goes on from its last
    checkpoint: killed at any moment and called again, the table has the same bits, but for the wall time, which is the
    time that was spent on all pieces together (the last second or the last round of a killed piece is not known). A run
    that diverges is kept as that. The code is not hashed: move the folder away after a change of a method or a model.

    TensorBoard's page of hyperparameters shows the runs by `name`, with `compare/final`, `compare/best`,
    `compare/rounds_to_target`, `compare/seconds`, `compare/up_bytes` and `compare/down_bytes`.

    Args:
        methods: by name, or a list whose names are the classes' with the fields that are not the default's, e.g.
            "fedprox mu=0.1"; the same name twice is numbered.
        task: what is learned, or a function of the seed; its parameters are the start model.
        data: the clients' data, or a function of the seed. One seed's data are in memory at a time.
        seeds: of the trainers, and what the two functions are given.
        trainer: keyword arguments of `FederatedTrainer`, or a function that takes `seed`, `logger` and `callbacks` and
            makes one.
        root: the folder of the runs; one process at a time.
        metric: of the evaluations that is compared.
        mode: whether a larger ("max") or a smaller ("min") metric is better.
        target: count the rounds to this value of the metric.
        last: evaluations whose mean is the final value.
        checkpoint_every: rounds between checkpoints, as many as a kill can cost.
        callbacks: further callbacks of a run, made from the method's name and the seed.
        on_run_end: called with each run, one that was read included.

    Raises:
        ConfigurationError: an argument is impossible.
    """

    @checked("methods", last=COUNT, checkpoint_every=COUNT)
    def __init__(
        self,
        methods: Methods,
        task: FederatedTask | Callable[[int], FederatedTask],
        data: FederatedDataModule | Callable[[int], FederatedDataModule],
        *,
        seeds: Sequence[int] = (0, 1, 2),
        trainer: Mapping[str, Any] | Callable[..., FederatedTrainer] | None = None,
        root: str | Path = "logs/compare",
        metric: str = "test/accuracy",
        mode: Mode = "max",
        target: float | None = None,
        last: int = 1,
        checkpoint_every: int = 10,
        callbacks: Callable[[str, int], Sequence[Callback]] | None = None,
        on_run_end: Callable[[Outcome], None] | None = None,
    ) -> None:
        if isinstance(task, nn.Module) and not isinstance(task, FederatedTask):
            raise ConfigurationError(
                f"`task` of a comparison must be a FederatedTask, but is {shown(task)}; wrap the module, e.g. "
                f"`Classification({type(task).__name__}(…))`."
            )
        self.methods, self.seeds, self.root = name_methods(methods), list(seeds), Path(root)
        self._task, self._data, self._make = task, data, _maker(trainer)
        self.table = Table((), metric, mode, target, last)
        self.checkpoint_every, self.callbacks, self.on_run_end = checkpoint_every, callbacks, on_run_end
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"`seeds` must hold at least one seed, and none twice, but is {self.seeds}.")
        if self._make(seed=self.seeds[0], logger=False, callbacks=[]).evaluate_every < 1:
            raise ConfigurationError("`evaluate_every` must be at least 1, for evaluations are compared, but is 0.")

    def check(self) -> None:
        """Set each method up on the first seed's data, without a round.

        Raises:
            ConfigurationError: a method cannot run, or a folder holds another run or cannot be written.
        """
        self._check(self._load(self.seeds[0]))

    def run(self) -> Table:
        """Check, run what is not finished, and return the table.

        Raises:
            ConfigurationError: see `check`.
            ClientError, MethodError: a run failed otherwise than by diverging; the next call goes on from there.
        """
        problem, outcomes = self._load(self.seeds[0]), {}
        self._check(problem)
        for seed in self.seeds:
            problem = problem if problem.seed == seed else self._load(seed)
            for name in self.methods:
                outcomes[name, seed] = self._outcome(name, problem)
                if self.on_run_end:
                    self.on_run_end(outcomes[name, seed])
        ordered = tuple(outcomes[name, seed] for name in self.methods for seed in self.seeds)
        return replace(self.table, outcomes=ordered)

    def folder(self, name: str, seed: int) -> Path:
        """Where a run is kept."""
        return self.root / slug(name) / f"seed_{seed}"

    def _load(self, seed: int) -> _Problem:
        data = self._data if isinstance(self._data, FederatedDataModule) else self._data(seed)
        if not isinstance(data, FederatedDataModule):
            raise ConfigurationError(
                "`data` of a comparison must be a FederatedDataModule, or a function of the seed that gives one, but gives "
                f"{shown(data)}."
            )
        data.prepare_data()
        data.setup("fit")
        task = self._task if isinstance(self._task, FederatedTask) else self._task(seed)
        if not isinstance(task, FederatedTask):
            raise ConfigurationError(
                "`task` of a comparison must be a FederatedTask, or a function of the seed that gives one, but gives "
                f"{shown(task)}."
            )
        return _Problem(seed, task, data, identify_problem(task, data))

    def _check(self, first: _Problem) -> None:
        for name, method in self.methods.items():
            for seed in self.seeds:
                known, folder = first.identity if seed == first.seed else {}, self.folder(name, seed)
                check_identity(folder, self._identify(name, seed) | known)
                if not read_diary(folder).get("finished"):
                    check_folder(folder, "`root` of a comparison")
            self._extra_callbacks(name, first.seed)
            if not all(read_diary(self.folder(name, seed)).get("finished") for seed in self.seeds):
                self._probe(name, method, first)

    def _probe(self, name: str, method: FedMethod, problem: _Problem) -> None:
        """Let the trainer check everything."""
        with tempfile.TemporaryDirectory() as nowhere:
            trainer = self._make(seed=problem.seed, logger=run_loggers(nowhere, "check"), callbacks=[Probe()])
            try:
                trainer.fit(method, problem.task, problem.data)
            except Checked:
                pass
            except (ConfigurationError, MethodError) as error:
                error.add_note(f"(method {name})")
                raise

    def _identify(self, name: str, seed: int) -> dict[str, Any]:
        return identify_run(self.methods[name], self._make(seed=seed, logger=False, callbacks=[]))

    def _extra_callbacks(self, name: str, seed: int) -> list[Callback]:
        made = list(self.callbacks(name, seed)) if self.callbacks else []
        if any(isinstance(callback, ModelCheckpoint) and callback.save_last for callback in made):
            raise ConfigurationError(
                "A ModelCheckpoint in `callbacks` of a comparison must have `save_last=False`, since the comparison writes "
                "last.ckpt itself; see `checkpoint_every`."
            )
        return made

    def _outcome(self, name: str, problem: _Problem) -> Outcome:
        """The run from its folder, after what is missing of it has been run."""
        folder, identity = self.folder(name, problem.seed), self._identify(name, problem.seed) | problem.identity
        check_identity(folder, identity)
        if not read_diary(folder).get("finished"):
            diary = Diary(folder, name, identity, self.table.metric)
            self._run(name, problem, diary)
            self._summarise(read_run(folder, name, problem.seed, self.table.metric))
            diary.close()
        return read_run(folder, name, problem.seed, self.table.metric)

    def _run(self, name: str, problem: _Problem, diary: Diary) -> None:
        """Run to the end, from the start or from the last checkpoint."""
        folder = self.folder(name, problem.seed)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        goes_on = checkpoint.is_file() and (folder / "metrics.csv").is_file()
        if not goes_on:
            checkpoint.unlink(missing_ok=True)
        loggers = run_loggers(folder.parent, folder.name)
        log_hyperparameters(loggers, {"name": name})
        saved = ModelCheckpoint(save_top_k=0, every_n_rounds=self.checkpoint_every)
        callbacks = [diary, Throughput(), *self._extra_callbacks(name, problem.seed), saved]
        trainer = self._make(seed=problem.seed, logger=loggers, callbacks=callbacks)
        try:
            trainer.fit(self.methods[name], problem.task, problem.data, ckpt_path=checkpoint if goes_on else None)
        except DivergedError as error:
            diary.diverged(str(error))

    def _summarise(self, run: Outcome) -> None:
        """Add the run's summary to its TensorBoard, as a file of its own."""
        table = self.table
        values = {"seconds": run.seconds, "up_bytes": run.up_bytes, "down_bytes": run.down_bytes}
        if run.failure is None:
            values |= {"final": run.final(table.last), "best": run.best(table.mode)}
        if (reached := run.rounds_to(table.target, table.mode)) is not None:
            values["rounds_to_target"] = float(reached)
        logger = RunTensorBoardLogger(run.folder.parent, run.folder.name)
        for key, value in values.items():
            logger.experiment.add_scalar(f"compare/{key}", value, run.rounds)
        logger.finalize("success")


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


_OPTIONS = frozenset(inspect.signature(Comparison).parameters)


def _maker(trainer: Mapping[str, Any] | Callable[..., FederatedTrainer] | None) -> Callable[..., FederatedTrainer]:
    if callable(trainer):
        return partial(_made, trainer)
    options = dict(trainer or {})
    if own := sorted({"seed", "logger", "callbacks"} & set(options)):
        raise ConfigurationError(
            f"`trainer` of a comparison may not hold {' and '.join(map(repr, own))}, which it sets itself; use `seeds`, "
            "`root` and `callbacks`."
        )
    return partial(FederatedTrainer, **options)
