"""Callbacks, driven by a small stand-in for the trainer."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from fedlightning.callbacks import EarlyStopping, ModelCheckpoint, RoundProgress, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.callbacks.progress import RoundText
from fedlightning.errors import ConfigurationError
from fedlightning.method import Round

pytestmark = pytest.mark.quick

NAN = float("nan")


class StandIn:
    """As much of a trainer as callbacks may rely on; its checkpoints are JSON."""

    def __init__(self, folder: Path, callbacks: Sequence[Callback], max_rounds: int = 100, start: int = 0) -> None:
        self.log_dir, self.callbacks, self.max_rounds = folder, list(callbacks), max_rounds
        self.round = self.start_round = start
        self.metrics: dict[str, float] = {}
        self.should_stop, self.stop_reason = False, ""
        self.current: dict[str, float] = {}
        self.fails = False
        self.strategy = SimpleNamespace(compile_seconds=0.0)

    def log(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)
        self.current.update(metrics)

    def save_checkpoint(self, path: Path) -> None:
        beside = path.with_suffix(".tmp")
        state = {c.state_key: c.state_dict() for c in self.callbacks}
        beside.write_text(json.dumps({"round": self.round, "callbacks": state}))
        if self.fails:
            beside.unlink()
            raise OSError("no space left")
        os.replace(beside, path)

    def call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def start(self) -> StandIn:
        self.call("on_fit_start")
        return self

    def step(self, evaluation: Mapping[str, float] | None = None, clients: int = 0, **logged: float) -> None:
        """One round, with the metrics of its evaluation, if there is one."""
        self.current = {}
        self.call("on_round_start", Round(self.round, 10, max(clients, 1), 0.1))
        for _ in range(clients // 2):
            self.call("on_cohort_end", SimpleNamespace(clients=(0, 1), num_steps=torch.tensor([3, 4])))
        self.round += 1
        self.log({"train/loss": 1.0, **logged})
        if evaluation is not None:
            self.log(evaluation)
            self.call("on_evaluation_end", evaluation)
        self.call("on_round_end", self.current)


def resume(folder: Path, callback: Callback, file: Path) -> StandIn:
    content = json.loads(file.read_text())
    callback.load_state_dict(content["callbacks"].get(callback.state_key, {}))
    return StandIn(folder, [callback], start=content["round"]).start()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rounds(folder: Path) -> set[int]:
    return {json.loads(path.read_text())["round"] for path in folder.glob("round=*.ckpt")}


# -- ModelCheckpoint ------------------------------------------------------------------------------------------------
SCORES = st.lists(st.one_of(st.none(), st.just(NAN), st.integers(0, 4).map(float)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(scores=SCORES, k=st.sampled_from([-1, 0, 1, 2, 3]), mode=st.sampled_from(["min", "max"]))
def test_keeps_what_brute_force_keeps(scores: list[float | None], k: int, mode: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        checkpoint = ModelCheckpoint(monitor="test/accuracy", mode=mode, save_top_k=k, save_last=False)
        trainer, seen = StandIn(Path(name), [checkpoint]).start(), []
        trainer.metrics["test/accuracy"] = 0.0  # of the evaluation before the first round
        for index, score in enumerate(scores, start=1):
            trainer.step(None if score is None else {"test/accuracy": score})
            if score is not None and not math.isnan(score):
                seen.append((score if mode == "min" else -score, index))
            best = sorted(seen)[: len(seen) if k == -1 else k]
            assert rounds(Path(name) / "checkpoints") == {index for _, index in best}
            assert [abs(score) for score, _ in best] == list(checkpoint.best_k_models.values())
            assert checkpoint.best_model_score == (abs(best[0][0]) if best else None)
            assert f"round={best[0][1]}-" in checkpoint.best_model_path if best else not checkpoint.best_model_path


def test_names_of_files(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path, [ModelCheckpoint(monitor="test/accuracy")], start=11).start()
    trainer.step({"test/accuracy": 0.43123})
    assert files(tmp_path / "checkpoints") == {"round=12-test_accuracy=0.4312.ckpt", "last.ckpt"}


@pytest.mark.parametrize(("k", "kept"), [(1, {5}), (2, {4, 5}), (-1, {1, 2, 3, 4, 5}), (0, set())])
def test_without_monitor_keeps_the_latest(tmp_path: Path, k: int, kept: set[int]) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "here", save_top_k=k)
    trainer = StandIn(tmp_path, [checkpoint]).start()
    for _ in range(5):
        trainer.step()
    assert rounds(tmp_path / "here") == kept
    assert checkpoint.best_model_score is None
    assert json.loads(Path(checkpoint.last_model_path).read_text())["round"] == 5


def test_every_n_rounds_and_the_last_at_the_end(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path, [ModelCheckpoint(every_n_rounds=3, save_top_k=-1)]).start()
    for _ in range(7):
        trainer.step()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert rounds(tmp_path / "checkpoints") == {3, 6}
    assert json.loads(last.read_text())["round"] == 6
    trainer.call("on_fit_end")
    assert json.loads(last.read_text())["round"] == 7


def test_a_failed_save_loses_nothing(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="test/accuracy", save_top_k=1)
    trainer = StandIn(tmp_path, [checkpoint]).start()
    trainer.step({"test/accuracy": 0.1})
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    trainer.fails = True
    with pytest.raises(OSError, match="no space left"):
        trainer.step({"test/accuracy": 0.2})
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
    assert checkpoint.best_model_score == 0.1
    trainer.fails = False
    trainer.call("on_exception", OSError())
    assert json.loads((tmp_path / "checkpoints" / "last.ckpt").read_text())["round"] == 2
    trainer.step({"test/accuracy": 0.3})
    assert rounds(tmp_path / "checkpoints") == {3}


def test_older_files_go_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    class Watching(StandIn):
        def save_checkpoint(self, path: Path) -> None:
            assert path.name == "last.ckpt" or len(rounds(path.parent)) == min(self.round - 1, 2)
            super().save_checkpoint(path)

    trainer = Watching(tmp_path, [ModelCheckpoint(save_top_k=2)]).start()
    for _ in range(5):
        trainer.step()
    assert rounds(tmp_path / "checkpoints") == {4, 5}


def test_deletes_only_what_it_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("mine.ckpt", "round=99.ckpt"):
        (folder / name).write_text('{"round": 99}')
    trainer = StandIn(tmp_path, [ModelCheckpoint()]).start()
    for _ in range(3):
        trainer.step()
    assert files(folder) == {"mine.ckpt", "round=99.ckpt", "round=3.ckpt", "last.ckpt"}


@pytest.mark.parametrize("moved", [False, True])
def test_resumed_run_keeps_the_same_files(tmp_path: Path, moved: bool) -> None:
    scores = [0.3, 0.5, 0.1, 0.4, 0.6, 0.2, 0.55]
    for name, stop in (("whole", 7), ("cut", 4)):
        trainer = StandIn(tmp_path / name, [ModelCheckpoint(monitor="a", save_top_k=2)]).start()
        for score in scores[:stop]:
            trainer.step({"a": score})
    folder = tmp_path / "cut"
    if moved:
        folder = Path(shutil.move(folder, tmp_path / "elsewhere"))
    checkpoint = ModelCheckpoint(monitor="a", save_top_k=2)
    trainer = resume(folder, checkpoint, folder / "checkpoints" / "last.ckpt")
    assert Path(checkpoint.best_model_path) == folder / "checkpoints" / "round=2-a=0.5000.ckpt"
    for score in scores[4:]:
        trainer.step({"a": score})
    for path in (tmp_path / "whole" / "checkpoints").iterdir():
        assert path.read_bytes() == (folder / "checkpoints" / path.name).read_bytes()
    assert files(folder / "checkpoints") == files(tmp_path / "whole" / "checkpoints")


def test_resumed_into_another_folder_leaves_the_old_files(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path / "old", [ModelCheckpoint()]).start()
    trainer.step()
    checkpoint = ModelCheckpoint()
    trainer = resume(tmp_path / "new", checkpoint, tmp_path / "old" / "checkpoints" / "last.ckpt")
    assert checkpoint.best_k_models == {}
    trainer.step()
    assert files(tmp_path / "old" / "checkpoints") == {"round=1.ckpt", "last.ckpt"}
    assert files(tmp_path / "new" / "checkpoints") == {"round=2.ckpt", "last.ckpt"}


def test_on_exception_saves_the_last_finished_round(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer = StandIn(tmp_path, [ModelCheckpoint(every_n_rounds=10)]).start()
    trainer.call("on_exception", KeyboardInterrupt())
    assert json.loads(last.read_text())["round"] == 0  # there was none yet
    for _ in range(3):
        trainer.step()
    trainer.call("on_exception", KeyboardInterrupt())
    assert json.loads(last.read_text())["round"] == 3


def test_on_exception_does_not_replace_a_newer_file(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer = StandIn(tmp_path, [ModelCheckpoint(save_top_k=-1)]).start()
    for _ in range(5):
        trainer.step()
    for hook in (("on_exception", KeyboardInterrupt()), ("on_fit_end",)):
        trainer = resume(tmp_path, ModelCheckpoint(save_top_k=-1), last.with_name("round=2.ckpt"))
        trainer.call(*hook)
        assert json.loads(last.read_text())["round"] == 5


def test_on_exception_before_the_start_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    StandIn(tmp_path, [ModelCheckpoint()]).call("on_exception", KeyboardInterrupt())
    assert files(tmp_path) == set()


@pytest.mark.parametrize("links", [True, False])
def test_last_outlives_the_file_it_was_made_from(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    checkpoint = ModelCheckpoint(monitor="a", every_n_rounds=1)
    trainer = StandIn(tmp_path, [checkpoint]).start()
    for score in (0.1, 0.2, 0.0):
        trainer.step({"a": score})
        saved = json.loads((tmp_path / "checkpoints" / "last.ckpt").read_text())
        assert saved["round"] == trainer.round
        assert saved["callbacks"][checkpoint.state_key] == checkpoint.state_dict()
    assert files(tmp_path / "checkpoints") == {"round=2-a=0.2000.ckpt", "last.ckpt"}


def test_save_last_may_be_off(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path, [ModelCheckpoint(save_last=False)]).start()
    trainer.step()
    trainer.call("on_exception", KeyboardInterrupt())
    assert files(tmp_path / "checkpoints") == {"round=1.ckpt"}


@pytest.mark.parametrize("callback", [ModelCheckpoint(monitor="test/acuracy"), EarlyStopping("test/acuracy")])
def test_a_metric_that_is_never_logged(tmp_path: Path, callback: Callback) -> None:
    trainer = StandIn(tmp_path, [callback]).start()
    trainer.step()  # no evaluation yet: it may still come
    with pytest.raises(ConfigurationError, match=r"'test/acuracy' .* Did you mean 'test/accuracy'.*train/loss"):
        trainer.step({"test/accuracy": 0.1, "test/loss": 2.0})


@pytest.mark.parametrize("callback", [ModelCheckpoint(monitor="test/accuracy"), EarlyStopping("test/accuracy")])
def test_rounds_without_evaluation_are_passed_over(tmp_path: Path, callback: Callback) -> None:
    trainer = StandIn(tmp_path, [callback]).start()
    trainer.step({"test/accuracy": 0.1})
    state = callback.state_dict()
    for _ in range(9):
        trainer.step()
    assert callback.state_dict() == state
    assert not trainer.should_stop


def test_several_side_by_side(tmp_path: Path) -> None:
    best, lowest = ModelCheckpoint(monitor="a"), ModelCheckpoint(monitor="b", mode="min")
    keys = {best.state_key, lowest.state_key, ModelCheckpoint(monitor="a", every_n_rounds=2).state_key}
    assert len(keys) == 3
    trainer = StandIn(tmp_path, [best, lowest]).start()
    for a, b in ((1.0, 3.0), (2.0, 4.0)):
        trainer.step({"a": a, "b": b})
    assert "round=2" in best.best_model_path
    assert "round=1" in lowest.best_model_path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "biggest"}, "`mode` of ModelCheckpoint must be 'min' or 'max'"),
        ({"save_top_k": -2}, "`save_top_k` of ModelCheckpoint must be at least -1"),
        ({"every_n_rounds": 0}, "`every_n_rounds` of ModelCheckpoint must be at least 1"),
        ({"filename": "best"}, "`filename` of ModelCheckpoint must hold"),
        ({"filename": "{round}-{epoch}"}, "`filename` of ModelCheckpoint must hold"),
        ({"filename": "best/{round}"}, "no folder"),
    ],
)
def test_checkpoint_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelCheckpoint(**wrong)


def test_checkpoint_refuses_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"folder of ModelCheckpoint must be writable.*Not a directory"):
        StandIn(tmp_path, [ModelCheckpoint(dirpath=tmp_path / "file" / "below")]).start()


# -- EarlyStopping ----------------------------------------------------------------------------------------------------
def stops_after(callback: EarlyStopping, scores: Sequence[float | None], start: int = 0) -> int | None:
    trainer = StandIn(Path(), [callback], start=start).start()
    for score in scores:
        trainer.step(None if score is None else {"m": score})
        if trainer.should_stop:
            return trainer.round
    return None


@pytest.mark.parametrize(
    ("options", "scores", "stop"),
    [
        ({"patience": 2}, [3, 2, 2, 2, 1], 4),  # equal is no improvement
        ({"patience": 2}, [3, 4, 2, 4, 1, 4], None),  # an improvement begins the count anew
        ({"patience": 1}, [3, None, None, 2, None, 2], 6),  # rounds without the metric do not count
        ({"patience": 2, "mode": "max"}, [1, 2, 1, 1], 4),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.5], 3),  # an improvement of 0.5 is not more than 0.5
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.0, 1.0], None),
        ({"patience": 2, "min_delta": 0.5, "mode": "max"}, [1, 1.4, 1.5], 3),
        ({"stopping_threshold": 1.0}, [3, 2, 1, 0.9], 4),
        ({"stopping_threshold": 1.0, "mode": "max"}, [0.5, 1.5], 2),
        ({"divergence_threshold": 5.0}, [3, 5, 5.1], 3),
        ({"divergence_threshold": 5.0, "mode": "max"}, [5, 4.9], 2),
        ({}, [3, NAN], 2),
        ({}, [NAN], 1),
        ({}, [3, math.inf], 2),
    ],
)
def test_when_it_stops(options: dict[str, Any], scores: list[float | None], stop: int | None) -> None:
    assert stops_after(EarlyStopping("m", **options), scores) == stop


def test_says_why(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path, [EarlyStopping("m", patience=1)]).start()
    for score in (0.25, 0.5):
        trainer.step({"m": score})
    assert trainer.stop_reason == "m has not improved on 0.25 in 1 checks"


@given(scores=st.lists(st.integers(0, 3).map(float), min_size=2, max_size=10), cut=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_early_stopping_resumes(scores: list[float], cut: int) -> None:
    whole, first, second = (EarlyStopping("m", patience=2) for _ in range(3))
    expected = stops_after(whole, scores)
    stopped = stops_after(first, scores[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    if stopped is None:
        assert stops_after(second, scores[cut:], start=cut) == expected
    else:
        assert StandIn(Path(), [second], start=stopped).start().should_stop
        patient = EarlyStopping("m", patience=5)
        patient.load_state_dict(first.state_dict())
        assert not StandIn(Path(), [patient], start=stopped).start().should_stop


def test_a_new_fit_forgets_the_last(tmp_path: Path) -> None:
    checkpoint, stopping = ModelCheckpoint(), EarlyStopping("m", patience=1)
    for _ in range(2):
        trainer = StandIn(tmp_path, [checkpoint, stopping]).start()
        assert not trainer.should_stop
        for score in (3, 2, 2):
            trainer.step({"m": score})
        assert trainer.should_stop
        assert list(checkpoint.best_k_models.values()) == [3]


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": NAN}, {"mode": "up"}])
def test_early_stopping_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(wrong))}` of EarlyStopping"):
        EarlyStopping("m", **wrong)


# -- Throughput and RoundProgress -------------------------------------------------------------------------------------
class Clock:
    """A clock that moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.now = 1000.0
        monkeypatch.setattr(f"fedlightning.callbacks.{module}.perf_counter", lambda: self.now)


