"""The comparison of methods, on a few rounds."""

import csv
import importlib
import json
import runpy
import signal
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from recipe_runner import RECIPES, load

from fedlightning import ConfigurationError, FederatedTrainer
from fedlightning.cli.recipe import call_program, values_of
from fedlightning.datasets import FakeImages
from fedlightning.method import field_names
from fedlightning.methods import method_named

FLAGS = ["--dataset", "synthetic", "--rounds", "2", "--tune-rounds", "1", "--evaluate-every", "1", "--slots", "1"]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(RECIPES), *sys.path])
    return load("methods")


def compare(recipe: ModuleType, out: Path, methods: str, *more: str) -> list[dict[str, str]]:
    call_program(recipe.main, [*FLAGS, "--methods", *methods.split(), "--out", str(out), *more])
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
    flags = "--dataset synthetic --methods fedavg fedadam --rounds 2 --tune-rounds 1 --evaluate-every 1 --seeds 3 5"
    assert f"\n    python recipes/methods.py {flags} --out {tmp_path} --slots 1\n" in table
    assert "percent, mean ± deviation over the seeds; final is the mean of the last 3 evaluations." in table
    assert f"{100 * float(rows[0]['final']):.2f} ± {100 * float(rows[0]['final_std']):.2f}" in table


def test_finished_runs_are_not_run_again(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = compare(recipe, tmp_path, "fedavg", "--seeds", "0")
    table = (tmp_path / "table.md").read_text()
    assert "±" not in table  # of one seed
    assert "percent; final is the mean of the last 3 evaluations." in table
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
    for dataset, setting in recipe.SETTINGS.items():
        options = SimpleNamespace(**values_of(recipe.main, ["--dataset", dataset, "--out", "unused"]))
        assert len(set(options.methods)) == 13
        comparison = recipe.Comparison(options)
        for name in {*options.methods, *setting.own}:
            for values in comparison.points(name):
                assert set(values) <= set(field_names(method_named(name)))
                method_named(name)(**values)


@pytest.mark.parametrize(
    ("methods", "flags", "words"),
    [
        ("fedavg,fedavgn", [], "'fedavgm'"),
        (",", [], "`--methods` must be words, but is ','"),
        ("fedavg", ["--seeds", ","], "`--seeds` must be whole numbers, but is ','; give e.g. `--seeds 0 1 2`"),
        ("fedavg", ["--seeds", "a"], "`--seeds` must be whole numbers, but is 'a'"),
        ("fedavg", ["--seeds", "1,1"], r"`--seeds` must hold .* none twice, but is \[1, 1\]"),
        ("fedavg", ["--seeds", "0,-1"], r"`--seeds` must hold numbers from 0 .* but is \[0, -1\]"),
        ("fedavg", ["--lr", ","], "`--lr` must be numbers or null, but is ','"),
        ("fedavg", ["--lr", "0.1,-1"], r"`lr` of FedAvg must be in \(0, inf\)"),
        ("fedavg", ["--clients", "0"], r"`--clients` must be in \[1, 1000000000\], but is 0; leave it out"),
        ("fedavg", ["--rounds", "0"], r"`--rounds` must be in \[1, 1000000000\], but is 0; leave it out"),
        ("fedavg", ["--tune-rounds", "0"], r"`--tune-rounds` must be in \[1, 1000000000\], but is 0; leave it out"),
        (
            "fedavg",
            ["--evaluate-every", "0"],
            r"`--evaluate-every` must be in \[1, 1000000000\], but is 0; leave it out",
        ),
        ("fedavg", ["--slots", "moon/0"], "moon"),
        ("fedavg", ["--set", "foo=1"], "'foo' is none of fedavg"),
        ("fedprox,fedavg", ["--set", "mu=1"], "'mu' is none of fedavg"),
        ("fedprox", ["--set", "mu=null"], "`mu` of FedProx must be a number, but is None"),
        ("fedavg", ["--set", "lr=["], r"`lr` of FedAvg must be a number, but is '\['"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    recipe: ModuleType, tmp_path: Path, methods: str, flags: list[str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        compare(recipe, tmp_path / "out", methods, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["--seeds 0 1", "--seeds 0,1", "--seeds=0,1", "--seeds [0,1]"])
@pytest.mark.parametrize("program", ["compare", "methods"])
def test_lists_are_written_with_spaces_or_commas_in_both_programs(recipe: ModuleType, program: str, words: str) -> None:
    main, out = importlib.import_module(program).main, ["--out", "o"]
    for methods in (["fedavg", "fedprox"], ["fedavg,fedprox"], ["fedavg,", "fedprox"]):
        values = values_of(main, ["--methods", *methods, *words.split(), *out])
        assert (values["methods"], values["seeds"]) == (["fedavg", "fedprox"], [0, 1])


@pytest.mark.parametrize("text", ["clip_norm", "clip_norm=", "=10"])
def test_a_hyperparameter_has_a_name_and_a_value(recipe: ModuleType, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`--set` must be like clip_norm=10, but is {text!r}; give"):
        call_program(recipe.main, ["--out", "unused", "--set", text])


def test_a_file_in_the_place_of_the_folder_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigurationError, match="`--out` must be a folder that can be written"):
        compare(recipe, tmp_path / "out", "fedavg")


def test_hyperparameters_of_all_methods(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--set", "clip_norm=1e1", "--set", "stages=[[1, 0.1, 0.9, 0.5]]", "--lr", "0.1", "--seeds", "0"]
    (row,) = compare(recipe, tmp_path, "fedgm", *flags)
    assert (row["tuned"], row["grid"]) == ("lr 0.1, clip_norm 10.0, stages [[1, 0.1, 0.9, 0.5]]", "")
    monkeypatch.delattr(FederatedTrainer, "fit")  # it is kept
    assert compare(recipe, tmp_path, "fedgm", *flags) == [row]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigurationError("mistaken"), 2, "methods: error: mistaken\n"),
        (KeyboardInterrupt(), 130, "methods: stopped; the same command goes on.\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "methods: stopped; the same command goes on.\n"),
    ],
)
def test_how_the_program_ends(
    recipe: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FederatedTrainer, "fit", fail)
    monkeypatch.setattr(sys, "argv", ["methods", *FLAGS, "--methods", "fedavg", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "methods.py"), run_name="__main__")
    assert (end.value.code, capsys.readouterr().err) == (status, words)
