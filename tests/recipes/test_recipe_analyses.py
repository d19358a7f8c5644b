"""The recipes of the analyses: what they leave, and the two claims of arXiv:2511.00469 in small."""

import csv
import os
import sys
from pathlib import Path

import pytest
import torch
from recipe_runner import RECIPES, load, run

from fedlightning import ConfigurationError
from fedlightning.cli.recipe import call_program
from fedlightning.testing import Quadratics

PICTURES = ["angles", "landscape", "optima", "partition"]
SMALL = ["--rounds", "2", "--local-steps", "1", "--passes", "2", "--measured-clients", "2", "--resolution", "2"]


def analyse(*flags: str) -> tuple[list[str], list[dict[str, str]]]:
    """Run the recipe; the pictures it leaves, and the rows of its metrics."""
    run("analyses", *flags, *SMALL)
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


# -- the two claims -------------------------------------------------------------------------------------------------------
def test_the_floor_is_the_closed_form_and_grows_with_the_distance() -> None:
    module = load("client_optima")
    near, far = (module.floors(scale, 40, 0) for scale in (1.0, 2.0))
    for floor in (*near, *far):
        assert floor.measured == pytest.approx(floor.predicted, rel=1e-6)
    assert [floor.method for floor in near] == ["Scaffold", "FedAvg"]
    assert near[0].predicted < near[1].predicted
    for one, two in zip(near, far, strict=True):
        assert two.distance == pytest.approx(2 * one.distance, rel=1e-4)
        assert two.predicted == pytest.approx(4 * one.predicted, rel=1e-9)


def test_the_floor_by_an_independent_minimiser() -> None:
    module = load("client_optima")
    curvatures, optima, sizes = module.problem(1.0, 0)
    x = torch.zeros(module.DIMENSIONS, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        losses = [n / sum(sizes) * (x - b) @ a @ (x - b) / 2 for n, a, b in zip(sizes, curvatures, optima, strict=True)]
        total = torch.stack(losses).sum()
        total.backward()
        return total

    solver.step(loss)
    assert module.floors(1.0, 1, 0)[0].predicted == pytest.approx(loss().item(), rel=1e-12)


def test_the_oscillation_has_the_predicted_variance() -> None:
    found = load("client_optima").oscillation(5, 2, 250, 0)
    assert abs(found.measured - found.predicted) < 3 * found.error
    assert found.error < 0.15 * found.predicted


def test_the_predicted_variance_by_enumeration() -> None:
    """σ_S² as the variance over all pairs of clients, and the recursion v ← (1 − M)² v + M² σ_S² at its fixed point."""
    module = load("client_optima")
    optima = module.oscillating(0)
    pairs = [(i, j) for i in range(len(optima)) for j in range(i)]
    means = torch.stack([optima[list(pair)].mean(0) for pair in pairs])
    sampling = float((means - optima.mean(0)).square().sum(1).mean())
    moved, variance = 1 - (1 - module.LR) ** 5, 0.0
    for _ in range(100):
        variance = (1 - moved) ** 2 * variance + moved**2 * sampling
    assert module.predicted_variance(optima, 5, 2) == pytest.approx(variance, rel=1e-12)


def test_with_all_clients_nothing_oscillates() -> None:
    found = load("client_optima").oscillation(1, 10, 20, 0)
    assert (found.predicted, found.measured) == (0, pytest.approx(0, abs=1e-25))


def test_the_table_and_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    module = load("client_optima")
    assert issubclass(module.Quadratics, Quadratics)
    monkeypatch.setattr(module, "SCALES", (0.0, 1.0))
    lower, later, paths = call_program(
        module.main, ["--rounds", "4", "--floor-rounds", "3", "--out", str(tmp_path / "figures")]
    )
    assert [path.name for path in paths] == ["client_optima.pdf", "client_optima.png"]
    assert [path.read_bytes()[:4] for path in paths] == [b"%PDF", b"\x89PNG"]
    printed = capsys.readouterr().out
    assert f"{lower[-1].predicted:.12f}" in printed
    assert f"{later[0].predicted:.5f}" in printed
    assert len(later) == len(module.LOCAL_STEPS) * len(module.PARTICIPANTS)


@pytest.mark.parametrize(("name", "words"), [("compare", "--methods fedavg"), ("client_optima", ""), ("fedprox_paper", "--figure 2")])  # fmt: skip
def test_programs_that_draw_say_in_one_line_that_they_need_matplotlib(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(RECIPES), *sys.path])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ConfigurationError, match=rf'^{name} draws with matplotlib, .* run `pip install -e "\.\[figures\]"`\.$'
    ):
        call_program(load(name).main, words.split())
    assert list(tmp_path.iterdir()) == []


def test_so_does_the_recipe_of_the_analyses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as caught:
        run("analyses", "--data", "synthetic", "--rounds", "1")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'run `pip install -e ".[figures]"`' in line
    assert list(tmp_path.iterdir()) == []