class Sleeps(Callback):
    """Lets rounds take the given seconds."""

    def __init__(self, clock: Clock, seconds: Sequence[float]) -> None:
        self.clock, self.seconds = clock, iter(seconds)

    def on_round_start(self, trainer: Any, round: Round) -> None:
        self.clock.now += next(self.seconds)


def test_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "throughput")
    trainer = StandIn(tmp_path, [Throughput(), Sleeps(clock, [0.5, 2.0])]).start()
    trainer.step(clients=4)
    rates = {"throughput/rounds_per_second": 2.0, "throughput/clients_per_second": 8.0}
    assert trainer.current == {"train/loss": 1.0, **rates, "throughput/steps_per_second": 28.0}
    trainer.step(clients=2)
    assert trainer.metrics["throughput/steps_per_second"] == 3.5


class Compiles(Callback):
    """Takes a second and a half of the first round for it."""

    def on_cohort_end(self, trainer, cohort) -> None:  # type: ignore[no-untyped-def]
        trainer.strategy.compile_seconds = 1.5


def test_the_time_that_compiling_takes_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "throughput")
    trainer = StandIn(tmp_path, [Compiles(), Throughput(), Sleeps(clock, [2.0, 2.0])]).start()
    trainer.step(clients=4)
    assert trainer.current["throughput/compile_seconds"] == 1.5
    assert trainer.current["throughput/rounds_per_second"] == 2.0
    trainer.step(clients=4)
    assert trainer.current["throughput/rounds_per_second"] == 0.5


