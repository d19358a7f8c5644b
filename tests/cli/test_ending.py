"""What a recipe says at the end of its run, and that the command it names goes on with it."""

import re
import shlex
from pathlib import Path

import pytest
from recipe_runner import RECIPES, load

from fedlightning import Callback, ModelCheckpoint
from fedlightning.cli.ending import again, clock, ending
from fedlightning.cli.recipe import run_recipe
from fedlightning.server.checkpoint import load_checkpoint

QUICK = ["--local-steps", "1", "--rounds", "3", "--runner", "loop"]


def synthetic(*argv: str) -> None:
    run_recipe(load("synthetic").main, argv=argv, lr=0.01)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_ends_with_its_folder_its_metric_and_two_commands(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    synthetic("--method", "fedprox", "--mu", "0.5", *QUICK)
    where, metric, look, go_on = capsys.readouterr().out.splitlines()[-4:]
    folder = Path("logs/synthetic/synthetic_1_1/fedprox/version_0")
    assert re.fullmatch(rf"The run is in {folder}; it took 0:\d\d\.", where)
    assert re.fullmatch(r"val/accuracy 0\.\d+ after round 3, best 0\.\d+ after round \d\.", metric)
    assert look == f"Look at it:    tensorboard --logdir {folder}"
    command = shlex.split(go_on.removeprefix("Go on with it: "))
    assert command[:2] == ["python", str(RECIPES / "synthetic.py")]
    with caplog.at_level("INFO", "lightning.pytorch"):
        synthetic(*command[2:])
    state, meta = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert (state.round, meta["identity"]["hyperparameters"]["mu"]) == (6, 0.5)
    assert f"{folder} goes on after round 3 of 6." in caplog.text
    assert "after round 6, best" in capsys.readouterr().out


def test_the_newest_run_is_named_where_none_is(caplog: pytest.LogCaptureFixture) -> None:
    synthetic("--name", "old", *QUICK)
    synthetic("--name", "new", *QUICK)
    with caplog.at_level("INFO", "lightning.pytorch"):
        synthetic("--resume", "last", "--local-steps", "1", "--rounds", "4", "--runner", "loop")
    assert "synthetic_1_1/fedavg/new goes on after round 3 of 4." in caplog.text


def test_the_baseline_ends_so_too_but_does_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic("--centralised", "--rounds", "2", "--local-steps", "1", "--clients-per-round", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Look at it:    tensorboard --logdir logs/synthetic/synthetic_1_1/centralised/version_0"
    assert lines[-2].startswith("val/accuracy 0.")


@pytest.mark.parametrize(
    ("table", "callbacks", "line"),
    [
        ("step,val/accuracy,val/loss\n0,0.1,3\n1,0.5,2\n2,0.4,1\n", [], "val/accuracy 0.4 after round 2, best 0.5 after round 1."),
        ("step,val/loss\n0,3\n1,1\n2,2\n", [], "val/loss 2 after round 2, best 1 after round 1."),
        ("step,val/loss,val/accuracy\n0,3,1\n1,1,2\n", [ModelCheckpoint(monitor="val/loss", mode="min")], "val/loss 1 after round 1, best 1 after round 1."),
        ("step,val/accuracy\n0,0.5\n1,\n2,0.5\n", [Callback()], "val/accuracy 0.5 after round 2, best 0.5 after round 0."),
        ("step\n0\n", [], None), ("nonsense\0\n", [], None), (None, [], None), ("step,val/accuracy\n0,x\n", [], None),
    ],
)  # fmt: skip
def test_the_metric_is_that_which_is_watched(
    table: str | None, callbacks: list[Callback], line: str | None, tmp_path: Path
) -> None:
    if table is not None:
        (tmp_path / "metrics.csv").write_text(table)
    lines = ending(tmp_path, callbacks, 61.2, None).splitlines()
    assert lines[0] == f"The run is in {tmp_path}; it took 1:01."
    assert lines[1:-1] == ([line] if line else [])


def test_words_with_spaces_are_quoted() -> None:
    command = again(Path("my recipes/a.py"), Path("logs/my run"), 8)
    assert shlex.split(command) == ["python", "my recipes/a.py", "--config", "logs/my run/config.yaml", "--rounds", "8",
                                    "--resume", "last", "--name", "my run"]  # fmt: skip
    assert clock(3723) == "1:02:03"
