"""The two claims of arXiv:2511.00469 in small."""

import sys
from pathlib import Path

import pytest
import torch

from fedlightning import ConfigurationError
from fedlightning.cli.recipe import call_program
from recipes.reproductions import client_optima


def test_the_floor_is_the_closed_form_and_grows_with_the_distance() -> None:
    near, far = (client_optima.floors(scale, 40, 0) for scale in (1.0, 2.0))
    for floor in (*near, *far):
        assert floor.measured == pytest.approx(floor.predicted, rel=1e-6)
    assert [floor.method for floor in near] == ["Scaffold", "FedAvg"]
    assert near[0].predicted < near[1].predicted
    for one, two in zip(near, far, strict=True):
        assert two.distance == pytest.approx(2 * one.distance, rel=1e-4)
        assert two.predicted == pytest.approx(4 * one.predicted, rel=1e-9)


@pytest.mark.quick
def test_the_floor_by_an_independent_minimiser() -> None:
    curvatures, optima, sizes = client_optima.problem(1.0, 0)
    x = torch.zeros(client_optima.DIMENSIONS, dtype=torch.float64, requires_grad=True)
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
    assert client_optima.floors(1.0, 1, 0)[0].predicted == pytest.approx(loss().item(), rel=1e-12)


def test_the_oscillation_has_the_predicted_variance() -> None:
    found = client_optima.oscillation(5, 2, 250, 0)
    assert abs(found.measured - found.predicted) < 3 * found.error
    assert found.error < 0.15 * found.predicted


@pytest.mark.quick
def test_the_predicted_variance_by_enumeration() -> None:
    """σ_S² as the variance over all pairs of clients, and the recursion v ← (1 − M)² v + M² σ_S² at its fixed point."""
    optima = client_optima.oscillating(0)
    pairs = [(i, j) for i in range(len(optima)) for j in range(i)]
    means = torch.stack([optima[list(pair)].mean(0) for pair in pairs])
    sampling = float((means - optima.mean(0)).square().sum(1).mean())
    moved, variance = 1 - (1 - client_optima.LR) ** 5, 0.0
    for _ in range(100):
        variance = (1 - moved) ** 2 * variance + moved**2 * sampling
    assert client_optima.predicted_variance(optima, 5, 2) == pytest.approx(variance, rel=1e-12)


def test_with_all_clients_nothing_oscillates() -> None:
    found = client_optima.oscillation(1, 10, 20, 0)
    assert (found.predicted, found.measured) == (0, pytest.approx(0, abs=1e-25))


def test_the_table_and_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(client_optima, "SCALES", (0.0, 1.0))
    lower, later, paths = call_program(
        client_optima.main, ["--rounds", "4", "--floor-rounds", "3", "--out", str(tmp_path / "figures")]
    )
    assert [path.name for path in paths] == ["client_optima.pdf", "client_optima.png"]
    assert [path.read_bytes()[:4] for path in paths] == [b"%PDF", b"\x89PNG"]
    printed = capsys.readouterr().out
    assert f"{lower[-1].predicted:.12f}" in printed
    assert f"{later[0].predicted:.5f}" in printed
    assert len(later) == len(client_optima.LOCAL_STEPS) * len(client_optima.PARTICIPANTS)


def test_without_matplotlib_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = r'^client_optima draws with matplotlib, .* run `pip install -e "\.\[figures\]"`\.$'
    with pytest.raises(ConfigurationError, match=message):
        call_program(client_optima.main, [])
    assert list(tmp_path.iterdir()) == []