def test_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch, "progress")
    trainer = StandIn(
        tmp_path, [RoundProgress(story=False), Sleeps(clock, itertools.repeat(2.0))], max_rounds=51
    ).start()
    trainer.log({"test/loss": 2.5})
    trainer.call("on_evaluation_end", {})
    for index in range(1, 52):
        trainer.step({"test/accuracy": 0.43125} if index == 10 else None, clients=4, **{"train/loss": 1.23449})
    trainer.call("on_fit_end")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "round 0/51  test/loss 2.5"
    assert lines[1] == "round 3/51  train/loss 1.234  test/loss 2.5  2 clients/s  ETA 1:36"
    assert "round 10/51  train/loss 1.234  test/loss 2.5  test/accuracy 0.4313  2 clients/s  ETA 1:22" in lines
    shown = [int(line.split()[1].split("/")[0]) for line in lines]
    assert shown == [0, 3, 6, 9, 10, *range(13, 50, 3), 51]


def test_time_left_is_robust_and_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, "progress")
    seconds = [1.0] * 31 + [10000.0] + [1.0] * 40
    trainer = StandIn(tmp_path, [RoundProgress(story=False), Sleeps(clock, seconds)], max_rounds=10032).start()
    for _ in range(32):
        trainer.step(clients=4)
    # The hiccup counts as ten rounds, and the first round does not: 10000 rounds of (30 + 10) / 31 s = 12903 s.
    assert capsys.readouterr().out.splitlines()[-1].endswith("ETA 3:35:03")
    for _ in range(40):
        trainer.step(clients=4)
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 clients/s  ETA 2:46:00")


