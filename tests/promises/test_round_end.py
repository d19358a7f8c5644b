"""The end of a round: whatever fails or is interrupted there, a run that goes on is the run in one go."""

import csv
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    EarlyStopping,
    Examples,
    FederatedTrainer,
    ModelCheckpoint,
    Partition,
    RoundState,
    Scaffold,
    SlotStrategy,
    TensorData,
    Throughput,
)
from fedlightning.errors import SaveError
from fedlightning.loggers import RunCSVLogger, RunTensorBoardLogger, run_loggers
from fedlightning.server.checkpoint import load_checkpoint

ROUNDS = 9


def data(**more: Any) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    targets = (inputs @ torch.randn(4, 3, generator=generator)).argmax(1)
    return TensorData(
        Examples(inputs, targets), Partition.of(torch.arange(60).split(12)), **({"batching": Batching(6)} | more)
    )


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Linear(4, 3))


class Logs(Callback):
    """Logs a metric of its own, up and down."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: Any) -> None:
        trainer.log({"mine/height": [3.0, 5.0, 4.0, 9.0, 8.0, 7.0, 6.0, 2.0, 1.0][trainer.round - 1]})


class Counts(Callback):
    """Remembers how often each hook of its was called."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = list(state["counts"])

    def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
        self.counts[0] += 1

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: object) -> None:
        self.counts[1] += 1

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        self.counts[2] += 1


class Run:
    """A run that several callbacks decide about, in two folders of checkpoints.

    The callbacks are given in the order that is worst.
    """

    def __init__(self, folder: Path, every: int = 1, rounds: int = ROUNDS) -> None:
        self.folder, self.counts = folder, Counts()
        self.best = ModelCheckpoint(monitor="mine/height", save_top_k=2, every_n_rounds=every)
        self.other = ModelCheckpoint(
            folder / "other", monitor="test/accuracy", filename="r{round}", every_n_rounds=every
        )
        self.stopping = EarlyStopping("mine/height", mode="max", patience=4)
        callbacks = [self.best, self.other, self.stopping, self.counts, Throughput(), Logs()]
        self.trainer = FederatedTrainer(
            rounds, 2, SlotStrategy(1), callbacks, run_loggers(folder, "run"), evaluate_every=2
        )

    def train(self, resume: bool = False) -> RoundState:
        return self.trainer.fit(Scaffold(lr=0.2), task(), data(), ckpt_path="last" if resume else None)

    def left(self) -> dict[str, Any]:
        """All that the run left, but for the clock."""
        run = self.folder / "run"
        with (run / "metrics.csv").open(newline="") as file:
            rows = [{k: v for k, v in row.items() if not k.startswith("throughput/")} for row in csv.DictReader(file)]
        names = sorted(path.name for path in [*run.glob("checkpoints/*"), *self.folder.glob("other/*")])
        best = (Path(self.best.best_model_path).name, Path(self.other.best_model_path).name)
        return {
            "rows": rows, "files": names, "best": best, "round": self.trainer.round, "stop": self.trainer.stop_reason,
            "counts": self.counts.counts, "wait": self.stopping.wait_count,
        }  # fmt: skip


def same(one: RoundState, other: RoundState) -> bool:
    rows = one.memory.rows(), other.memory.rows()
    return (
        one.round == other.round
        and all(torch.equal(one.server[name], other.server[name]) for name in one.server)
        and rows[0].keys() == rows[1].keys()
        and all(torch.equal(rows[0][client].c, rows[1][client].c) for client in rows[0])
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundState, dict[str, Any]]:
    run = Run(tmp_path_factory.mktemp("whole"))
    state = run.train()
    assert (run.trainer.round, run.trainer.stop_reason) == (8, "mine/height has not improved on 9 in 4 checks")
    return state, run.left()


def interrupting(function: Callable[..., Any], at: int, before: bool, error: type[BaseException]) -> Callable[..., Any]:
    """The function, but for its call number `at`, which raises before or after it does what it does."""
    calls = iter(range(1000))

    def wrapped(*arguments: Any, **more: Any) -> Any:
        mine = next(calls) == at
        if mine and before:
            raise error("on purpose")
        result = function(*arguments, **more)
        if mine:
            raise error("on purpose")
        return result

    return wrapped


