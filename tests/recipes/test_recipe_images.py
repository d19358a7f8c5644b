"""The recipes of FedProx's image data sets, on a few rounds."""

import csv
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image  # torchvision's own requirement
from recipe_runner import RECIPES, load, run

from fedlightning import Batching
from fedlightning.cli.recipe import run_recipe
from fedlightning.data import Examples, Partition
from fedlightning.datasets.power_law import PowerLawMNIST
from fedlightning.methods import method_names
from fedlightning.server.checkpoint import load_checkpoint

QUICK = ["--rounds", "2", "--local-steps", "2", "--slots", "1", "--cohort-size", "1"]


class Digits(PowerLawMNIST):
    """Twelve devices of 9 + 1 images in place of the 1,000."""

    def load(self) -> tuple[Examples, Partition, Examples, Partition]:
        rng = np.random.default_rng(self.seed)
        pixels = torch.from_numpy(rng.integers(0, 256, (120, 784), dtype=np.uint8))
        self.mean, self.scale = torch.full((784,), 128.0), torch.full((784,), 74.0)
        labels = torch.from_numpy(rng.integers(0, 10, 120))
        train, test = Examples(pixels[:108], labels[:108]), Examples(pixels[108:], labels[108:])
        return train, Partition.of_owners(torch.arange(108) % 12, 12), test, Partition.of_owners(torch.arange(12), 12)


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    recipe = load("mnist")
    monkeypatch.setattr(recipe, "PowerLawMNIST", Digits)
    return recipe


def letters(root: Path) -> None:
    """Four images of each of NIST's letters a to j."""
    for letter in "abcdefghij":
        folder = root / "by_class" / f"{ord(letter):x}" / f"train_{ord(letter):x}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.full((128, 128), 255, dtype=np.uint8)
            pixels[: 8 * (ord(letter) - 90), 30 * number : 30 * number + 9] = 0
            Image.fromarray(pixels).save(folder / f"{number}.png")


def logged(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path("logs", folder, "metrics.csv").read_text().splitlines()))


@pytest.mark.quick
@pytest.mark.parametrize(("recipe", "lr", "rounds"), [("mnist", 0.03, 100), ("femnist", 0.003, 200)])
def test_the_defaults_are_the_papers(
    recipe: str, lr: float, rounds: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [recipe, "--method", "fedprox", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, default in (
        ("--lr LR", lr),
        ("--rounds ROUNDS", rounds),
        ("--clients-per-round CLIENTS_PER_ROUND", 10),
        ("--batch-size BATCH_SIZE", 10),
        ("--stragglers STRAGGLERS", 0.0),
        ("--data-dir DATA_DIR", "data"),
    ):
        assert text.split(f"{flag} ")[1].split("default: ")[1].startswith(f"{default})"), flag
    assert "--local-epochs" in text
    assert "(type: int | null, default: 20)" in text


@pytest.mark.parametrize("recipe", ["mnist", "femnist"])
@pytest.mark.parametrize("method", method_names())
def test_no_method_shares_a_flag_with_a_recipe(recipe: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load(recipe).main, argv=["--method", method, "--help"])
    assert caught.value.code == 0
    assert "--lr" in capsys.readouterr().out


@pytest.mark.quick
def test_mnist_shows_the_statistics_and_evaluates_on_both_parts(
    mnist: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run("mnist", "--method", "fedprox", "--mu", "1", *QUICK, module=mnist)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "Dataset  Devices  Samples  Samples/device mean  stdev",
        "MNIST         12      120                 10.0    0.0",
    ]
    rows = logged("mnist/mnist_power_law/fedprox/version_0")
    for name in ("test/loss", "test/accuracy", "train_all/loss", "train_all/accuracy", "train/loss"):
        assert [row for row in rows if row.get(name)], name
    state, meta = load_checkpoint(Path("logs/mnist/mnist_power_law/fedprox/version_0/checkpoints/last.ckpt"))
    assert (state.round, len(state.server.x)) == (2, 7850)
    assert meta["identity"]["hyperparameters"]["lr"] == 0.03
    assert "RoundSeeded" in meta["identity"]["sampler"]


def test_the_seed_and_the_epochs_are_passed_on(mnist: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def digits(**options: object) -> Digits:
        asked.append(options)
        return Digits(**options)

    monkeypatch.setattr(mnist, "PowerLawMNIST", digits)
    flags = ["--seed", "5", "--batch-size", "3", "--local-epochs", "2", "--data-dir", "there", "--rounds", "1"]
    run("mnist", *flags, "--slots", "1", module=mnist)
    assert asked == [{"root": "there", "seed": 5, "batching": Batching(3, epochs=2)}]


def test_stragglers_do_less_or_are_dropped(mnist: ModuleType) -> None:
    for name, flags in (("some", "0.5"), ("none", "0.9 --drop-stragglers"), ("all", "0")):
        run("mnist", "--method", "fedavg", "--stragglers", *flags.split(), "--name", name, *QUICK, module=mnist)
    found = {}
    for name in ("some", "none", "all"):
        state, meta = load_checkpoint(Path(f"logs/mnist/mnist_power_law/fedavg/{name}/checkpoints/last.ckpt"))
        found[name] = state.server.x, str(meta["identity"]["stragglers"])
    assert found["some"][1] == "RoundSeededStragglers(fraction=0.5, partial=True)"
    assert found["none"][1] == "RoundSeededStragglers(fraction=0.9, partial=False)"
    assert not torch.equal(found["all"][0], found["some"][0])
    assert not torch.equal(found["all"][0], found["none"][0])


@pytest.mark.quick
def test_stragglers_are_checked_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_recipe(load("femnist").main, argv=["--stragglers", "1.0", "--data-dir", "nowhere"])
    assert "`fraction` of Stragglers must be in [0, 1), but is 1.0" in capsys.readouterr().err


def test_femnist_runs_on_nists_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters(tmp_path / "data")
    run("femnist", "--method", "fedavg", "--classes-per-user", "3", "--seed", "1", *QUICK)
    table = capsys.readouterr().out.splitlines()[1].split()
    assert table[:2] == ["FEMNIST", "200"]
    rows = logged("femnist/femnist_3/fedavg/version_0")
    assert [row for row in rows if row.get("train_all/accuracy")]
    state, _ = load_checkpoint(Path("logs/femnist/femnist_3/fedavg/version_0/checkpoints/last.ckpt"))
    assert len(state.server.x) == 20_410


def test_femnist_runs_on_its_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for character in range(1, 4):
        folder = tmp_path / f"data/omniglot-small/images_background_small1/Latin/character{character:02}"
        folder.mkdir(parents=True)
        for writer in range(1, 13):
            pixels = np.full((105, 105), 255, dtype=np.uint8)
            pixels[20 * character :, 8 * writer] = 0
            Image.fromarray(pixels).save(folder / f"{character:04}_{writer:02}.png")
    run("femnist", "--method", "fedavg", "--data", "omniglot", *QUICK)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["Omniglot", "12", "36"]
    state, _ = load_checkpoint(Path("logs/femnist/omniglot_writers/fedavg/version_0/checkpoints/last.ckpt"))
    assert len(state.server.x) == 3 * 785


def test_missing_data_are_named_and_leave_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load("femnist").main, argv=["--data-dir", "nowhere"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "nowhere" in text
    assert "by_class.zip" in text
    assert not Path("logs").exists()