def test_the_time_left_does_not_count_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first round takes 92 s, of which compiling takes 1.5; the second one takes a second."""
    clock = Clock(monkeypatch, "progress")
    callbacks = [Compiles(), RoundProgress(story=False), Sleeps(clock, [92.0, 1.0])]
    trainer = StandIn(tmp_path, callbacks, max_rounds=42).start()
    for rate, left in ((0.044, "1:01:50"), (4, "0:40")):
        trainer.step({"test/accuracy": 0.5}, clients=4)
        assert capsys.readouterr().out.splitlines()[-1].endswith(f"{rate} clients/s  ETA {left}")


def test_the_first_round_tells_no_time_left_unless_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten seconds may be those of what is done once."""
    clock = Clock(monkeypatch, "progress")
    trainer = StandIn(tmp_path, [RoundProgress(story=False), Sleeps(clock, [10.0, 1.0])], max_rounds=42).start()
    trainer.step(clients=4)
    assert capsys.readouterr().out.splitlines() == ["round 1/42  train/loss 1"]
    trainer.step({"test/accuracy": 0.5}, clients=4)
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 clients/s  ETA 0:40")


def test_evaluations_have_a_line_each_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, "progress")
    trainer = StandIn(tmp_path, [RoundProgress(story=False), Sleeps(clock, itertools.repeat(0.3))], max_rounds=12)
    trainer.start()
    for index in range(12):
        trainer.step({"test/accuracy": index / 12})
    shown = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert shown == [4, 8, 12]


