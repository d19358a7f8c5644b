"""`FederatedTrainer`: orchestrates the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import mul
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Never

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._arguments import LIGHTNING, LIGHTNING_FIT, check_fit, refuse_unknown
from fedlightning._checked import COUNT, checked
from fedlightning._identity import check_state, identify
from fedlightning._locks import locked
from fedlightning._signals import stop_on_signal
from fedlightning.callbacks import ModelCheckpoint, RoundProgress, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.callbacks.calls import Calls, in_order
from fedlightning.callbacks.monitor import Monitored
from fedlightning.data.module import FederatedDataModule, SplitName
from fedlightning.errors import ConfigurationError
from fedlightning.evaluation.pooled import Evaluation, EvaluationGivenUp
from fedlightning.execution.auto import Workload
from fedlightning.execution.plan import RoundInputs, RoundPlan
from fedlightning.execution.runners.base import CohortResult
from fedlightning.execution.step import GRADIENT, LOCAL, Phase
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.hooks.server import ServerHooks
from fedlightning.layout import Layout, flatten_buffers, identify_model, persistent_buffers
from fedlightning.loggers import Rows, check_writable, claim_version, log_hyperparameters, run_loggers
from fedlightning.method import FedMethod, Round, hyperparameters, visible, weights
from fedlightning.participation.samplers import ClientSampler, UniformSampling
from fedlightning.participation.stragglers import Rounds, Stragglers, Work
from fedlightning.server.aggregation import OrderedMean
from fedlightning.server.checkpoint import RoundState, check_identity, check_model, load_checkpoint, save_checkpoint
from fedlightning.server.client_memory import HOST_BYTES, ClientMemory
from fedlightning.state import State
from fedlightning.task import FederatedTask

_SECONDS_TO_EVALUATE = 10
"""What an evaluation gets once the run is to end by a signal."""


class FederatedTrainer:
    """Runs a method on a task and its data, round after round.

    Same seed, same result, bit for bit: for any number of slots, after a kill and resume, whether or not one evaluates.

    Args:
        max_rounds: T, rounds in all; a resumed run ends there too.
        clients_per_round: an int is a number of clients (1 is one client), a float a fraction of them (1.0 is all).
        strategy: where clients are trained.
        callbacks: None for progress, throughput and checkpoints; a sequence is taken as it is.
        logger: Lightning's loggers; True for TensorBoard and CSV in `logs/<method>/version_N`, False for none.
        evaluate_every: rounds between evaluations, which also come before the first round and after the last, whatever ends
            the run; 0 for none.
        evaluate_on: which splits are evaluated: "val", the validation split, if the data have one (logged as `val/…`); "test",
            the test set (`test/…`); "train", all clients' training data (`train_all/…`).
        sampler: who takes part in a round.
        seed: of everything random in the run; the data module has another, of the partition.
        stragglers: clients that do less than asked in a round, or nothing; None for nobody.
        **others: none; a name of Lightning's trainer is refused with what there is here in its place.

    Attributes:
        round: finished rounds.
        start_round: finished rounds when this fit began.
        state: the `RoundState` of the last finished round.
        metrics: the latest value of everything that this fit logged.
        num_clients, clients_per_round: N and m, resolved in `fit`.
        should_stop, stop_reason: set by a callback to end the run after the round.

    Raises:
        ConfigurationError: an argument is impossible.
    """

    @checked(max_rounds=COUNT, evaluate_every="[0, inf)")
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
        **others: Never,
    ) -> None:
        refuse_unknown("FederatedTrainer", others, FederatedTrainer, LIGHTNING)
        if len(set(evaluate_on)) < len(evaluate_on):
            raise ConfigurationError(
                f"`evaluate_on` of FederatedTrainer must name each split once, but is {evaluate_on!r}; leave out the repetition."
            )
        self.max_rounds, self.evaluate_every, self.evaluate_on, self.seed = (
            max_rounds,
            evaluate_every,
            evaluate_on,
            seed,
        )
        self._participation = clients_per_round
        self.strategy = strategy or SlotStrategy()
        self.sampler, self.stragglers = sampler or UniformSampling(), stragglers
        chosen = [RoundProgress(), Throughput(), ModelCheckpoint()] if callbacks is None else list(callbacks)
        self.callbacks: list[Callback] = in_order(chosen)
        self._logger = logger
        self.loggers: list[Logger] = []
        self._folder = Path("logs")
        self.round = self.start_round = self.num_clients = self.clients_per_round = 0
        self.metrics: dict[str, float] = {}
        self.should_stop, self.stop_reason = False, ""

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
            KeyboardInterrupt: SIGTERM or SIGINT came, and the run ended after the round; an evaluation gets ten seconds, or its
                round is not finished. A second SIGINT ends the run at once.
        """
        refuse_unknown("`fit`", others, FederatedTrainer.fit, LIGHTNING_FIT)
        check_fit(method, task, data, state, ckpt_path)
        with ExitStack() as opened:
            self._setup(method, task, data, state, ckpt_path, opened)
            with stop_on_signal(self._stop_soon):
                self._run_to_the_end()
        return self.state

    @property
    def log_dir(self) -> Path:
        """The run's folder: its loggers', or `logs/<method>/version_N` where they have none and checkpoints are to lie there."""
        folders = [str(logger.log_dir) for logger in self.loggers if logger.log_dir]
        return Path(folders[0]) if folders else self._folder

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in the model's flat vector, after `fit` began."""
        return self._layout

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add numbers to what is logged for this round; for callbacks, up to `on_round_end`, and in `on_fit_end`.

        Raises:
            ConfigurationError: one is no number.
        """
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        self.metrics.update(numbers)
        self._current.update(numbers)

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
        state, round = self._beginning
        plan = self._plan(round.index).among(clients)
        inputs, _ = self._with_gradients(plan, self._inputs(state, round))
        for cohort in self.strategy.run(plan, inputs):
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
        if not hasattr(self, "_finished"):
            raise ConfigurationError("`save_checkpoint` must be called in a `fit` or after it, but none has begun.")
        finished = self._finished
        save_checkpoint(
            Path(path),
            finished.state,
            self._identity,
            self._calls.remembered,
            finished.row,
            self.strategy.execution.saved(),
        )

    def _stop_soon(self, reason: str) -> None:
        """End the run after the round that is being trained; an evaluation gets some seconds."""
        self.should_stop, self.stop_reason = True, reason
        self._deadline = monotonic() + _SECONDS_TO_EVALUATE

    # -- before the first round -----------------------------------------------------------------------------------------
    def _reset(self) -> None:
        """Forget the last fit."""
        self.callbacks = in_order(self.callbacks)
        self._calls, self.metrics = Calls(self), {}
        self._current: dict[str, float] = {}
        self._own: set[str] = set()  # the metrics that are not the callbacks'
        self._finished = _Finished(RoundState(0, State()), {})
        self._beginning: tuple[RoundState, Round] | None = None
        self.should_stop, self.stop_reason = False, ""
        self._deadline, self._status = math.inf, "failed"

    def _setup(
        self,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        state: RoundState | None,
        ckpt_path: Any,
        opened: ExitStack,
    ) -> None:
        """Check everything, and open what the run needs; `opened` closes it again, whatever happens."""
        data.prepare_data()
        data.setup("fit")
        for examples in (data.train, data.test):
            task.check(*examples)
        self.num_clients = data.clients.num_clients
        self.clients_per_round = _resolve_participation(self._participation, self.num_clients)
        sampler = self.sampler.bind(data.clients)
        sampler.check(self.num_clients, self.clients_per_round)
        self.method, self.data, self._task, self._layout = method, data, task, Layout.of(task)
        self._hooks = ServerHooks(method, self._layout, self.max_rounds)
        rounds = Rounds(data, sampler, self.clients_per_round, self.seed, self._hooks.steps)
        self._work = lru_cache(2)(rounds.works(self.stragglers or Stragglers(0.0)))
        self._hooks.check(self._round(0, self._work(0)))
        _check_gradient_pass(method, data)
        _check_evaluations(method, data, self.evaluate_every, self.evaluate_on)
        self._reset()
        self._identity = self._identify()
        self._open_folder(opened)
        saved, before = self._read_checkpoint(ckpt_path)
        work = Workload.of(method, data, self.clients_per_round, self.max_rounds)
        self.strategy.setup(method, task, self._layout, data, work, before)
        opened.callback(self.strategy.teardown)
        self._evaluation = Evaluation(self.strategy, task, data, self.evaluate_on)
        self.state = self._start_state(saved or state, taken_up=saved is None)
        self._finished = replace(self._finished, state=self.state)
        self.round = self.start_round = self.state.round

    def _open_folder(self, opened: ExitStack) -> None:
        """Make the loggers and the run's folder, and let no other run write there."""
        self._folder = Path("logs")
        self.loggers = self._make_loggers()
        self._rows = Rows(self.loggers)
        if self.strategy.memory_dir:
            check_writable(self.strategy.memory_dir, "`memory_dir` of SlotStrategy")
        saves = [callback.dirpath for callback in self.callbacks if isinstance(callback, ModelCheckpoint)]
        if None in saves and not any(logger.log_dir for logger in self.loggers):
            self._folder /= type(self.method).__name__.lower()
            self._folder /= claim_version(self._folder)
        if None in saves or self.loggers:
            check_writable(self.log_dir)
            if self._logger is True or self.log_dir == self._folder:  # else the loggers' maker made it
                opened.callback(_remove_if_empty, self.log_dir)
            opened.enter_context(locked(self.log_dir))
        for folder in {Path(folder) for folder in saves if folder is not None}:
            with suppress(OSError):  # the callback says so
                folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(locked(folder))
        opened.push(self._close_loggers)

    def _close_loggers(self, kind: object, error: BaseException | None, trace: object) -> None:
        failures = self._rows.close(self._status)
        if error is None:
            _raise_first(failures)
        else:
            _add_notes(error, failures)

    def _memory(self) -> ClientMemory:
        """What the clients remember: nothing yet."""
        folder = self.strategy.memory_dir
        return ClientMemory(None, folder or self.log_dir, self.num_clients, 0 if folder else HOST_BYTES)

    def _read_checkpoint(self, ckpt_path: str | Path | None) -> tuple[RoundState | None, dict[str, Any] | None]:
        """The state in a checkpoint, if the run goes on from one, and how it was executed; callbacks take up theirs."""
        if ckpt_path is None:
            return None, None
        path = self._last_checkpoint() if ckpt_path == "last" else Path(ckpt_path)
        state, meta = load_checkpoint(path, self._memory(), self.num_clients)
        check_identity(path, meta["identity"], self._identity)
        self._calls.take_up(meta["callbacks"])
        self._finished = replace(self._finished, row=meta["row"])
        return state, meta["execution"]

    def _start_state(self, state: RoundState | None, taken_up: bool) -> RoundState:
        """What the first round begins at.

        Args:
            state: what the run goes on from, if it does.
            taken_up: whether that is what a `fit` returned, and no checkpoint.
        """
        device = self.strategy.root_device
        if state is None:
            x = self._layout.read(self._task).to(device)
            buffers = flatten_buffers(persistent_buffers(self._task).values(), device)
            return self._state(0, self._hooks.configure(x), self._memory(), buffers)
        check_model(state, identify_model(self._task), f"`{type(self._task).__name__}`")
        if taken_up:
            x = self._layout.read(self._task)
            server, row = self._hooks.configure(x), self.method.configure_client(x)
            check_state(state, self._identity, server, row, self.num_clients)
        server = state.server.apply(lambda tensor: tensor.to(device))
        return self._state(state.round, server, state.memory, state.buffers.to(device))

    def _prepare(self) -> None:
        """Let the strategy make what the first round needs, before anything is trained."""
        if self.round >= self.max_rounds:
            return
        plan, wanted = self._plan(self.round), self.method.gradient_pass()
        given: dict[Phase, RoundInputs] = {}
        inputs = self._inputs(self.state, self._round(self.round, plan.work))
        if wanted != "none":
            zeros = torch.zeros_like(self.state.server.x)
            given[GRADIENT] = inputs
            inputs = replace(inputs, gradients=dict.fromkeys(plan.clients, zeros))
            if wanted == "mean":
                inputs = replace(inputs, server=inputs.server.replace(gradient=zeros))
        self.strategy.prepare(plan, {**given, LOCAL: inputs})

    def _last_checkpoint(self) -> Path:
        path = self.log_dir / "checkpoints" / "last.ckpt"
        if not path.is_file():
            raise ConfigurationError(
                f'`ckpt_path="last"` must be that of a run\'s own folder, but there is no file {path}; name the folder by '
                '`logger=run_loggers("logs", "name")` of fedlightning.loggers, or give the checkpoint\'s path.'
            )
        return path

    def _state(self, round: int, server: State, memory: ClientMemory, buffers: Tensor) -> RoundState:
        """The state of this run after so many rounds."""
        point = self._hooks.evaluation_point(server)
        return RoundState(round, server, memory, buffers, None if point is server.x else point.detach(), self._identity)

    def _identify(self) -> dict[str, Any]:
        settings = {
            "seed": self.seed, "clients_per_round": self.clients_per_round, "sampler": self.sampler,
            "stragglers": self.stragglers, "precision": self.strategy.precision,
        }  # fmt: skip
        return identify(self.method, self._task, self.data, self.evaluate_on, settings)

    def _make_loggers(self) -> list[Logger]:
        if isinstance(self._logger, bool):
            root = Path("logs") / type(self.method).__name__.lower()
            return run_loggers(root) if self._logger else []
        return [self._logger] if isinstance(self._logger, Logger) else list(self._logger)

    def _log_hyperparameters(self) -> None:
        # No name is the beginning of another: MLflow keeps each as a file, and folders of that name.
        flat = {f"method/{name}": value for name, value in hyperparameters(self.method).items()}
        trainer = {
            "clients_per_round": self.clients_per_round, "num_clients": self.num_clients, "seed": self.seed,
            "sampler": repr(self.sampler), "stragglers": repr(self.stragglers) if self.stragglers else None,
        }  # fmt: skip
        log_hyperparameters(self.loggers, {"method/class": type(self.method).__name__, **flat, **trainer})

    def _run_to_the_end(self) -> None:
        """Run; whatever ends it, what is finished is saved."""
        try:
            self._run()
            self._status = "success"
        except BaseException as error:
            failures = self._go_back()
            _add_notes(error, [*failures, *self._calls.call_all("on_exception", error)])
            raise

    def _run(self) -> None:
        self._log_hyperparameters()
        self._prepare()
        self._calls.call("on_fit_start")
        self._calls.check()
        self._calls.remember()
        try:
            state = self._begin()
            while self.round < self.max_rounds and not self.should_stop:
                self._run_round(state)
                state = self.state
        except EvaluationGivenUp:
            _raise_first(self._go_back())
            rank_zero_info(
                f"{self.stop_reason}: the evaluation was given up; round {self.round} is the last finished one."
            )
        self._end()

    def _begin(self) -> RoundState:
        """Evaluate and log what the first round begins at, which it returns; a resumed run logs its last round again."""
        state = self.state  # before the first round it stays that of no evaluation, which a resumed run makes again
        if self.round >= self.max_rounds:
            rank_zero_info(
                f"Nothing is left to do: {self.round} rounds are over, and {self.max_rounds} were asked for."
            )
        if self.round > 0:
            self._current = {**self._finished.row, **self._current}
            _raise_first(self._rows.write_again(self._current, self.round) if self._finished.row else [])
        elif self.evaluate_every:
            server, metrics = self._evaluate(state.server, state.buffers, self._round(0, self._work(0)))
            state = replace(state, server=server)
            self._log(metrics)
            self._calls.call("on_evaluation_end", metrics)
        self._check_monitors()
        if self.round == 0:
            _raise_first(self._rows.write(self._current, 0))
        return state

    def _check_monitors(self) -> None:
        """Refuse a metric that nothing logs, as far as that is known before the first round."""
        known = [
            "train/loss",
            "communication/up_bytes",
            "communication/down_bytes",
            *["round/stragglers"] * bool(self.stragglers),
        ]
        if self.evaluate_every and self.round > 0:  # what evaluations log is not known yet
            known += [*self._evaluation.logs, "server/*"]
        for callback in self.callbacks:
            if isinstance(callback, Monitored):
                callback.check_monitor(self, known)

    def _end(self) -> None:
        """Evaluate where the run ended between evaluations, and log that and what callbacks log at the end.

        No callback decides by it and no checkpoint holds it, since a run that goes on from here would not have it.
        """
        before = dict(self._current)
        evaluated = self.round == 0 or any(name.startswith(("val/", "test/", "train_all/")) for name in before)
        if self.evaluate_every and self.evaluate_on and not evaluated:
            last = self._round(self.round - 1, self._work(self.round - 1))
            with suppress(EvaluationGivenUp):
                _, metrics = self._evaluate(self.state.server, self.state.buffers, last)
                self._log(metrics)
                self._calls.call("on_evaluation_end", metrics)
        self._calls.call("on_fit_end")
        late = {name: value for name, value in self._current.items() if name not in before or before[name] is not value}
        self.metrics = {**self._current, **self.metrics}
        if late:
            _raise_first(self._rows.write(late, self.round))

    # -- every round ----------------------------------------------------------------------------------------------------
    def _run_round(self, state: RoundState) -> None:
        t, self._current = self.round, {}
        work = self._work(t)
        round = self._round(t, work)
        self._beginning = state, round
        self._calls.call("on_round_start", round)
        self._beginning = None
        if self.stragglers:
            self._log({"round/stragglers": float(work.stragglers)})
        server, rows, buffers = self._aggregate(state, round, work)
        metrics = None
        if self.evaluate_every and ((t + 1) % self.evaluate_every == 0 or t + 1 == self.max_rounds):
            server, metrics = self._evaluate(server, buffers, round)
        self.state = self._state(t + 1, server, state.memory.updated(rows), buffers)
        self.round = t + 1
        self._end_round(metrics)

    def _end_round(self, evaluation: Mapping[str, float] | None) -> None:
        """Let callbacks see the round, log its row, and save it; the steps are those of `Callback`'s docstring."""
        failures: list[Exception] = []
        if evaluation is not None:
            self._log(evaluation)
            failures += self._calls.see_evaluation(evaluation)
        failures += self._calls.end_round(self._current, self._own)
        failures += self._rows.write(self._current, self.round)
        self._calls.remember()
        self._finished = _Finished(self.state, dict(self._current))
        failures += self._calls.save(self._current)
        _raise_first(failures)

    def _go_back(self) -> list[Exception]:
        """Go back to the end of the last finished round, callbacks included; what they raised."""
        self.state, self._current = self._finished.state, dict(self._finished.row)
        self.round, self._beginning = self.state.round, None
        try:
            self._calls.take_up(self._calls.remembered)
        except Exception as error:  # noqa: BLE001 - a note of what ended the run
            return [error]
        return []

    def _round(self, t: int, work: Work) -> Round:
        return Round(t, self.num_clients, len(work.clients), self._hooks.lr(t))

    def _plan(self, t: int) -> RoundPlan:
        """Who trains in a round, and how much: known before the round begins."""
        return RoundPlan(t, self.seed, self.data, self._work(t), self._hooks.steps(t))

    def _inputs(self, state: RoundState, round: Round) -> RoundInputs:
        return RoundInputs(round, visible(self.method, state.server), state.memory, state.buffers)

    def _aggregate(self, state: RoundState, round: Round, work: Work) -> tuple[State, dict[int, State], Tensor]:
        """The server's state, what the participants remember, and the buffers after the round."""
        clients, plan = work.clients, self._plan(round.index)
        inputs, up = self._with_gradients(plan, self._inputs(state, round))
        mean, buffers = (OrderedMean(self.strategy.root_device, self._layout.dtype) for _ in range(2))
        loss = examples = 0.0
        rows, uploads = dict[int, State](), dict[int, State]()
        returns = type(self.method).on_return is not FedMethod.on_return
        for cohort in self.strategy.run(plan, inputs, self._following(round.index + 1)):
            weight = weights(self.method, cohort.num_examples.to(torch.float64))
            mean.add(cohort.upload, weight)
            buffers.add(State(all=cohort.buffers), weight)
            loss += sum(map(mul, cohort.loss.tolist(), cohort.num_examples.tolist()))
            examples += int(cohort.num_examples.sum())
            if len(cohort.state):
                rows.update(_rows(cohort.clients, cohort.state))
                uploads.update(_rows(cohort.clients, cohort.upload) if returns else {})
            up += cohort.upload.nbytes + cohort.buffers.numel() * cohort.buffers.element_size()
            self._calls.call("on_cohort_end", cohort)
        down = sum(tensor.nbytes for name, tensor in inputs.server.items() if name not in self.method.preshared)
        down += state.buffers.numel() * state.buffers.element_size()
        if returns and len(clients) < self.num_clients:  # else the next round's model, which is in its bill
            down += state.server.x.nbytes
        bill = {"communication/up_bytes": float(up), "communication/down_bytes": float(down * len(clients))}
        self._log({"train/loss": loss / examples, **bill})
        server = self._hooks.aggregate(state.server, mean.result(), round)
        if uploads:
            rows = self._hooks.returned(rows, uploads, server, server.x - state.server.x, round)
        return server, rows, buffers.result().all

    def _following(self, t: int) -> Callable[[], RoundPlan] | None:
        """The first plan that the next round runs, if there is one."""
        phase = LOCAL if self.method.gradient_pass() == "none" else GRADIENT
        return (lambda: self._plan(t).of(phase)) if t < self.max_rounds else None

    def _with_gradients(self, plan: RoundPlan, inputs: RoundInputs) -> tuple[RoundInputs, int]:
        """What the local steps are given with what `gradient_pass` asks for, and the bytes that went up for it."""
        wanted = self.method.gradient_pass()
        if wanted == "none":
            return inputs, 0
        gradients: dict[int, Tensor] = {}
        mean = OrderedMean(self.strategy.root_device)
        for cohort in self.strategy.run(plan.of(GRADIENT), inputs):
            gradients.update(zip(cohort.clients, cohort.upload.gradient, strict=True))
            mean.add(cohort.upload, weights(self.method, cohort.num_examples.to(torch.float64)))
        if wanted == "local":
            return replace(inputs, gradients=gradients), 0
        server = inputs.server.replace(gradient=mean.result().gradient)
        return replace(inputs, gradients=gradients, server=server), sum(row.nbytes for row in gradients.values())

    def _evaluate(self, server: State, buffers: Tensor, round: Round) -> tuple[State, dict[str, float]]:
        """The server's state after the method's look at an evaluation, and what is logged of it."""
        metrics = self._evaluation.run(self._hooks.evaluation_point(server), buffers, self._evaluating)
        server = self._hooks.evaluated(server, metrics, round)
        sent = {name: tensor for name, tensor in visible(self.method, server).items() if tensor.ndim == 0}
        return server, metrics | {f"server/{name}": float(sent[name]) for name in sent}

    def _evaluating(self, done: int, total: int) -> bool:
        """Show how far an evaluation is; whether it goes on."""
        self._calls.call("on_evaluation_progress", done, total)
        return monotonic() <= self._deadline

    def _log(self, metrics: Mapping[str, float]) -> None:
        """Log what no callback logs."""
        self._own.update(metrics)
        self.log(metrics)


