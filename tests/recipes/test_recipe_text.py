"""The recipes of the FedProx paper's text data, on a few lines of text."""

import csv
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from recipe_runner import load, run

from fedlightning import Batching, FederatedTask
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.datasets.shakespeare import Shakespeare
from fedlightning.methods import method_names
from fedlightning.server.checkpoint import load_checkpoint

QUICK = ["--clients-per-round", "3", "--local-steps", "2", "--rounds", "2", "--evaluate-every", "1", "--slots", "1"]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def shakespeare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe on a play of four roles, with windows of 20 characters."""
    play = "".join(
        f"  {role}. What is it that the {role.lower()} says to all of them here?\n    Nothing but that, my lord.\n"
        for _ in range(3)
        for role in ("Duke", "Fool", "Nurse", "Witch")
    )
    author = "by William Shakespeare\n"
    text = f"THE SONNETS\n\n{author}\n\nA PLAY\n\n\n{author}\n{play}"
    folder = tmp_path / "data" / "shakespeare"
    folder.mkdir(parents=True)
    (folder / "play.txt").write_text(text)
    recipe = load("shakespeare")
    monkeypatch.setattr(recipe, "Shakespeare", partial(Shakespeare, file="play.txt", length=20))
    return recipe


@pytest.fixture
def sent140(tmp_path: Path) -> ModuleType:
    """The recipe on five accounts of eight tweets, and ten words of three features."""
    words = ["good", "bad", "day", "night", "not", "a", "the", ".", "!", "so"]
    rng = np.random.default_rng(0)
    for name in ("sent140", "glove"):
        (tmp_path / "data" / name).mkdir(parents=True)
    vectors = "".join(f"{word} {' '.join(f'{x:.3f}' for x in rng.normal(size=3))}\n" for word in words)
    (tmp_path / "data/glove/glove.6B.3d.txt").write_text(vectors)

    def row(number: int) -> str:
        text = " ".join(rng.choice(words, size=6))
        return f'"{4 * (number % 2)}","{number}","Mon","NO_QUERY","user{number % 5}","{text}"\n'

    (tmp_path / "data/sent140/training.tiny.csv").write_text("".join(map(row, range(38))))
    (tmp_path / "data/sent140/testdata.manual.tiny.csv").write_text("".join(map(row, range(38, 40))))
    return load("sent140")


SENT140 = ["--fraction", "1.0", "--min-samples", "4", "--glove", "glove.6B.3d.txt"]
SHAKESPEARE = ["--fraction", "1.0"]


def logged(folder: str) -> list[dict[str, str]]:
    (path,) = Path("logs").glob(f"{folder}/*/version_0/metrics.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


def last(rows: list[dict[str, str]], name: str) -> float:
    return [float(row[name]) for row in rows if row.get(name)][-1]


@pytest.mark.parametrize("method", ["fedavg", "fedprox"])
def test_shakespeare_runs_and_prints_its_statistics(
    shakespeare: ModuleType, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("shakespeare", *QUICK, *SHAKESPEARE, "--method", method, "--split", "random", module=shakespeare)
    assert "Shakespeare        4" in capsys.readouterr().out
    rows = logged("shakespeare/shakespeare_1_random")
    assert last(rows, "test/loss") < float(rows[0]["test/loss"]) < 4.7
    assert last(rows, "train_all/loss") < 4.5


def test_sent140_runs_and_prints_its_statistics(sent140: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run("sent140", *QUICK, *SENT140, "--method", "fedprox", module=sent140)
    assert "Sent140        5       40                  8.0    0.0" in capsys.readouterr().out
    rows = logged("sent140/sent140_1_4")
    assert float(rows[0]["train_all/loss"]) == pytest.approx(0.693, abs=0.1)
    assert last(rows, "train_all/loss") != float(rows[0]["train_all/loss"])


@pytest.mark.parametrize("recipe", ["shakespeare", "sent140"])
def test_training_data_need_not_be_evaluated(recipe: str, request: pytest.FixtureRequest) -> None:
    own = {"shakespeare": SHAKESPEARE, "sent140": SENT140}[recipe]
    run(recipe, *QUICK, *own, "--evaluate-train", "false", module=request.getfixturevalue(recipe), lr=0.3)
    names = set(logged(f"{recipe}/*")[0])
    assert "test/loss" in names
    assert "train_all/loss" not in names


@pytest.mark.parametrize("recipe", ["shakespeare", "sent140"])
def test_stragglers_are_the_papers(recipe: str, request: pytest.FixtureRequest) -> None:
    own = {"shakespeare": SHAKESPEARE, "sent140": SENT140}[recipe]
    module, found = request.getfixturevalue(recipe), {}
    for name, flags in (("a", []), ("b", ["--stragglers", "0.5"]), ("c", ["--stragglers", "0.9", "--drop-stragglers"])):
        run(recipe, *QUICK, *own, "--local-steps", "5", *flags, "--name", name, module=module, lr=0.3)
        (path,) = Path("logs").rglob(f"{name}/checkpoints/last.ckpt")
        state, meta = load_checkpoint(path)
        found[name] = meta["identity"]["stragglers"], tuple(state.server.x.tolist())
        assert meta["identity"]["sampler"] == repr(RoundSeeded())
    rules = [None, repr(RoundSeededStragglers(0.5)), repr(RoundSeededStragglers(0.9, partial=False))]
    assert [str(rule) for rule, _ in found.values()] == [str(rule) for rule in rules]
    assert len({x for _, x in found.values()}) == 3


@pytest.mark.parametrize(("recipe", "lr", "rounds"), [("shakespeare", 0.8, 40), ("sent140", 0.3, 800)])
def test_the_papers_numbers_are_the_defaults(
    recipe: str, lr: float, rounds: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is run as a program, up to its first round, with no flag for what the paper fixes."""
    module = request.getfixturevalue(recipe)
    own = {"shakespeare": SHAKESPEARE, "sent140": SENT140}[recipe]

    class Stop(Exception):
        pass

    def stop(self: Run, *_: object, **__: object) -> None:
        runs.append(self)
        raise Stop

    runs: list[Run] = []
    monkeypatch.setattr(Run, "fit", stop)
    program = Path(module.__file__).read_text().split('__name__ == "__main__":')[1].strip()
    monkeypatch.setattr("sys.argv", [recipe, *own])
    with pytest.raises(Stop):
        exec(program, module.__dict__)
    config = yaml.safe_load(runs[0].config)
    assert (config["lr"], config["rounds"], config["clients_per_round"], config["batch_size"]) == (lr, rounds, 10, 10)
    assert (config["local_epochs"], config["local_steps"], config["stragglers"]) == (20, None, 0.0)
    assert (runs[0].flags.rounds, runs[0].batching) == (rounds, Batching(10, epochs=20))


def test_the_start_depends_on_the_seed(shakespeare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[torch.Tensor] = []

    def noted(self: Run, task: FederatedTask, data: Shakespeare, **_: object) -> None:
        starts.append(task.model.linear.weight.detach().clone())  # type: ignore[union-attr]
        assert data.batching == Batching(10, epochs=20)

    monkeypatch.setattr(Run, "fit", noted)
    for seed in ("0", "0", "1"):
        run("shakespeare", *SHAKESPEARE, "--seed", seed, module=shakespeare)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("recipe", ["shakespeare", "sent140"])
@pytest.mark.parametrize("method", method_names())
def test_no_method_shares_a_flag_with_a_recipe(recipe: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load(recipe).main, argv=["--method", method, "--help"])
    assert caught.value.code == 0
    assert "--drop-stragglers" in capsys.readouterr().out