def test_a_long_evaluation_and_a_long_round_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, "progress")
    trainer = StandIn(tmp_path, [RoundProgress(story=False)], max_rounds=2).start()
    for done in range(1000, 8001, 1000):
        clock.now += 10.0
        trainer.call("on_evaluation_progress", done, 8000)
    trainer.call("on_round_start", Round(0, 10, 6, 0.1))
    for _ in range(3):
        clock.now += 20.0
        trainer.call("on_cohort_end", SimpleNamespace(clients=(0, 1), num_steps=torch.tensor([3, 4])))
    assert capsys.readouterr().out.splitlines() == [
        *(f"round 0/2  {done},000 of 8,000 examples are evaluated" for done in (2, 4, 6, 8)),
        *(f"round 0/2  {done} of 6 clients have trained" for done in (2, 4, 6)),
    ]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, "ETA 10:37:29  train/loss 1.234  test/accuracy 0.4313"),
        (100, "ETA 10:37:29  train/loss 1.234  test/accuracy 0.4313  83 clients/s"),
        (120, "ETA 10:37:29  train/loss 1.234  test/accuracy 0.4313  83 clients/s  test/loss 2.345"),
        (40, "ETA 10:37:29"),
    ],
)
def test_what_there_is_room_for_is_whole(width: int, shown: str) -> None:
    text = RoundText(["train/loss 1.234", "test/loss 2.345", "test/accuracy 0.4313"], "83 clients/s", "ETA 10:37:29")
    bar = 8 if width < 100 else 16
    assert text.within(width - len("round 1999/5000") - bar - 2) == shown


