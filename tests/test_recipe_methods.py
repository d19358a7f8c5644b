"""The comparison of methods, on a few rounds."""

import csv
import json
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from recipe_runner import load

from fedlightning import ConfigurationError
from fedlightning.data import FakeImages
from fedlightning.method import field_names
from fedlightning.methods import method_named

FLAGS = ["--dataset", "synthetic", "--rounds", "2", "--tune-rounds", "1", "--evaluate-every", "1", "--slots", "1"]


@pytest.fixture
def recipe() -> ModuleType:
    return load("methods")


def compare(recipe: ModuleType, out: Path, methods: str, *more: str) -> list[dict[str, str]]:
    recipe.main([*FLAGS, "--methods", methods, "--out", str(out), *more])
    return list(csv.DictReader((out / "table.csv").read_text().splitlines()))


def test_a_comparison_leaves_its_runs_and_a_table(recipe: ModuleType, tmp_path: Path) -> None:
    rows = compare(recipe, tmp_path, "fedavg,fedadam", "--seeds", "3,5")
    assert [row["method"] for row in rows] == ["fedavg", "fedadam"]
    assert rows[0]["grid"] == "lr 0.03, 0.1, 0.3"
    assert rows[1]["grid"] == "lr 0.03, 0.1; server_lr 0.03, 0.1, 0.3"
    assert len(list((tmp_path / "runs").glob("fedavg_*rounds=1.json"))) == 3
    assert len(list((tmp_path / "runs").glob("fedadam_*rounds=1.json"))) == 6
    for row in rows:
        tuning = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob(f"{row['method']}_*rounds=1.json")]
        best = max(tuning, key=lambda run: sum(accuracy for _, accuracy in run["curve"]) / 2)
        assert best["run"]["seed"] == 3
        final = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob(f"{row['method']}_*rounds=2.json")]
        assert sorted(run["run"]["seed"] for run in final) == [3, 5]
        assert {run["run"]["lr"] for run in final} == {best["run"]["lr"]}
        curves = [[accuracy for _, accuracy in run["curve"]] for run in final]
        assert [t for t, _ in final[0]["curve"]] == [0, 1, 2]
        assert float(row["final"]) == pytest.approx(sum(map(sum, curves)) / 6)
        assert float(row["best"]) == pytest.approx(sum(map(max, curves)) / 2)
    table = (tmp_path / "table.md").read_text()
    assert f"python recipes/methods.py {' '.join(FLAGS)} --methods fedavg,fedadam --out {tmp_path} --seeds 3,5" in table
    assert f"{100 * float(rows[0]['final']):.2f} ± {100 * float(rows[0]['final_std']):.2f}" in table


def test_finished_runs_are_not_run_again(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = compare(recipe, tmp_path, "fedavg", "--seeds", "0")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    capsys.readouterr()
    assert compare(recipe, tmp_path, "fedavg", "--seeds", "0") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == files
    assert "_seed=" not in capsys.readouterr().out
    compare(recipe, tmp_path, "fedavg", "--seeds", "0,1")
    assert capsys.readouterr().out.count("_seed=") == 1
    compare(recipe, tmp_path, "fedavg", "--seeds", "0,1", "--evaluate-every", "2")
    assert capsys.readouterr().out.count("_seed=") == 5


def test_a_run_that_diverges_is_noted_and_loses(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipe.SETTINGS["synthetic"].own, "fedavg", {"lr": (1e38, 0.03)})
    (row,) = compare(recipe, tmp_path, "fedavg", "--seeds", "0")
    assert row["tuned"] == "lr 0.03"
    failed = json.loads((tmp_path / "runs" / "fedavg_lr=1e+38_seed=0_rounds=1.json").read_text())
    assert "must be finite" in failed["failure"]


def test_fashion_mnist_runs_on_images(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def images(partition: str, *, root: str, **options: object) -> FakeImages:
        return FakeImages(partition, shape=(1, 28, 28), classes=10, num_train=2000, num_test=200, **options)

    monkeypatch.setattr(recipe, "FashionMNIST", images)
    (row,) = compare(recipe, tmp_path, "fedinit", "--dataset", "fashion_mnist", "--seeds", "0", "--rounds", "1")
    assert 0 <= float(row["best"]) <= 1
    assert "Fashion-MNIST" in (tmp_path / "table.md").read_text()


def test_rounds_to_the_target_and_the_final_accuracy(recipe: ModuleType) -> None:
    curve = [(0, 0.1), (5, 0.5), (10, 0.8), (15, 0.6), (20, 0.7), (25, 0.9)]
    result = partial(recipe.Result, {}, curve, 1.0)
    assert result(None).rounds_to(0.7) == 10
    assert result(None).rounds_to(0.95) is None
    assert result(None).best == 0.9
    assert result(None).final == pytest.approx((0.8 + 0.6 + 0.7 + 0.9) / 4)
    assert result("diverged").final == 0


def test_every_point_of_every_grid_is_a_method(recipe: ModuleType) -> None:
    assert len(set(recipe.METHODS.split())) == 13
    for dataset, setting in recipe.SETTINGS.items():
        comparison = recipe.Comparison(recipe.parse(["--dataset", dataset, "--out", "unused"]))
        for name in {*recipe.METHODS.split(), *setting.own}:
            for values in comparison.points(name):
                assert set(values) <= set(field_names(method_named(name)))
                method_named(name)(**values)


def test_an_unknown_method_is_refused_before_anything_runs(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'fedavgm'"):
        compare(recipe, tmp_path / "out", "fedavg,fedavgn")
    assert not (tmp_path / "out").exists()
