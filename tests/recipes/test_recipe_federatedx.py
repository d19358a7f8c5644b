"""The recipes of FederatedX's data sets, each for a round on a few examples."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from emnist_files import letters
from recipe_runner import load, run

from fedlightning import datasets
from fedlightning.cli.flags import of_function
from fedlightning.datasets import FakeImages
from fedlightning.method import field_names
from fedlightning.methods import method_named, method_names
from fedlightning.server.checkpoint import load_checkpoint

RECIPES = ("cifar10", "cifar100", "fashion_mnist", "emnist", "emnist_autoencoder", "stackoverflow")
QUICK = ["--rounds", "1", "--local-steps", "1", "--clients-per-round", "2", "--evaluate-every", "1", "--slots", "1"]
QUICK += ["--cohort-size", "1"]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up images are few."""
    monkeypatch.setattr(datasets, "FakeImages", partial(FakeImages, num_train=186, num_test=62))


def end(folder: str) -> tuple[torch.Tensor, set[str]]:
    """The global model after the run, and the names of what was logged."""
    (path,) = Path("logs").glob(f"{folder}/version_0")
    state, _ = load_checkpoint(path / "checkpoints/last.ckpt")
    assert state.round == 1
    return state.server.x, set((path / "metrics.csv").read_text().splitlines()[0].split(","))


@pytest.mark.parametrize(
    ("recipe", "flags", "parameters"),
    [
        ("cifar10", [], 62_006),
        ("cifar10", ["--crop", "24", "--model", "cnn"], 320 + 576 + 64 + 18_496 + 128 + (64 * 36 + 1) * 128 + 1290),
        ("cifar100", ["--crop", "24", "--model", "mlp"], 1729 * 200 + 201 * 200 + 201 * 100),
        ("fashion_mnist", [], 421_834),
        ("emnist", [], 428_542),
        ("emnist", ["--model", "logical"], 846_000),
        ("emnist", ["--model", "fullconnect"], 115_400),
        ("emnist_autoencoder", [], 37_569),
        ("emnist_autoencoder", ["--model", "autoencoder"], 1_105_568),
    ],
)
def test_a_round_on_made_up_images(recipe: str, flags: list[str], parameters: int) -> None:
    run(recipe, "--partition", "IIDC4", "--data", "fake", *flags, *QUICK)
    x, names = end(f"{recipe}/fake-IIDC4/fedavg")
    assert x.shape == (parameters,)
    assert "test/loss" in names
    assert ("test/accuracy" in names) is (recipe != "emnist_autoencoder")
    assert ("test/mae" in names) is (recipe == "emnist_autoencoder")


@pytest.mark.parametrize(
    ("recipe", "model", "given", "groups"),
    [
        ("cifar10", "resnet6", None, 32),
        ("cifar10", "lenet", None, None),
        ("cifar100", "resnet6", None, None),
        ("cifar100", "resnet6", "32", 32),
        ("fashion_mnist", "cnn", None, None),
        ("fashion_mnist", "resnet6", None, 32),
        ("emnist", "cnn", None, 16),
        ("emnist", "resnet6", "4", 4),
    ],
)
def test_the_groups_are_those_of_federatedx(
    recipe: str, model: str, given: str | None, groups: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def build(name: str, *_: object, groups: int | None, positions: bool | None) -> None:
        asked.append((name, groups, positions))
        raise Stop

    asked: list[tuple[str, int | None, bool | None]] = []
    module = load(recipe)
    monkeypatch.setattr(module, "build_model", build)
    flags = ["--model", model, "--data", "fake", "--positions", "false", *(["--groups", given] if given else [])]
    with pytest.raises(Stop):
        run(recipe, *flags, module=module)
    assert asked == [(model, groups, False)]


@pytest.mark.parametrize(("recipe", "parameters"), [("emnist", 428_542), ("emnist_autoencoder", 37_569)])
def test_emnist_runs_on_its_files(recipe: str, parameters: int, tmp_path: Path) -> None:
    letters(tmp_path / "data")
    run(recipe, "--partition", "S2C5", *QUICK)
    assert end(f"{recipe}/S2C5/fedavg")[0].shape == (parameters,)


@pytest.mark.parametrize("recipe", ["fashion_mnist", "emnist", "emnist_autoencoder", "cifar10"])
def test_missing_data_are_named_and_leave_no_run(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(recipe)
    name = next(name for name in ("FashionMNIST", "EMNIST", "CIFAR10") if hasattr(module, name))
    monkeypatch.setattr(module, name, partial(getattr(module, name), download=False))
    with pytest.raises(SystemExit) as caught:
        run(recipe, "--data-dir", "nowhere", module=module)
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(Path("logs").rglob("*.*"))


@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_stackoverflow_runs_on_a_few_sentences(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data/stackoverflow"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        users = [{"user": f"{part}{i}", "sentences": ["how do i sort it", "thanks"][: i + 1]} for i in range(3)]
        (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(user)}\n" for user in users))
    recipe = load("stackoverflow")
    monkeypatch.setattr(recipe, "WordRNN", partial(recipe.WordRNN, embedding=4, hidden=5))
    run("stackoverflow", "--model", model, "--length", "5", *QUICK, module=recipe)
    assert capsys.readouterr().out.splitlines()[0] == "3 users with 5 sentences, 6 words"
    x, names = end("stackoverflow/stackoverflow/fedavg")
    gates = 4 * 5 * 10 if model == "lstm" else 3 * 5 * 10 + 5
    assert x.shape == (10 * 4 + gates + 6 * 4 + 5 * 10,)
    assert {"test/loss", "test/accuracy"} <= names
    config = yaml.safe_load(next(Path("logs").rglob("config.yaml")).read_text())
    assert (config["batch_size"], config["max_sentences"], config["vocabulary"]) == (16, 128, 10_000)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_method_shares_a_flag_with_a_recipe(recipe: str) -> None:
    flags = {flag.name for flag in of_function(load(recipe).main)}
    assert {"partition", "model", "data"} <= flags or recipe == "stackoverflow"
    for method in method_names():
        assert not flags & set(field_names(method_named(method))), method


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_flag_is_described(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(recipe, "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in of_function(load(recipe).main):
        assert f"{flag.dashed} " in text
        assert flag.help, flag.name
