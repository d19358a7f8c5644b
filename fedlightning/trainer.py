"""`FederatedTrainer`: orchestrates the rounds. `fit`, `_run_rounds` and `_end_round` are a run, read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Never

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._arguments import LIGHTNING, LIGHTNING_FIT, check_evaluation, check_fit, refuse_unknown
from fedlightning._checked import COUNT, checked
from fedlightning._identity import identify
from fedlightning._run_log import RunLog, open_folder
from fedlightning._signals import stop_on_signal
from fedlightning._start import checkpoint_named, first_state
from fedlightning.callbacks import ModelCheckpoint, RoundProgress, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.callbacks.callback_list import CallbackList, in_order
from fedlightning.data.module import FederatedDataModule, SplitName
from fedlightning.errors import ConfigurationError, add_notes, raise_first
from fedlightning.evaluation.evaluation import Evaluation, check_evaluations, evaluating_alone, model_of
from fedlightning.evaluation.pooled import EvaluationGivenUp, GlobalEvaluator
from fedlightning.execution.auto import Workload
from fedlightning.execution.step import GRADIENT, LOCAL
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.hooks.server import ServerHooks
from fedlightning.layout import Layout
from fedlightning.loggers import Rows, check_writable, log_hyperparameters
from fedlightning.method import FedMethod, Round, hyperparameters
from fedlightning.participation import (
    BatchingPolicy,
    ClientSampler,
    Participation,
    RoundPlan,
    Stragglers,
    UniformSampling,
)
from fedlightning.participation.participation import clients_in
from fedlightning.server.checkpoint import check_identity, load_checkpoint, save_checkpoint
from fedlightning.server.client_memory import ClientMemory
from fedlightning.server.round_state import RoundState
from fedlightning.server.server import Server
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State
from fedlightning.task import FederatedTask


class FederatedTrainer:
    """Runs a method on a task and its data, round after round.

    Same seed, same result, bit for bit: for any number of slots, after a kill and resume, whether or not one evaluates.

    Args:
        max_rounds: T, rounds in all; a resumed run ends there too.
        clients_per_round: an int is a number of clients (1 is one client), a float a fraction of them (1.0 is all).
        strategy: where clients are trained.
        callbacks: None for progress, throughput and checkpoints; a sequence is taken as it is.
        logger: Lightning's loggers; True for TensorBoard and CSV in `logs/<method>/version_N`, False for none.
        evaluate_every: rounds between evaluations. One comes before the first round and one after the last, whatever ends the
            run; 0 for none.
        evaluate_on: what is evaluated: "val" (the validation split, where there is one, as `val/…`), "test" (as `test/…`) and
            "train" (all clients' training data, as `train_all/…`).
        sampler: chooses who takes part in a round.
        seed: of everything random in the run. The partition has a seed of its own, in the data module.
        stragglers: clients that do less than asked in a round, or nothing; None for nobody.
        batching_policy: decides which examples are in a client's batches; None lets the data module decide.
        seconds_to_evaluate: what an evaluation gets once a signal is to end the run.
        **others: none; a name of Lightning's trainer is refused with what there is here in its place.

    Attributes:
        round: finished rounds.
        start_round: finished rounds when this fit began.
        state: the `RoundState` of the last finished round.
        num_clients, clients_per_round: N and m, resolved in `fit`; `wished_clients` is what was asked for.
        participation, server, evaluation: who trains, what becomes of it, and how it is scored, once `fit` began.
        should_stop, stop_reason: set by a callback to end the run after the round.

    Raises:
        ConfigurationError: an argument is impossible.
    """

    @checked(max_rounds=COUNT, evaluate_every="[0, inf)", seconds_to_evaluate="[0, inf)")
    def __init__(
        self,
        max_rounds: int = 100,
        clients_per_round: int | float = 1.0,
        strategy: SlotStrategy | None = None,
        callbacks: Sequence[Callback] | None = None,
        logger: bool | Logger | Sequence[Logger] = True,
        evaluate_every: int = 1,
        evaluate_on: tuple[SplitName, ...] = ("val", "test"),
        sampler: ClientSampler | None = None,
        seed: int = 0,
        stragglers: Stragglers | None = None,
        batching_policy: BatchingPolicy | None = None,
        seconds_to_evaluate: float = 10.0,
        **others: Never,
    ) -> None:
        refuse_unknown("FederatedTrainer", others, FederatedTrainer, LIGHTNING)
        if len(set(evaluate_on)) < len(evaluate_on):
            raise ConfigurationError(
                f"`evaluate_on` of FederatedTrainer must name each split once, but is {evaluate_on!r}; leave out the repetition."
            )
        self.max_rounds, self.seed = max_rounds, seed
        self.evaluate_every, self.evaluate_on = evaluate_every, evaluate_on
        self.wished_clients, self.sampler = clients_per_round, sampler or UniformSampling()
        self.stragglers, self.batching_policy = stragglers, batching_policy
        self.strategy, self.seconds_to_evaluate = strategy or SlotStrategy(), seconds_to_evaluate
        chosen = [RoundProgress(), Throughput(), ModelCheckpoint()] if callbacks is None else list(callbacks)
        self.callbacks: list[Callback] = in_order(chosen)
        self._logger, self._log = logger, RunLog()
        self._rows, self._folder = Rows([]), Path("logs")
        self._finished: tuple[RoundState, dict[str, float]] = RoundState(0, State()), {}
        self._beginning: tuple[RoundState, RoundPlan] | None = None
        self.round = self.start_round = self.num_clients = self.clients_per_round = 0
        self.should_stop, self.stop_reason = False, ""
        self._is_fitting = False

    # -- what one may ask for -----------------------------------------------------------------------------------------
    def fit(
        self,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        state: RoundState | None = None,
        ckpt_path: str | Path | Literal["last"] | None = None,
        **others: Never,
    ) -> RoundState:
        """Run to `max_rounds`. The task is not changed; `task.with_state(state)` is the trained one.

        A run has one way out, whatever ends it:

            all rounds are over, or a       a signal stops an evaluation,    a hook, a callback or a
            callback or a signal stops      which gets `seconds_to_          client fails, or Ctrl-C
            the run after a round           evaluate`                        comes a second time
                     |                               |                               |
                     |                     back to the last finished round, callbacks included
                     |                               |                               |
            the last model is evaluated              |                               |
                     |                               |                               |
            on_fit_end of all callbacks, which save what is unsaved          on_exception of all callbacks,
                     |                                                       which save what is unsaved
                     |                                                               |
            the loggers are closed, the slots end, the folder is unlocked; then the error is raised

        A run that goes on begins at the last finished round. If that is the last round of all, or the callback that ended the run
        ends it again, the way out is the same.

        Args:
            method: the federated method.
            task: the model, its loss and metrics; its parameters are the first global model.
            data: the clients' data.
            state: go on from the state that a `fit` returned. The method's class, the model and its frozen parameters must be
                the same, and the partition where clients remember something; hyperparameters, data and seed may be others.
            ckpt_path: go on from a checkpoint; "last" is `checkpoints/last.ckpt` in the run's folder. All that decides the run's
                numbers must be the same, data and frozen parameters by a hash of all their bytes; `max_rounds`,
                `evaluate_every`, callbacks and slots may be others.
            **others: none; a name of Lightning's `fit` is refused with what there is here in its place.

        Raises:
            ConfigurationError: something does not fit; raised before the first round.
            ClientError, MethodError: a client failed, or a hook broke its contract; the last finished round was saved.
            SaveError: the disk is full; what was saved before is whole.
            KeyboardInterrupt: SIGTERM or SIGINT came, and the run ended after the round.
        """
        refuse_unknown("`fit`", others, FederatedTrainer.fit, LIGHTNING_FIT)
        check_fit(method, task, data, state, ckpt_path)
        self._refuse_within_a_fit("fit")
        with ExitStack() as opened:
            opened.callback(setattr, self, "_is_fitting", False)
            self._is_fitting = True
            self._set_up(method, task, data, state, ckpt_path, opened)
            with stop_on_signal(self._stop_soon), self._way_out():
                self._run_rounds(self._begin())
        return self.state

    def check(self, method: FedMethod, task: FederatedTask, data: FederatedDataModule) -> None:
        """Refuse everything that `fit` would refuse before the first round. Nothing is trained, logged or written.

        Graphs are built where `fit` would build them, and `fit` then finds them on disk. Two examples of each split are
        evaluated. Callbacks check what they watch, but none is called that a run has begun.

        Raises:
            ConfigurationError, MethodError: as `fit`.
        """
        check_fit(method, task, data, None, None)
        self._refuse_within_a_fit("check")
        alone = copy(self)  # the last fit of this trainer stays as it is
        with ExitStack() as opened:
            alone._set_up(method, task, data, None, None, opened, writes=False)
            alone._prepare()
            alone._calls.check()
            alone._check_callbacks(alone.evaluation.rehearse(alone.state))

    def identify(self, method: FedMethod, task: FederatedTask, data: FederatedDataModule) -> dict[str, Any]:
        """Everything that decides a run's numbers but its length, as plain JSON, with hashes in place of tensors.

        A checkpoint holds it, and a run goes on only where it is the same. A comparison knows its runs by it.
        """
        check_fit(method, task, data, None, None)
        data.prepare_data()
        data.setup("fit")
        settings = {
            "seed": self.seed,
            "clients_per_round": clients_in(self.wished_clients, data.clients.num_clients),
            "sampler": self.sampler,
            "stragglers": self.stragglers,
            "batching_policy": self.batching_policy,
            "precision": self.strategy.precision,
        }
        return identify(method, task, data, self.evaluate_on, settings)

    def validate(
        self, task: FederatedTask, data: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> dict[str, float]:
        """Score a model on the validation split.

        Args:
            task: the model.
            data: whose validation split.
            ckpt_path: a checkpoint whose model is scored in the task's place; "last" or "best" is one of this trainer's last fit.

        Returns:
            The metrics, `val/…` over all examples and `val_clients/…` over clients.

        Raises:
            ConfigurationError: there is no validation split, or the checkpoint is another model's.
        """
        with self._evaluating_alone("validate", task, data, "val", ckpt_path) as (evaluator, model):
            return evaluator.score(*model)

    def test(
        self, task: FederatedTask, data: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> dict[str, float]:
        """Score a model on the test set, as `validate` does on the validation split: `test/…` and `test_clients/…`."""
        with self._evaluating_alone("test", task, data, "test", ckpt_path) as (evaluator, model):
            return evaluator.score(*model)

    def predict(self, task: FederatedTask, data: FederatedDataModule, ckpt_path: str | Path | None = None) -> Any:
        """The model's outputs for the test set, in its order: a tensor [n, …] or a tree of tensors, on the CPU.

        Args:
            task: the model.
            data: whose test set.
            ckpt_path: see `validate`.
        """
        with self._evaluating_alone("predict", task, data, "test", ckpt_path) as (evaluator, model):
            return evaluator.predict(*model)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of everything that this fit logged."""
        return self._log.metrics

    @property
    def log_dir(self) -> Path:
        """The run's folder: its loggers', or `logs/<method>/version_N` where they have none and checkpoints are to lie there."""
        return self._folder

    @property
    def loggers(self) -> list[Logger]:
        """The loggers of the last fit."""
        return self._rows.loggers

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in the model's flat vector, after `fit` began."""
        return self._layout

    # -- what callbacks may ask for -----------------------------------------------------------------------------------
    def log(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to what is logged for this round; for callbacks, up to `on_round_end`, and in `on_fit_end`.

        Raises:
            ConfigurationError: one is no number.
        """
        self._log.add(metrics)

    def trial(self, clients: Sequence[int], look: Callable[[CohortResult], None]) -> None:
        """Train any clients in the round that begins, for a callback's `on_round_start`, and throw the results away.

        Each does what it would do if it took part: from the round's global model and what it remembers, with its own
        batches, a straggler's part of the work, and the method's gradient pass over these clients. The run's numbers are
        left alone, and nothing is logged. It costs the local training of these clients.

        Args:
            clients: who trains.
            look: is given each cohort, in packing order.

        Raises:
            ConfigurationError: it is called elsewhere.
        """
        if self._beginning is None:
            raise ConfigurationError(
                "`trial` must be called in a callback's `on_round_start`, but no round begins here; move the call there, "
                "and keep what it gives."
            )
        state, plan = self._beginning
        plan = plan.among(clients)
        for cohort in self.strategy.run(plan, self._inputs(state, plan)):
            look(cohort)

    @checked()
    def save_checkpoint(self, path: str | Path) -> None:
        """Write the state of the last finished round and what the callbacks remembered then, atomically.

        A round is finished when all callbacks have seen it and its row is logged; a callback that saves rounds of its own says
        `stage = "save"`.

        Raises:
            SaveError: the disk is full, or the folder cannot be written.
            ConfigurationError: no `fit` has begun.
        """
        if not hasattr(self, "_identity"):
            raise ConfigurationError("`save_checkpoint` must be called in a `fit` or after it, but none has begun.")
        state, row = self._finished
        save_checkpoint(Path(path), state, self._identity, self._calls.remembered, row, self.strategy.execution.saved())

    # -- a run --------------------------------------------------------------------------------------------------------
    def _set_up(
        self,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        state: RoundState | None,
        ckpt_path: str | Path | None,
        opened: ExitStack,
        writes: bool = True,
    ) -> None:
        """Check everything and make what the run needs; `opened` closes it again, whatever happens.

        Args:
            method: see `fit`.
            task: see `fit`.
            data: see `fit`.
            state: see `fit`.
            ckpt_path: see `fit`.
            opened: closes what was made.
            writes: whether the run has a folder and loggers.
        """
        # 1. The data, and whether task and method fit them.
        data.prepare_data()
        data.setup("fit")
        for examples in (data.train, data.test, *([data.val] if data.val else [])):
            task.check(*examples)
        self.method, self.data, self._task, self._layout = method, data, task, Layout.of(task)
        hooks = ServerHooks(method, self._layout, self.max_rounds)
        # 2. Who takes part.
        self.participation = Participation(
            data,
            self.wished_clients,
            self.sampler,
            self.stragglers,
            self.batching_policy,
            self.seed,
            hooks.lr,
            hooks.steps,
        )
        self.num_clients, self.clients_per_round = self.participation.num_clients, self.participation.clients_per_round
        hooks.check(self.participation.round(0))
        _check_gradient_pass(method, data)
        check_evaluations(method, data, self.evaluate_every, self.evaluate_on)
        # 3. Where the run is written.
        self._forget_the_last_fit()
        self._identity = self.identify(method, task, data)
        if writes:
            folders = [folder for callback in self.callbacks for folder in callback.folders]
            self._folder, self._rows = open_folder(self._logger, type(method).__name__.lower(), folders, opened)
        if self.strategy.memory_dir:
            check_writable(self.strategy.memory_dir, "`memory_dir` of SlotStrategy")
        # 4. Where it goes on, and where clients are trained.
        saved, execution = self._read_checkpoint(ckpt_path)
        work = Workload.of(method, data, self.clients_per_round, self.max_rounds)
        self.strategy.setup(method, task, self._layout, data, work, execution)
        opened.callback(self.strategy.teardown)
        self.server = Server(hooks, self._layout, self.num_clients, self.strategy.root_device, self._identity)
        evaluator = GlobalEvaluator(self.strategy, task, data, self.evaluate_on)
        self.evaluation = Evaluation(evaluator, self.evaluate_every, self.max_rounds, self._evaluating)
        self.state = first_state(self.server, task, method, saved, state, self._memory(), self._identity)
        self._finished = self.state, self._finished[1]
        self.round = self.start_round = self.state.round

    def _begin(self) -> RoundState:
        """Make what the first round needs, and log the state that it begins at, which is returned."""
        self._log_hyperparameters()
        self._prepare()
        self._calls.call("on_fit_start")
        self._calls.check()
        self._calls.remember()
        if self.round >= self.max_rounds:
            rank_zero_info(
                f"Nothing is left to do: {self.round} rounds are over, and {self.max_rounds} were asked for."
            )
        state, row = self.state, self._finished[1]
        if self.round > 0:  # a run that goes on logs its last round again
            self._log.row = {**row, **self._log.row}
            raise_first(self._rows.write_again(self._log.row, self.round) if row else [])
        elif (metrics := self.evaluation.after(0, state)) is not None:
            # `self.state` stays that of no evaluation, since a run that goes on from round 0 evaluates again.
            state, metrics = self._learn(state, metrics, self.participation.round(0))
            self._log.add(metrics, own=True)
            self._calls.call("on_evaluation_end", metrics)
        self._check_callbacks()
        if self.round == 0:
            raise_first(self._rows.write(self._log.row, 0))
        return state

    def _run_rounds(self, state: RoundState) -> None:
        """Run the rounds that are left, until one is told to be the last."""
        for t in range(self.round, self.max_rounds):
            if self.should_stop:
                return
            plan = self.participation.plan(t)
            self._start_round(state, plan)
            inputs = self._inputs(state, plan)
            results = self.strategy.run(plan, inputs, LOCAL, self._following(t))
            state, metrics = self.server.step(state, inputs, self._shown(results))
            self._log.add(metrics, own=True)
            evaluation = self.evaluation.after(t + 1, state)
            if evaluation is not None:
                state, evaluation = self._learn(state, evaluation, plan.round)
            self._end_round(state, evaluation)

    def _start_round(self, state: RoundState, plan: RoundPlan) -> None:
        self._log.row = {}
        self._beginning = state, plan
        self._calls.call("on_round_start", plan.round)
        self._beginning = None
        if self.stragglers:
            self._log.add({"round/stragglers": float(plan.work.stragglers)}, own=True)

    def _end_round(self, state: RoundState, evaluation: Mapping[str, float] | None) -> None:
        """Let callbacks see the round, log its row, and save it; the steps are those of `Callback`'s docstring."""
        self.state, self.round, failures = state, state.round, list[Exception]()
        if evaluation is not None:
            self._log.add(evaluation, own=True)
            failures += self._calls.see_evaluation(evaluation)
        failures += self._calls.end_round(self._log.row, self._log.own)
        failures += self._rows.write(self._log.row, self.round)
        self._calls.remember()
        self._finished = self.state, dict(self._log.row)
        failures += self._calls.save(self._log.row)
        raise_first(failures)

    # -- the way out, whatever ends the run -----------------------------------------------------------------------------
    @contextmanager
    def _way_out(self) -> Iterator[None]:
        """End the run as `fit` draws it."""
        try:
            try:
                yield
            except EvaluationGivenUp:
                raise_first(self._go_back())
                rank_zero_info(
                    f"{self.stop_reason}: the evaluation was given up; round {self.round} is the last finished one."
                )
            self._end()
            self._rows.status = "success"
        except BaseException as error:
            add_notes(error, [*self._go_back(), *self._calls.call_all("on_exception", error)])
            raise

    def _stop_soon(self, reason: str) -> None:
        """End the run after the round that is being trained."""
        self.should_stop, self.stop_reason = True, reason
        self._deadline = monotonic() + self.seconds_to_evaluate

    def _go_back(self) -> list[Exception]:
        """Go back to the end of the last finished round, callbacks included; what they raised."""
        self.state, self._log.row = self._finished[0], dict(self._finished[1])
        self.round, self._beginning = self.state.round, None
        try:
            self._calls.take_up(self._calls.remembered)
        except Exception as error:  # noqa: BLE001 - a note of what ended the run
            return [error]
        return []

    def _end(self) -> None:
        """Evaluate where the run ended between evaluations, and log that and what callbacks log at the end.

        No callback decides by it and no checkpoint holds it, since a run that goes on from here would not have it.
        """
        before = dict(self._log.row)
        if self.evaluation.is_missing(self.round, before):
            with suppress(EvaluationGivenUp):
                metrics = self.evaluation.run(self.state)
                _, metrics = self._learn(self.state, metrics, self.participation.round(self.round - 1))
                self._log.add(metrics, own=True)
                self._calls.call("on_evaluation_end", metrics)
        self._calls.call("on_fit_end")
        late = self._log.later_than(before)
        self._log.metrics = {**self._log.row, **self._log.metrics}
        if late:
            raise_first(self._rows.write(late, self.round))

    # -- the parts of a round -------------------------------------------------------------------------------------------
    def _inputs(self, state: RoundState, plan: RoundPlan) -> RoundInputs:
        """What the clients are given, after the pass over all their data that some methods want first."""
        inputs = self.server.inputs(state, plan.round)
        if self.server.wants_gradients:
            inputs = self.server.with_gradients(inputs, self.strategy.run(plan, inputs, GRADIENT))
        return inputs

    def _following(self, t: int) -> Callable[[], RoundPlan] | None:
        """The plan after round t, if there is one, of which idle slots may draw."""
        return (lambda: self.participation.plan(t + 1)) if t + 1 < self.max_rounds else None

    def _shown(self, results: Iterator[CohortResult]) -> Iterator[CohortResult]:
        """The cohorts, each of which the callbacks see once the server has added it up."""
        for cohort in results:
            yield cohort
            self._calls.call("on_cohort_end", cohort)

    def _learn(
        self, state: RoundState, metrics: Mapping[str, float], round: Round
    ) -> tuple[RoundState, dict[str, float]]:
        """The state after the method's look at an evaluation, and what is logged of it."""
        state = self.server.learn(state, metrics, round)
        return state, {**metrics, **self.server.numbers(state)}

    def _evaluating(self, done: int, total: int) -> bool:
        """Show how far an evaluation is; whether it goes on."""
        self._calls.call("on_evaluation_progress", done, total)
        return monotonic() <= self._deadline

    # -- evaluations outside of a run -----------------------------------------------------------------------------------
    @contextmanager
    def _evaluating_alone(
        self, name: str, task: FederatedTask, data: FederatedDataModule, split: SplitName, ckpt_path: str | Path | None
    ) -> Iterator[tuple[GlobalEvaluator, tuple[Tensor, Tensor]]]:
        """An evaluator of a split, and the model: the checkpoint's, or the task as it is."""
        check_evaluation(name, task, data, ckpt_path)
        self._refuse_within_a_fit(name)
        model = model_of(task, checkpoint_named(ckpt_path, self.log_dir, self.callbacks))
        with evaluating_alone(self.strategy, task, data, split) as evaluator:
            yield evaluator, model

    def _refuse_within_a_fit(self, name: str) -> None:
        """Refuse what would take the slots of a fit that goes on.

        Raises:
            ConfigurationError: a fit of this trainer goes on.
        """
        if self._is_fitting:
            raise ConfigurationError(
                f"`{name}` of a trainer must be called before or after its `fit`, but a `fit` goes on; use another trainer, or "
                "let `evaluate_every` evaluate."
            )

    # -- before the first round -----------------------------------------------------------------------------------------
    def _forget_the_last_fit(self) -> None:
        self.callbacks = in_order(self.callbacks)
        self._calls, self._log = CallbackList(self), RunLog()
        self._rows, self._folder = Rows([]), Path("logs")
        self._finished, self._beginning = (RoundState(0, State()), {}), None
        self.should_stop, self.stop_reason, self._deadline = False, "", math.inf

    def _read_checkpoint(self, ckpt_path: str | Path | None) -> tuple[RoundState | None, dict[str, Any] | None]:
        """The state in a checkpoint, if the run goes on from one, and how it was executed; callbacks take up theirs."""
        if (path := checkpoint_named(ckpt_path, self.log_dir, self.callbacks)) is None:
            return None, None
        state, meta = load_checkpoint(path, self._memory(), self.num_clients)
        check_identity(path, meta["identity"], self._identity)
        self._calls.take_up(meta["callbacks"])
        self._finished = self._finished[0], meta["row"]
        return state, meta["execution"]

    def _memory(self) -> ClientMemory:
        """What the clients remember: nothing yet."""
        folder = self.strategy.memory_dir
        return ClientMemory(None, folder or self.log_dir, self.num_clients, 0 if folder else self.strategy.memory_bytes)

    def _prepare(self) -> None:
        """Let the strategy make what the first round needs, before anything is trained."""
        if self.round >= self.max_rounds:
            return
        plan = self.participation.plan(self.round)
        before, inputs = self.server.rehearsed(self.state, plan.round, plan.clients)
        self.strategy.prepare(
            plan, {GRADIENT: before, LOCAL: inputs} if self.server.wants_gradients else {LOCAL: inputs}
        )

    def _check_callbacks(self, evaluated: Sequence[str] = ()) -> None:
        """Let callbacks refuse, e.g. a metric that nothing logs, as far as that is known before the first round.

        Args:
            evaluated: names of what evaluations will log, where one was tried, `*` for any part of a name.
        """
        known = ["train/loss", "communication/up_bytes", "communication/down_bytes"]
        known += ["round/stragglers"] if self.stragglers else []
        if not self._log.own:  # after an evaluation, what it logged is in `metrics`
            known += evaluated or self.evaluation.names
        for callback in self.callbacks:
            callback.check(self, known)

    def _log_hyperparameters(self) -> None:
        # No name is the beginning of another: MLflow keeps each as a file, and folders of that name.
        fields = {f"method/{name}": value for name, value in hyperparameters(self.method).items()}
        run = {
            "clients_per_round": self.clients_per_round, "num_clients": self.num_clients, "seed": self.seed,
            "sampler": repr(self.sampler), "stragglers": repr(self.stragglers) if self.stragglers else None,
        }  # fmt: skip
        log_hyperparameters(self.loggers, {"method/class": type(self.method).__name__, **fields, **run})


def _check_gradient_pass(method: FedMethod, data: FederatedDataModule) -> None:
    """Check that a method that wants the gradient over all of a client's data may look at all of them."""
    if data.batching.drop_last and method.gradient_pass() != "none":
        raise ConfigurationError(
            f"`batching.drop_last` of {type(data).__name__} must be False for {type(method).__name__}, whose clients compute a "
            "gradient over all their data, but is True; leave it out, or use a `size` of Batching that divides the clients'."
        )