PLACES: list[tuple[Any, str]] = [
    (Logs, "on_round_end"),
    (Throughput, "on_round_end"),
    (Counts, "on_cohort_end"),
    (Counts, "on_round_end"),
    (EarlyStopping, "on_evaluation_end"),
    (EarlyStopping, "on_round_end"),
    (ModelCheckpoint, "decide"),
    (ModelCheckpoint, "save"),
    (ModelCheckpoint, "on_round_end"),
    (RunTensorBoardLogger, "log_metrics"),
    (RunCSVLogger, "log_metrics"),
    (FederatedTrainer, "save_checkpoint"),
    (os, "replace"),
]


def broken(run: Run, place: tuple[Any, str], at: int, before: bool, error: type[BaseException]) -> None:
    """The run, which is ended by a call of something."""
    function = interrupting(getattr(*place), at, before, error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, function)
        with pytest.raises(error, match="on purpose"):
            run.train()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
@pytest.mark.parametrize("before", [True, False])
def test_interrupted_anywhere_at_the_end_of_a_round_and_resumed(
    whole: tuple[RoundState, dict[str, Any]], place: tuple[Any, str], before: bool, tmp_path: Path
) -> None:
    for at in (2, 4):
        broken(Run(tmp_path / str(at)), place, at, before, KeyboardInterrupt)
        again = Run(tmp_path / str(at))
        assert same(again.train(resume=True), whole[0]), at
        assert again.left() == whole[1], at


@pytest.mark.parametrize("place", PLACES[:-1], ids=lambda place: f"{place[0].__name__}.{place[1]}")
def test_a_failure_anywhere_at_the_end_of_a_round_and_resumed(
    whole: tuple[RoundState, dict[str, Any]], place: tuple[Any, str], tmp_path: Path
) -> None:
    """Checkpoints come every fourth round, so that it is the failing run that saves its last one."""
    broken(Run(tmp_path, every=4), place, 3, True, OSError)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")[0].round > 0
    again = Run(tmp_path, every=4)
    assert same(again.train(resume=True), whole[0])
    for what in ("rows", "counts", "wait", "stop"):
        assert again.left()[what] == whole[1][what]


def test_an_observer_that_fails_keeps_no_decision_from_being_made_and_saved(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
            if trainer.round == 4:
                raise RuntimeError("on purpose")

    run = Run(tmp_path, every=8)
    run.trainer.callbacks.insert(0, Fails())
    with pytest.raises(RuntimeError, match="on purpose"):
        run.train()
    state, meta = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state.round == run.trainer.round == 4
    assert meta["callbacks"][run.stopping.state_key]["best_score"] == 9.0
    assert meta["row"]["mine/height"] == 9.0


def test_a_round_whose_decision_lacks_its_metric_is_not_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, every=8)
    broken(run, (Logs, "on_round_end"), 3, True, RuntimeError)
    assert run.trainer.round == run.trainer.state.round == 3
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")[0].round == 3
    assert run.counts.counts == [3, run.counts.counts[1], 3]  # as it was after the third round


# -- loggers and callbacks that fail -----------------------------------------------------------------------------------
class Failing(Logger):
    """Fails from a round on, and when it is closed."""

    name, version, log_dir = "failing", "0", None  # type: ignore[assignment]

    def __init__(self, at: int, error: type[Exception] = OSError) -> None:
        self.at, self.error = at, error

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is not None and step >= self.at:
            raise self.error("the line is dead")

    def finalize(self, status: str) -> None:
        raise self.error("the line is dead, still")


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_logger_that_keeps_failing_keeps_no_round_from_being_saved(error: type[Exception], tmp_path: Path) -> None:
    loggers = [Failing(3, error), RunCSVLogger(tmp_path, "run")]
    trainer = FederatedTrainer(9, 2, callbacks=[ModelCheckpoint(every_n_rounds=5)], logger=loggers)
    with pytest.raises(error, match="the line is dead") as found:
        trainer.fit(Scaffold(), task(), data())
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")[0].round == trainer.round == 3
    assert [row["step"] for row in rows(tmp_path / "run")] == ["0", "1", "2", "3"]
    assert isinstance(found.value, SaveError) == (error is OSError)
    assert "Failing" in str(found.value) + str(found.value.__notes__)
    assert any("the line is dead, still" in note for note in found.value.__notes__)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("value", ["text", None, [1, 2], torch.zeros(2)])
