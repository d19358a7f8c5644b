"""Methods compared on one task: which runs there are, which points of a grid are taken, and the table of it all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fedlightning._arguments import refuse_unknown
from fedlightning._checked import COUNT, checked
from fedlightning.compare.diary import Progress
from fedlightning.compare.names import Methods, name_methods, slug
from fedlightning.compare.processes import Processes
from fedlightning.compare.runs import Callbacks, Data, Run, RunMaker, Task, Trainer
from fedlightning.compare.schedule import OnTable, in_turn, side_by_side
from fedlightning.compare.table import Mode, Outcome, Table, Tuned
from fedlightning.compare.tuning import Candidate, Tune, best_first, candidates_of, read_grids
from fedlightning.errors import ConfigurationError, shown
from fedlightning.task import FederatedTask


def compare(methods: Methods, task: Task, data: Data, **options: Any) -> Table:
    """Run methods on one task with several seeds, and sum them up: `Comparison(methods, task, data, **options).run()`.

        compare([FedAvg(lr=0.1), FedProx(lr=0.1, mu=1.0)], task, data, seeds=(0, 1), trainer={"max_rounds": 20})

    Args:
        methods: see `Comparison`, which has the other options, too.
        task: what is learned; its parameters are the start model of every method.
        data: the clients' data.
        **options: `seeds`, `trainer`, `tune`, `tune_rounds`, `jobs`, `root`, `metric`, `mode`, `target`, `last`,
            `checkpoint_every`, `callbacks`, `on_progress`, `on_run_end`.
    """
    refuse_unknown("`compare`", [name for name in options if name not in _OPTIONS], Comparison, {})
    return Comparison(methods, task, data, **options).run()


class Comparison:
    """The runs of several methods and seeds, each in a folder of its own, and the table that they add up to.

    A run lies in `<root>/<method>/seed_<seed>`. It is an ordinary one with TensorBoard's events, metrics.csv, checkpoints, and
    a `run.json` that says what it is: the method's hyperparameters, the trainer's settings, and hashes of the start model and
    of the data. All methods of a seed begin at the same model on the same data. A run that is finished is read. One that was
    stopped goes on from its last checkpoint: killed at any moment and called again, the table has the same bits, but for the
    wall time, which is the time that was spent on all pieces together (the last second or the last round of a killed piece is
    not known). A run that diverges is kept as that. The code is not hashed: move the folder away after a change of a method or
    a model.

    What is chosen by the test set looks better on it than it is: where the data have a validation split, it should choose, with
    `metric="val/accuracy"`.

    With `tune`, each point of a method's grid is tried on the first seed. The point with the best mean of the last evaluations
    of the validation split, or of the metric where there is none, is run on all seeds; where one of them diverges, the next best
    point is. The folder of a run then has the point in its
    name, and what was tried in fewer rounds lies in `<root>/tuning_<rounds>`.

    TensorBoard's page of hyperparameters shows the runs by `name`, with `compare/final`, `compare/best`,
    `compare/rounds_to_target`, `compare/seconds`, `compare/up_bytes` and `compare/down_bytes`.

    Args:
        methods: by name, or a list whose names are the classes' with the fields that are not the default's, e.g.
            "fedprox mu=0.1"; the same name twice is numbered.
        task: what is learned, or a function of the seed; its parameters are the start model.
        data: the clients' data, or a function of the seed. One seed's data are in a process's memory at a time.
        seeds: of the trainers, and what the two functions are given.
        trainer: keyword arguments of `FederatedTrainer`, or a function that takes `seed`, `logger` and `callbacks`, for `tune`
            also `max_rounds`, and makes one.
        tune: values to try by field, for all methods that have the field, `{"lr": (0.01, 0.1)}`; and by a method's name what
            is tried with it beside or in place of these, `{"fedadam": {"server_lr": (0.01, 0.1)}}`. One value is not tuned, but
            taken.
        tune_rounds: rounds in which points are tried; None for whole runs.
        jobs: runs side by side, each in a process of its own that has its share of the cores. The table has the same bits for
            any number. More than one needs a `task`, `data`, `trainer` and `callbacks` that can be pickled: objects, or
            functions at the top of a module.
        root: the folder of the runs; one call at a time.
        metric: of the evaluations that is compared.
        mode: whether a larger ("max") or a smaller ("min") metric is better.
        target: count the rounds to this value of the metric.
        last: evaluations whose mean is the final value.
        checkpoint_every: rounds between checkpoints, as many as a kill can cost.
        callbacks: further callbacks of a run, made from the run's name and the seed.
        on_progress: called with each evaluation of a run.
        on_run_end: called with each run, one that was read included, and those that are tried.

    Raises:
        ConfigurationError: an argument is impossible.
    """

    @checked("methods", "tune", last=COUNT, checkpoint_every=COUNT, tune_rounds=COUNT, jobs=COUNT)
    def __init__(
        self,
        methods: Methods,
        task: Task,
        data: Data,
        *,
        seeds: Sequence[int] = (0, 1, 2),
        trainer: Trainer = None,
        tune: Tune | None = None,
        tune_rounds: int | None = None,
        jobs: int = 1,
        root: str | Path = "logs/compare",
        metric: str = "test/accuracy",
        mode: Mode = "max",
        target: float | None = None,
        last: int = 1,
        checkpoint_every: int = 10,
        callbacks: Callbacks = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_run_end: Callable[[Outcome], None] | None = None,
    ) -> None:
        if isinstance(task, nn.Module) and not isinstance(task, FederatedTask):
            raise ConfigurationError(
                f"`task` of a comparison must be a FederatedTask, but is {shown(task)}; wrap the module, e.g. "
                f"`Classification({type(task).__name__}(…))`."
            )
        self.methods, self.seeds, self.root, self.jobs = name_methods(methods), list(seeds), Path(root), jobs
        self.on_progress, self.on_run_end = on_progress, on_run_end
        self.table = Table((), metric, mode, target, last)
        self.maker = RunMaker(task, data, trainer, callbacks, checkpoint_every, self.table)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"`seeds` must hold at least one seed, and none twice, but is {self.seeds}.")
        self._grids = read_grids(self.methods, {} if tune is None else tune)
        self._candidates = {
            name: candidates_of(name, method, self._grids[name]) for name, method in self.methods.items()
        }
        length = self._check_trainer(tune_rounds if self._tuned else None)
        self._tune_rounds = None if tune_rounds == length else tune_rounds

    def check(self) -> None:
        """Set each candidate of each method up on the first seed's data, without a round.

        Raises:
            ConfigurationError: a method cannot run, or a folder holds another run or cannot be written.
            MethodError: a hook of a method breaks the contract.
        """
        for candidates in self._candidates.values():
            for candidate in candidates:
                first, *others = (self._run(candidate, seed) for seed in self.seeds)
                if len(candidates) > 1:
                    first, others = self._trial(candidate), [first, *others]
                identity = self.maker.check(first)
                for run in others:
                    self.maker.check_like(run, identity)
        self._tell_of_other_runners()

    def _tell_of_other_runners(self) -> None:
        runs = [self._run(one, seed) for some in self._candidates.values() for one in some for seed in self.seeds]
        others = {run: names for run in runs if (names := self.maker.other_runners(run))}
        if others:
            run, names = next(iter(others.items()))
            rank_zero_warn(
                f"{len(others)} of the runs in {self.root} were made with another `runner` than is asked for now ({run} with "
                f"{' and '.join(map(repr, names))}); they are kept, though numbers differ by rounding. Choose another folder to "
                "have all made in one way."
            )

    def run(self) -> Table:
        """Check, run what is not finished, and return the table.

        Raises:
            ConfigurationError: see `check`.
            ClientError, MethodError: a run failed otherwise than by diverging; the next call goes on from there.
            KeyboardInterrupt: SIGTERM or SIGINT came, and the runs under way ended after their rounds.
        """
        return run_together([self], self.jobs)[0]

    def stages(self) -> Generator[list[Run], list[Outcome], Table]:
        """Yields runs that can be made side by side, is sent what came of them, in the same order, and returns the table."""
        ranked = yield from self._try_candidates()
        taken: dict[str, tuple[Candidate, list[Outcome]]] = {}
        pending = list(self.methods)
        while pending:
            now = {name: ranked[name].pop(0) for name in pending}
            keys = [(name, seed) for seed in self.seeds for name in pending]  # one seed's data after another's
            outcomes = dict(zip(keys, (yield [self._run(now[name], seed) for name, seed in keys]), strict=True))
            for name, candidate in now.items():
                runs = [outcomes[name, seed] for seed in self.seeds]
                if name not in taken or _diverged(runs) < _diverged(taken[name][1]):
                    taken[name] = candidate, runs
            pending = [name for name in pending if ranked[name] and _diverged(taken[name][1])]
        return self._tabulate(taken)

    @property
    def _tuned(self) -> dict[str, list[Candidate]]:
        """The candidates of the methods that have several."""
        return {name: candidates for name, candidates in self._candidates.items() if len(candidates) > 1}

    def _check_trainer(self, tune_rounds: int | None) -> int:
        """The rounds of the trainer, which evaluates and can be made for as many rounds as points are tried in.

        Raises:
            ConfigurationError: it does not, or cannot.
        """
        run = self._run(next(iter(self._candidates.values()))[0], self.seeds[0])
        trainer = self.maker.trainer(run)
        if trainer.evaluate_every < 1:
            raise ConfigurationError("`evaluate_every` must be at least 1, for evaluations are compared, but is 0.")
        if tune_rounds:
            self.maker.trainer(replace(run, rounds=tune_rounds))
        return trainer.max_rounds

    def _try_candidates(self) -> Generator[list[Run], list[Outcome], dict[str, list[Candidate]]]:
        """Try the points of the grids; give the candidates of each method, the best first."""
        trials = {one.name: self._trial(one) for candidates in self._tuned.values() for one in candidates}
        outcomes = dict(zip(trials, (yield list(trials.values())), strict=True)) if trials else {}
        ranked = {name: list(candidates) for name, candidates in self._candidates.items()}
        for name, candidates in self._tuned.items():
            found = [outcomes[candidate.name] for candidate in candidates]
            ranked[name] = best_first(candidates, found, self.table.last, self.table.mode)
        return ranked

    def _run(self, candidate: Candidate, seed: int) -> Run:
        folder = self.root / slug(candidate.name) / f"seed_{seed}"
        return Run(candidate.name, candidate.method, seed, folder, self.table.metric)

    def _trial(self, candidate: Candidate) -> Run:
        """The run that tries a candidate: the first of those that count, unless it is to be shorter."""
        run, rounds = replace(self._run(candidate, self.seeds[0]), metric=self._tune_metric), self._tune_rounds
        if rounds is None:
            return run
        folder = self.root / f"tuning_{rounds}" / run.folder.relative_to(self.root)
        return replace(run, name=f"{run.name} (tried)", folder=folder, rounds=rounds)

    @property
    def _tune_metric(self) -> str:
        """The metric by which candidates are ranked: that of the validation split, where there is one."""
        split, _, name = self.table.metric.partition("/")
        seed = self.seeds[0]
        run = self._run(next(iter(self._candidates.values()))[0], seed)
        evaluates = split == "test" and "val" in self.maker.trainer(run).evaluate_on
        return f"val/{name}" if evaluates and self.maker.problem(seed).data.val is not None else self.table.metric

    def _tabulate(self, taken: Mapping[str, tuple[Candidate, list[Outcome]]]) -> Table:
        outcomes = [replace(run, name=name) for name, (_, runs) in taken.items() for run in runs]
        points = {name: Tuned(one.values, self._grids[name]) for name, (one, _) in taken.items() if one.values}
        rounds = f"{self._tune_rounds} rounds" if self._tune_rounds else "whole runs"
        tuning = f"Tuned on seed {self.seeds[0]} in {rounds} by {self._tune_metric}." if self._tuned else ""
        return replace(self.table, outcomes=tuple(outcomes), tuned=points, tuning=tuning)


@checked(jobs=COUNT)
def run_together(comparisons: Sequence[Comparison], jobs: int = 1, on_table: OnTable | None = None) -> list[Table]:
    """Check several comparisons, run what is missing of them, and return their tables.

    A run that several of them have in one folder is made once.

    Args:
        comparisons: in the order in which they are worked off.
        jobs: see `Comparison`; what each of them says of itself does not count here.
        on_table: called with a comparison's position and its table, in this order, as soon as it is there.

    Raises:
        ConfigurationError, ClientError, MethodError, KeyboardInterrupt: see `Comparison.run`.
    """
    processes = Processes(comparisons, jobs) if jobs > 1 else None  # first, since this loads nothing
    for comparison in comparisons:
        comparison.check()
    told = on_table or (lambda place, table: None)
    return in_turn(comparisons, told) if processes is None else side_by_side(comparisons, processes, told)


def _diverged(runs: Sequence[Outcome]) -> int:
    return sum(run.failure is not None for run in runs)


_OPTIONS = frozenset(inspect.signature(Comparison).parameters)