@dataclass(frozen=True)
class _Finished:
    """The last round that every callback has seen and that is logged.

    Attributes:
        state: the run after it.
        row: what was logged for it.
    """

    state: RoundState
    row: dict[str, float]


def _number(name: str, value: Any) -> float:
    """A metric as it is logged.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"`log` of the trainer takes numbers, but {name!r} is {value!r:.80}; log a number, or write it elsewhere."
        ) from error


def _raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first error, if any, with the others as its notes."""
    if failures:
        _add_notes(failures[0], failures[1:])
        raise failures[0]


def _add_notes(error: BaseException, others: Sequence[Exception]) -> None:
    """Tell of other errors in notes of one, but for those that say the same."""
    for other in others:
        if other is not error and str(other) != str(error):
            error.add_note(f"Besides, {type(other).__name__}: {other}")


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that was refused."""
    with suppress(OSError):
        folder.rmdir()


def _check_gradient_pass(method: FedMethod, data: FederatedDataModule) -> None:
    """Check that a method that wants the gradient over all of a client's data may look at all of them."""
    if data.batching.drop_last and method.gradient_pass() != "none":
        raise ConfigurationError(
            f"`batching.drop_last` of {type(data).__name__} must be False for {type(method).__name__}, whose clients compute a "
            "gradient over all their data, but is True; leave it out, or use a `size` of Batching that divides the clients'."
        )