def test_what_is_no_number_is_refused_and_the_round_is_saved(value: Any, tmp_path: Path) -> None:
    class Text(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
            trainer.log({"mine/note": value if trainer.round == 3 else torch.tensor(1)})

    trainer = FederatedTrainer(9, 2, callbacks=[Text(), ModelCheckpoint(tmp_path, every_n_rounds=5)], logger=False)
    with pytest.raises(ConfigurationError, match="takes numbers, but 'mine/note' is") as found:
        trainer.fit(Scaffold(), task(), data())
    assert "\n" not in str(found.value)
    assert load_checkpoint(tmp_path / "last.ckpt")[0].round == 3


def test_on_exception_of_another_that_fails_is_a_note(tmp_path: Path) -> None:
    class Worse(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
            if trainer.round == 3:
                raise RuntimeError("first")

        def on_exception(self, trainer: FederatedTrainer, exception: BaseException) -> None:
            raise ValueError("second")

    callbacks = [Worse(), ModelCheckpoint(tmp_path, every_n_rounds=5)]
    with pytest.raises(RuntimeError, match="first") as found:
        FederatedTrainer(9, 2, callbacks=callbacks, logger=False).fit(Scaffold(), task(), data())
    assert found.value.__notes__ == ["Besides, ValueError: second"]
    assert load_checkpoint(tmp_path / "last.ckpt")[0].round == 3


def test_a_full_disk_ends_a_run_in_one_line_and_the_last_whole_checkpoint_goes_on(tmp_path: Path) -> None:
    whole = FederatedTrainer(5, 2, callbacks=[], logger=False).fit(Scaffold(), task(), data())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    class Fills(Callback):
        def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
            if trainer.round == 3:
                patch.setattr("os.fsync", full)

    trainer = FederatedTrainer(5, 2, callbacks=[Fills(), ModelCheckpoint(tmp_path)], logger=False)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SaveError, match=r"No space left.*before are whole") as found,
    ):
        trainer.fit(Scaffold(), task(), data())
    assert "\n" not in str(found.value)
    state = FederatedTrainer(5, 2, callbacks=[], logger=False).fit(
        Scaffold(), task(), data(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert same(state, whole)


def test_what_a_callback_remembers_must_be_plain_and_is_asked_for_before_the_first_round() -> None:
    class Tensors(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"sums": torch.zeros(3)}

    trainer = FederatedTrainer(3, 2, callbacks=[Tensors()], logger=False)
    with pytest.raises(ConfigurationError, match="`state_dict` of Tensors must return plain numbers"):
        trainer.fit(Scaffold(), task(), data())
    assert trainer.round == 0


def test_a_callback_that_does_not_take_up_what_is_saved_is_one_line(tmp_path: Path) -> None:
    class Changed(Counts):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.counts = state["numbers"]

    def run(callback: Callback, **how: Any) -> None:
        Changed.__name__ = "Counts"
        trainer = FederatedTrainer(2, 2, callbacks=[callback, ModelCheckpoint(tmp_path)], logger=False)
        trainer.fit(Scaffold(), task(), data(), **how)

    run(Counts())
    with pytest.raises(ConfigurationError, match=r"`load_state_dict` of Counts must take up what .* cannot .KeyError"):
        run(Changed(), ckpt_path=tmp_path / "last.ckpt")


def test_a_run_without_a_folder_of_its_own_has_no_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for logger in (True, False):
        with pytest.raises(ConfigurationError, match=r"there is no file .*last\.ckpt; name the folder by `logger="):
            FederatedTrainer(2, 2, logger=logger).fit(Scaffold(), task(), data(), ckpt_path="last")
    assert not list(tmp_path.rglob("version*"))


def test_a_folder_for_the_memory_that_cannot_be_made_is_refused_before_the_first_round(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    strategy = SlotStrategy(1, memory_dir=tmp_path / "file" / "below")
    trainer = FederatedTrainer(2, 2, strategy, [], logger=False)
    with pytest.raises(ConfigurationError, match=r"`memory_dir` of SlotStrategy must be writable, but .*below is not"):
        trainer.fit(Scaffold(), task(), data())


def test_callbacks_of_one_key_remember_each_their_own(tmp_path: Path) -> None:
    def run(rounds: int, ckpt: Path | None = None) -> list[int]:
        patient = [EarlyStopping("test/loss", patience=9), EarlyStopping("test/loss", patience=8, min_delta=10.0)]
        trainer = FederatedTrainer(rounds, 2, callbacks=[*patient, ModelCheckpoint(tmp_path)], logger=False)
        trainer.fit(Scaffold(), task(), data(), ckpt_path=ckpt)
        return [each.wait_count for each in patient]

    first = run(4)
    assert first[1] == 3 != first[0]
    assert run(5, tmp_path / "last.ckpt")[1] == 4


# -- what begins and ends ----------------------------------------------------------------------------------------------
def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Ends(Callback):
    """Ends a run after a round, in a way."""

    def __init__(self, at: int, how: Callable[[FederatedTrainer], object]) -> None:
        self.at, self.how = at, how

    def on_round_start(self, trainer: FederatedTrainer, round: Any) -> None:
        if round.index + 1 == self.at:
            self.how(trainer)


def stop(trainer: FederatedTrainer) -> None:
    trainer.should_stop = True


def terminate(_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def long(folder: Path, name: str, callbacks: list[Callback], **how: Any) -> FederatedTrainer:
    watch = [EarlyStopping("test/loss", patience=1), ModelCheckpoint(monitor="test/accuracy", save_top_k=-1)]
    trainer = FederatedTrainer(
        10, 2, SlotStrategy(1), [*callbacks, *watch], run_loggers(folder, name), evaluate_every=5
    )
    trainer.fit(Scaffold(lr=0.2), task(), data(), **how)
    return trainer


@pytest.mark.parametrize("end", [stop, terminate], ids=lambda end: end.__name__)
def test_a_run_ends_evaluated_and_one_that_goes_on_has_the_rows_of_one_go(
    end: Callable[[Any], None], tmp_path: Path
) -> None:
    whole = long(tmp_path, "whole", [])
    for k, at in enumerate((3, 5, 7)):
        name, trainer = f"cut{k}", FederatedTrainer()
        try:
            trainer = long(tmp_path, name, [Ends(at, end)])
            assert "test/accuracy" in trainer.metrics
        except KeyboardInterrupt:
            assert end is terminate
        last = rows(tmp_path / name)[-1]
        assert (last["step"], bool(last["test/accuracy"]), bool(last["train/loss"])) == (str(at), True, True)
        assert not any(row["test/accuracy"] for row in rows(tmp_path / name)[1:-1] if row["step"] != "5")
        state, meta = load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        trained = float(
            (task().with_state(state)(data().load()[0].inputs).argmax(1) == data().load()[0].targets).float().mean()
        )
        assert float(last["test/accuracy"]) == pytest.approx(trained)
        assert ("test/accuracy" in meta["row"]) == (at == 5)
        again = long(tmp_path, name, [], ckpt_path="last")
        assert same(again.state, whole.state)
        assert rows(tmp_path / name) == rows(tmp_path / "whole")
        kept = [sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir()) for run in (name, "whole")]
        assert kept[0] == kept[1]


def test_early_stopping_between_evaluations_ends_evaluated(tmp_path: Path) -> None:
    def run(name: str, **how: Any) -> FederatedTrainer:
        stopping = EarlyStopping("train/loss", stopping_threshold=1.0)
        trainer = FederatedTrainer(
            40, 2, callbacks=[stopping, ModelCheckpoint()], logger=run_loggers(tmp_path, name), evaluate_every=7
        )
        trainer.fit(Scaffold(lr=0.05), task(), data(), **how)
        return trainer

    trainer = run("a")
    assert 0 < trainer.round < 40
    assert trainer.round % 7
    once = rows(tmp_path / "a")
    assert float(once[-1]["test/accuracy"]) == trainer.metrics["test/accuracy"]
    again = run("a", ckpt_path="last")  # nothing is left to do, and that is evaluated once more
    assert again.metrics["test/accuracy"] == trainer.metrics["test/accuracy"]
    assert rows(tmp_path / "a") == once


def test_what_a_callback_logs_at_the_end_joins_the_last_row(tmp_path: Path) -> None:
    class Late(Callback):
        def on_fit_end(self, trainer: FederatedTrainer) -> None:
            trainer.log({"late/sum": 4.0})

    FederatedTrainer(2, 2, callbacks=[Late()], logger=run_loggers(tmp_path, "a")).fit(Scaffold(), task(), data())
    last = rows(tmp_path / "a")[-1]
    assert (last["step"], last["late/sum"]) == ("2", "4.0")
    assert last["train/loss"]


class Slow(Classification):
    """Takes its time over an evaluation, and is told to stop in the midst of the one after a round."""

    tell, evaluations = 0, 0

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        Slow.evaluations += 1
        if Slow.evaluations == Slow.tell:
            terminate(None)
        time.sleep(0.02)
        return super().scores(outputs, targets)


@pytest.mark.parametrize(("tell", "saved"), [(1, 0), (25, 1), (9, 0)])
def test_a_signal_in_a_long_evaluation_ends_it_soon(
    tell: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "tell", tell)
    monkeypatch.setattr(Slow, "evaluations", 0)
    inputs = torch.zeros(10_000, 4)
    source = TensorData(
        Examples(inputs, torch.zeros(10_000, dtype=torch.int64)), Partition.of(torch.arange(10_000).split(2000)),
        batching=Batching(2000),
    )  # fmt: skip
    trainer = FederatedTrainer(
        5, 2, SlotStrategy(1), [ModelCheckpoint(tmp_path)], logger=False, seconds_to_evaluate=0.01
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Scaffold(), Slow(nn.Linear(4, 3)), source)
    assert Slow.evaluations < tell + 6
    assert load_checkpoint(tmp_path / "last.ckpt")[0].round == trainer.round == saved


def test_metrics_of_a_first_fit_do_not_survive_into_the_second() -> None:
    trainer = FederatedTrainer(2, 2, callbacks=[], logger=False)
    trainer.fit(Scaffold(), task(), data())
    assert "test/accuracy" in trainer.metrics
    trainer.evaluate_on = ("train",)
    trainer.fit(Scaffold(), task(), data())
    assert {name.partition("/")[0] for name in trainer.metrics} == {
        "train",
        "communication",
        "train_all",
        "train_all_clients",
    }


# -- monitors -------------------------------------------------------------------------------------------------------------
class Later(Callback):
    """Logs something from the third round on, and says so or does not."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        if trainer.round >= 3:
            trainer.log({"mine/late": float(trainer.round)})


class Declared(Later):
    logs = ("mine/*",)


@pytest.mark.parametrize(
    ("monitor", "settings"),
    [
        ("test_loss", {}),
        ("test_loss", {"evaluate_every": 4}),
        ("test/loss", {"evaluate_every": 0}),
        ("test/loss", {"evaluate_on": ("train",)}),
        ("test/loss", {"evaluate_on": ()}),
        ("throughput/rounds_per_second", {}),
        ("round/stragglers", {}),
    ],
)
@pytest.mark.parametrize("kind", [EarlyStopping, lambda monitor: ModelCheckpoint(monitor=monitor)])
def test_a_metric_that_nothing_logs_is_refused_before_the_first_round(
    monitor: str, settings: dict[str, Any], kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = [kind(monitor), Declared(), *([] if "through" in monitor else [Throughput()])]
    trainer = FederatedTrainer(4, 2, callbacks=callbacks, logger=False, **settings)
    pattern = rf"`monitor` of \w+ must be a metric that this run logs, but is '{monitor}'"
    with pytest.raises(ConfigurationError, match=pattern) as found:
        trainer.fit(Scaffold(), task(), data())
    assert "\n" not in str(found.value)
    assert trainer.round == 0
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_metric_that_a_callback_logs_later_may_be_watched() -> None:
    stopping = EarlyStopping("mine/late", patience=9)
    trainer = FederatedTrainer(4, 2, callbacks=[stopping, Declared()], logger=False)
    assert trainer.fit(Scaffold(), task(), data()).round == 4
    assert stopping.best_score == 3.0
    trainer = FederatedTrainer(4, 2, callbacks=[EarlyStopping("mine/late"), Later()], logger=False)
    with pytest.raises(ConfigurationError, match="'mine/late' was not logged by the end of round 1"):
        trainer.fit(Scaffold(), task(), data())
    from fedlightning import Dissimilarity

    stopping = EarlyStopping("dissimilarity/variance", patience=9)
    trainer = FederatedTrainer(6, 2, callbacks=[stopping, Dissimilarity(every=5)], logger=False)
    state = FederatedTrainer(1, 2, callbacks=[], logger=False).fit(Scaffold(), task(), data())
    trainer.fit(Scaffold(), task(), data(), state=state)
    assert stopping.best_score is not None


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A test that is stopped by a signal leaves the program's own way of taking it."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
