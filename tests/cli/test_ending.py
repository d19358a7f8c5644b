"""What a recipe says before and after its run, and that the command it names at the end goes on with it."""

import re
import shlex
from pathlib import Path

import pytest
from recipe_runner import RECIPES, run

from fedlightning.cli.recipe import run_recipe
from fedlightning.server.checkpoint import load_checkpoint

QUICK = ["--local-steps", "1", "--rounds", "3", "--runner", "loop"]


def synthetic(*argv: str) -> None:
    run("synthetic", *argv)


pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_run_says_what_it_is_and_ends_with_two_commands(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    synthetic("--method", "fedprox", "--mu", "0.5", *QUICK)
    lines = capsys.readouterr().out.splitlines()
    folder = Path("logs/synthetic/synthetic_1_1/fedprox/version_0")
    assert lines[0] == "Method  FedProx with lr 0.01, mu 0.5"
    assert lines[1].startswith("Data    synthetic_1_1: 30 clients with ")
    assert lines[4] == f"Folder  {folder}"
    assert lines[5].startswith("round 0/3  test/loss ")
    took, metric, where, look, go_on = lines[-5:]
    assert re.match(r"Took    0:\d\d for 3 rounds; clients received ", took)
    assert re.fullmatch(r"Metric  test/accuracy 0\.\d+ after round 3, best 0\.\d+ after round \d", metric)
    assert where == f"Folder  {folder}"
    assert look == f"Look    tensorboard --logdir {folder}"
    command = shlex.split(go_on.removeprefix("Go on"))
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
    folder = "logs/synthetic/synthetic_1_1/centralised/version_0"
    assert lines[-1] == f"Look    tensorboard --logdir {folder}"
    assert lines[-2] == f"Folder  {folder}"
    assert lines[-3].startswith("Metric  test/accuracy 0.")


def test_words_with_spaces_are_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic("--name", "my run", *QUICK)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("Go on"))
    assert command[2:] == ["--config", "logs/synthetic/synthetic_1_1/fedavg/my run/config.yaml", "--rounds", "6",
                           "--resume", "last", "--name", "my run"]  # fmt: skip


def test_a_recipe_below_the_working_directory_is_named_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "recipes").symlink_to(RECIPES)
    path = tmp_path / "mine.py"
    path.write_text((RECIPES / "synthetic.py").read_text())
    spec = {"__name__": "mine"}
    exec(compile(path.read_text(), str(path), "exec"), spec)
    run_recipe(spec["main"], argv=QUICK)  # type: ignore[arg-type]
    assert "Go on   python mine.py --config " in capsys.readouterr().out
