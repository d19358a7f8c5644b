"""What a run says before its first round and after its last, in Python and for a resumed, a stopped and a silent one."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlightning import (
    Batching,
    Callback,
    FedAvg,
    FederatedTrainer,
    FedProx,
    ModelCheckpoint,
    Scaffold,
    SlotStrategy,
    Stragglers,
)
from fedlightning.callbacks import EarlyStopping, RoundProgress
from fedlightning.callbacks.story import Course, clock, closing, counted, read_course, sized
from fedlightning.loggers import run_loggers
from fedlightning.testing import Quadratics

HEADS = ["Method", "Data", "Rounds", "Runs", "Folder", "round", "Took", "Metric", "Look", "Go on", "stopped"]


def quadratics(**batching: Any) -> Quadratics:
    """Clients with 4, 6 and 8 examples, whose optima are apart."""
    optima = [torch.full((2,), float(i), dtype=torch.float64) for i in range(3)]
    data = Quadratics([torch.eye(2, dtype=torch.float64)] * 3, optima, [4, 6, 8])
    data.batching = Batching(**batching)
    return data


def told(
    capsys: pytest.CaptureFixture[str], method: Any = None, data: Quadratics | None = None, **options: Any
) -> dict[str, str]:
    """The lines of a run by their first word; the last of those that begin with the same one."""
    fit = {key: options.pop(key) for key in ("ckpt_path",) if key in options}
    usual = {"max_rounds": 3, "clients_per_round": 2, "strategy": SlotStrategy(1, runner="loop")}
    trainer = FederatedTrainer(**{**usual, **options})
    trainer.fit(method or FedAvg(lr=0.1), Quadratics.task([1.0, -1.0]), data or quadratics(size=32, steps=2), **fit)
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(head) for head in HEADS) for line in lines), lines
    opening = next(i for i, line in enumerate(lines) if not line.startswith(tuple(HEADS[:5])))
    assert opening <= 6
    assert len([line for line in lines[opening:] if not line.startswith(("round", "stopped"))]) <= 5
    return {re.split(r" {2,}|(?<=Go on) ", line)[0].split()[0]: re.sub(r"^(Go on|\w+) +", "", line) for line in lines}


pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_run_in_python_tells_what_will_run_and_how_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, FedProx(lr=0.05, mu=2.0), stragglers=Stragglers(0.5))
    assert found["Method"] == "FedProx with lr 0.05, mu 2"
    assert found["Data"].endswith(
        "3 clients with 4 to 8 (median 6) training examples; evaluated every round on 18 test"
    )
    assert found["Rounds"] == (
        "3, in each 2 of 3 clients, with 2 local steps in batches of 32; Stragglers(fraction=0.5, partial=True); 2 parameters"
    )
    assert "slots cpu/0 (1 thread each), one client at a time" in found["Runs"]
    assert found["Runs"].endswith("client state: none")
    assert found["Folder"] == "logs/fedprox/version_0"
    down, up = 3 * 2 * 16, 3 * 2 * 16  # rounds, clients, bytes of the model
    assert re.fullmatch(rf"0:\d\d for 3 rounds; clients received {down} B and sent {up} B", found["Took"])
    assert re.fullmatch(r"test/loss [\d.e-]+ after round 3, best [\d.e-]+ after round \d", found["Metric"])
    assert found["Look"] == "tensorboard --logdir logs/fedprox/version_0"
    path = "logs/fedprox/version_0/checkpoints/last.ckpt"
    assert found["Go"] == f'FederatedTrainer(max_rounds=6, …).fit(…, ckpt_path="{path}")'
    assert Path(path).is_file()


def test_a_resumed_run_tells_of_the_rounds_before(capsys: pytest.CaptureFixture[str]) -> None:
    """The best is that of the whole run, and the time and the bytes are of the rounds that were left."""

    def going(rounds: int, **more: Any) -> dict[str, str]:
        return told(capsys, FedAvg(lr=3.0), max_rounds=rounds, logger=run_loggers("logs", "one"), **more)

    going(2)
    found = going(4, ckpt_path="last")
    assert found["Rounds"].startswith("3 to 4, in each 2 of 3 clients")
    assert " for 2 rounds; clients received 64 B" in found["Took"]
    course = read_course(Path("logs/one"), "test/loss", "min")
    assert course.last is not None
    assert course.best is not None
    assert course.best[0] < 2 < course.last[0]  # at this rate it diverges
    assert found["Metric"] == str(course)


def test_nothing_is_told_before_a_run_that_has_nothing_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, logger=run_loggers("logs", "one"))
    found = told(capsys, logger=run_loggers("logs", "one"), ckpt_path="last")
    assert "Method" not in found
    assert " for 0 rounds; " in found["Took"]


def test_a_run_that_is_stopped_goes_on_to_the_rounds_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [RoundProgress(), EarlyStopping("test/loss", patience=1), ModelCheckpoint()]
    found = told(capsys, FedAvg(lr=3.0), callbacks=callbacks, max_rounds=50)
    assert "test/loss has not improved" in found["stopped"]
    assert "max_rounds=50, " in found["Go"]
    assert re.fullmatch(r"test/loss \S+ after round [12], best \S+ after round [01]", found["Metric"])


def test_what_is_not_there_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, callbacks=[RoundProgress()], logger=False, evaluate_every=0)
    assert found.keys() == {"Method", "Data", "Rounds", "Runs", "round", "Took", "Metric"}
    assert found["Data"].endswith("; not evaluated")
    assert found["Metric"].startswith("train/loss ")
    found = told(capsys, callbacks=[RoundProgress(story=False)], logger=False)
    assert found.keys() == {"round"}


def test_what_clients_remember_and_do_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, Scaffold(lr=0.1), quadratics(size=None, epochs=2), evaluate_every=2)
    assert found["Runs"].endswith("client state: 16 B a client, at most 48 B in the host's memory")
    assert "with 2 epochs on all its examples at once; " in found["Rounds"]
    assert "evaluated every 2 rounds on" in found["Data"]


def test_the_command_that_goes_on_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [RoundProgress(goes_on=lambda trainer: f"run {trainer.round}")]
    assert told(capsys, callbacks=callbacks)["Go"] == "run 3"


def test_the_metric_is_that_which_is_watched(capsys: pytest.CaptureFixture[str]) -> None:
    class Logs(Callback):
        logs = ("mine",)

        def on_round_end(self, trainer: Any, metrics: Any) -> None:
            trainer.log({"mine": 10.0 - abs(trainer.round - 2)})

    callbacks = [RoundProgress(), Logs(), ModelCheckpoint(monitor="mine")]
    assert told(capsys, callbacks=callbacks)["Metric"] == "mine 9 after round 3, best 10 after round 2"


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("step,a\n0,0.1\n1,0.5\n2,0.4\n", "a 0.4 after round 2, best 0.5 after round 1"), ("step,a\n0,\n1,0.5\n2,0.5\n", "a 0.5 after round 2, best 0.5 after round 1"),
        ("step,a\n0,0.1\n1,nan\n", "a nan after round 1, best 0.1 after round 0"), ("step,a\n0,nan\n", "a nan after round 0"),
        ("step\n0\n", "a "), ("nonsense\0\n", "a "), (None, "a "), ("step,a\n0,x\n", "a "),
    ],
)  # fmt: skip
def test_a_course_is_read_as_far_as_it_can_be(table: str | None, text: str, tmp_path: Path) -> None:
    if table is not None:
        (tmp_path / "metrics.csv").write_text(table)
    assert str(read_course(tmp_path, "a", "max")) == text


def test_of_a_smaller_metric_the_smallest_is_best() -> None:
    course = Course("a", "min")
    for round, value in enumerate([3.0, 1.0, math.nan, 2.0, 1.0]):
        course.add(round, value)
    assert (course.last, course.best) == ((4, 1.0), (1, 1.0))


def test_words() -> None:
    assert [clock(seconds) for seconds in (0.4, 61.2, 3723)] == ["0:00", "1:01", "1:02:03"]
    assert [counted(1, "round"), counted(2000, "round")] == ["1 round", "2,000 rounds"]
    assert [sized(count) for count in (0, 1023, 2048, 3.5 * 2**30)] == ["0 B", "1023 B", "2 KiB", "3.5 GiB"]
    lines = closing("0:01", None, Path("logs/my run"), draws=True, command=None)
    assert lines[-1].endswith("tensorboard --logdir 'logs/my run'")