def test_says_why_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = StandIn(tmp_path, [RoundProgress(story=False)]).start()
    trainer.step()
    assert capsys.readouterr().out == ""
    trainer.should_stop, trainer.stop_reason = True, "[enough]"
    trainer.call("on_fit_end")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("round 1/100  train/loss 1")
    assert lines[1] == "stopped after round 1: [enough]"


@pytest.mark.parametrize("ends", [("on_fit_end",), ("on_exception", KeyboardInterrupt())])
@pytest.mark.parametrize("width", [30, 80, 120])
def test_bar_in_a_terminal(tmp_path: Path, ends: tuple[Any, ...], width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, force_interactive=True, width=width)
    trainer = StandIn(tmp_path, [RoundProgress(console=console, story=False)], max_rounds=7).start()
    for _ in range(5):
        trainer.step({"test/accuracy": 0.5}, clients=4)
    trainer.call(*ends)
    trainer.call(*ends)  # closing twice is harmless
    shown = screen.getvalue()
    assert "round 5/7" in shown
    assert "ETA 0:00" in shown
    assert ("train/loss 1" in shown) == ("test/accuracy 0.5" in shown) == (width > 30)
    assert "…" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor was hidden, and shown again


def test_bar_advances_by_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advanced: list[float] = []
    monkeypatch.setattr(Progress, "advance", lambda bar, task, by: advanced.append(by))
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    progress = RoundProgress(console=console, story=False)
    trainer = StandIn(tmp_path, [progress], max_rounds=4).start()
    progress.on_round_start(trainer, Round(0, 10, 8, 0.1))
    for _ in range(3):
        trainer.call("on_cohort_end", SimpleNamespace(clients=(0, 1)))
    assert advanced == [0.25] * 3
    trainer.call("on_exception", KeyboardInterrupt())


def test_progress_without_a_start_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StandIn(tmp_path, [RoundProgress(story=False)]).call("on_exception", ValueError())
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigurationError, match="`refresh_rate` of RoundProgress"):
        RoundProgress(refresh_rate=0)
