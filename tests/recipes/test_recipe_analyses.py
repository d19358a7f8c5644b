"""The recipe of the analyses: what it leaves."""

import csv
import os
import sys
from pathlib import Path

import pytest
from recipe_runner import RECIPES, load

from fedlightning import ConfigurationError
from fedlightning.cli.recipe import call_program, run_recipe

PICTURES = ["angles", "landscape", "optima", "partition"]
SMALL = ["--rounds", "2", "--local-steps", "1", "--passes", "2", "--measured-clients", "2", "--resolution", "2"]


def analyse(*flags: str) -> tuple[list[str], list[dict[str, str]]]:
    """Run the recipe; the pictures it leaves, and the rows of its metrics."""
    run_recipe(load("analyses").main, argv=[*flags, *SMALL], lr=0.02)
    (folder,) = Path("logs/analyses").glob("*/*/version_0")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return sorted(path.stem for path in folder.glob("*.png")), rows


def test_all_analyses_on_synthetic_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures, rows = analyse("--data", "synthetic")
    assert pictures == PICTURES
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["partition/clients"] == "30.0"
    assert all(row["angles/degrees"] for row in rows[1:])
    assert all(row["dissimilarity/heterogeneity"] for row in rows)
    assert rows[2]["optima/gap"]
    assert not rows[1]["optima/gap"]


@pytest.mark.skipif(
    not os.environ.get("FEDLIGHTNING_DATA"), reason="FEDLIGHTNING_DATA names no folder with Fashion-MNIST"
)
def test_all_analyses_on_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--partition", "A0d10C10", "--model", "logistic", "--clients-per-round", "2", "--every", "2"]
    pictures, rows = analyse(*flags, "--data-dir", os.environ["FEDLIGHTNING_DATA"])
    assert pictures == PICTURES
    assert rows[0]["partition/examples"] == "60000.0"


def test_the_comparison_says_in_one_line_that_it_needs_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(RECIPES), *sys.path])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ConfigurationError, match=r'^compare draws with matplotlib, .* run `pip install -e "\.\[figures\]"`\.$'
    ):
        call_program(load("compare").main, ["--methods", "fedavg"])
    assert list(tmp_path.iterdir()) == []


def test_so_does_the_recipe_of_the_analyses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as caught:
        run_recipe(load("analyses").main, argv=["--data", "synthetic", "--rounds", "1"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'run `pip install -e ".[figures]"`' in line
    assert list(tmp_path.iterdir()) == []