def _check_evaluations(
    method: FedMethod, data: FederatedDataModule, evaluate_every: int, evaluate_on: tuple[SplitName, ...]
) -> None:
    """Check that there is what is evaluated, and that a method that reacts to it gets the training loss after every round."""
    for split in evaluate_on if evaluate_every else ():
        if (found := data.split_named(split)) is not None and not len(found[0].targets):
            raise ConfigurationError(
                f"The {split} split of {type(data).__name__} must hold an example for `evaluate_on={evaluate_on!r}`, but is "
                f"empty; leave {split!r} out of `evaluate_on` of FederatedTrainer."
            )
    if type(method).on_evaluation is FedMethod.on_evaluation:
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


def _rows(clients: Sequence[int], states: State) -> dict[int, State]:
    """Entries [C, …] as a state of each client."""
    return {c: states.apply(lambda tensor: tensor[i]) for i, c in enumerate(clients)}  # noqa: B023 - applied at once


def _resolve_participation(wish: int | float, num_clients: int) -> int:
    count = wish * num_clients if isinstance(wish, float) else wish
    resolved = math.floor(count + 1e-9) if math.isfinite(count) else 0
    if not 1 <= resolved <= num_clients:
        given = f"{wish} ({count:g} of {num_clients} clients)" if isinstance(wish, float) else f"{wish}"
        remedy = (
            f"at least {1 / num_clients:g}"
            if isinstance(wish, float) and count < 1
            else f"a number from 1 to {num_clients}"
        )
        raise ConfigurationError(f"`clients_per_round` must be in 1…{num_clients}, but is {given}; use {remedy}.")
    return resolved
