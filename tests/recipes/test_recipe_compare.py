"""The program that compares methods, tunes them, and sweeps what they depend on."""

import csv
import json
import math
import os
import runpy
import signal
import statistics
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from recipe_runner import RECIPES, load, run

from fedlightning import (
    Callback,
    Classification,
    ConfigurationError,
    Dissimilarity,
    FedAvg,
    FederatedTrainer,
    SlotStrategy,
)
from fedlightning.cli.recipe import call_program, values_of
from fedlightning.compare import figures
from fedlightning.compare.settings import data_of, task_of, values_of_all
from fedlightning.data import Batching
from fedlightning.datasets import FakeImages, Synthetic
from fedlightning.loggers import run_loggers
from fedlightning.methods import FedAdam
from fedlightning.models import LogisticRegression, build_model

pytest.importorskip("matplotlib", reason="drawing needs the extra `figures`")

TINY = ["--rounds", "2", "--local-steps", "2", "--clients-per-round", "3", "--evaluate-every", "1", "--slots", "1"]
FAKE = ["--dataset", "fashion_mnist", "--data", "fake", "--model", "logistic", "--partition", "A0d10C20", *TINY]
DATA = os.environ.get("FEDLIGHTNING_DATA")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    return load("compare")


def options(recipe: ModuleType, *words: str) -> SimpleNamespace:
    return SimpleNamespace(**values_of(recipe.main, words))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read(path)]


# -- a comparison --------------------------------------------------------------------------------------------------
def test_what_a_comparison_leaves(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["fedavg", "fedadam server_lr=0.05", "fedavg"]
    paths = call_program(
        recipe.main, ["--methods", *methods, "--seeds", "0", "3", *TINY, "--target", "0.01", "--out", "o"]
    )
    assert [str(path) for path in paths] == [
        f"o/{n}" for n in ("table.txt", "table.csv", "table.md", "curves.pdf", "curves.png")
    ]
    assert all(path.stat().st_size > 100 for path in paths)
    rows = read(Path("o/table.csv"))
    assert [row["method"] for row in rows] == ["fedavg", "fedadam server_lr=0.05", "fedavg #2"]
    for row, folder in zip(rows, ("fedavg", "fedadam_server_lr=0.05", "fedavg_2"), strict=True):
        logs = [read(Path("o/runs", folder, f"seed_{seed}", "metrics.csv")) for seed in (0, 3)]
        assert [len(log) for log in logs] == [3, 3]
        assert float(row["final"]) == pytest.approx(sum(float(log[-1]["test/accuracy"]) for log in logs) / 2, abs=1e-15)
    hyperparameters = json.loads(Path("o/runs/fedadam_server_lr=0.05/seed_0/run.json").read_text())["run"][
        "hyperparameters"
    ]
    assert (hyperparameters["server_lr"], hyperparameters["lr"]) == (0.05, 0.01)
    shown = capsys.readouterr().out
    assert Path("o/table.txt").read_text() in shown
    assert shown.count("2 rounds") == 6
    before = without_seconds(Path("o/table.csv"))
    call_program(recipe.main, ["--methods", *methods, "--seeds", "0", "3", *TINY, "--target", "0.01", "--out", "o"])
    assert without_seconds(Path("o/table.csv")) == before


def test_a_program_that_was_stopped_goes_on(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--methods", "fedavg", "scaffold", "--seeds", "0", "1", *TINY, "--rounds", "4"]
    call_program(recipe.main, [*command, "--out", "whole"])
    usual = recipe.Board.goes_on

    def interrupt(self: Any, title: str, run: Any) -> None:
        usual(self, title, run)
        if (run.name, run.seed, run.round) == ("scaffold", 0, 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe.Board, "goes_on", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call_program(recipe.main, [*command, "--out", "cut", "--checkpoint-every", "2"])
    assert not Path("cut/table.csv").exists()
    call_program(recipe.main, [*command, "--out", "cut", "--checkpoint-every", "2"])
    assert without_seconds(Path("cut/table.csv")) == without_seconds(Path("whole/table.csv"))
    pieces = json.loads(Path("cut/runs/scaffold/seed_0/run.json").read_text())["pieces"]
    assert [piece["from"] for piece in pieces] == [0, 2]


def plain(values: dict[str, float], seed: int, rounds: int) -> list[float]:
    """The accuracies of FedAdam on synthetic (1, 1), trained without the program."""

    class Keep(Callback):
        def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Any) -> None:
            found.append(metrics["test/accuracy"])

    found: list[float] = []
    trainer = FederatedTrainer(rounds, 10, SlotStrategy(1), callbacks=[Keep()], logger=False, seed=seed)
    task = Classification(LogisticRegression.glorot(60, 10, seed=seed), 10)
    trainer.fit(FedAdam(**values), task, Synthetic(1.0, 1.0, seed=seed, batching=Batching(10, steps=20)))
    return found


def test_the_tuned_method_is_that_of_a_plain_loop(recipe: ModuleType, tmp_path: Path) -> None:
    words = ["--methods", "fedavg", "fedadam", "--tune", "usual", "--tune-rounds", "2", "--rounds", "4", "--last", "3"]
    words += ["--seeds", "3", "5", "--sampler", "uniform", "--slots", "1", "--data-dir", "elsewhere", "--out", "o"]
    call_program(recipe.main, words)
    points = [{"lr": lr, "server_lr": own} for lr in (0.03, 0.1) for own in (0.03, 0.1, 0.3)]
    best = max(points, key=lambda values: statistics.mean(plain(values, 3, 2)[-3:]))
    curves = [plain(best, seed, 4) for seed in (3, 5)]
    _, row = read(Path("o/table.csv"))
    assert (row["method"], row["from"]) == ("fedadam", "lr 0.03, 0.1; server_lr 0.03, 0.1, 0.3")
    assert row["tuned"] == f"lr {best['lr']}, server_lr {best['server_lr']}"
    final = [statistics.mean(curve[-3:]) for curve in curves]
    assert float(row["final"]) == pytest.approx(statistics.mean(final), abs=1e-12)
    assert float(row["final_std"]) == pytest.approx(statistics.stdev(final), abs=1e-12)
    assert float(row["best"]) == pytest.approx(statistics.mean(map(max, curves)), abs=1e-12)
    table = Path("o/table.md").read_text()
    about = "Synthetic, α = 1, β = 1; 10 clients with 20 local steps of 10 examples a round. Tuned on seed 3 in 2 rounds by test/accuracy."
    command = "--methods fedavg fedadam --seeds 3 5 --tune usual --tune-rounds 2 --rounds 4 --last 3 --sampler uniform --slots 1"
    assert table.startswith(
        f"{about} Made by\n\n    python recipes/compare.py {command} --out o\n\n| method | tuned | from |"
    )
    assert f"| {100 * float(row['final']):.2f} ± " in table
    assert Path("o/runs/tuning_2/fedadam_lr=0.1_server_lr=0.3/seed_3/run.json").is_file()


def test_two_jobs_sweep_to_the_tables_of_one(recipe: ModuleType, tmp_path: Path) -> None:
    words = ["--methods", "fedavg", "fedprox", "--seeds", "0", *TINY, "--sweep", "mu=0.5", "2", "runner=loop", "traced"]
    call_program(recipe.main, [*words, "--out", "one"])
    paths = call_program(recipe.main, [*words, "--out", "two", "--jobs", "2"])
    assert without_seconds(Path("two/sweep.csv")) == without_seconds(Path("one/sweep.csv"))
    assert [str(path) for path in paths[:3]] == [
        f"two/mu=0.5_runner=loop/table.{kind}" for kind in ("txt", "csv", "md")
    ]
    run = json.loads(Path("two/runs/runner=traced/fedprox_mu=2/seed_0/run.json").read_text())
    assert run["pieces"][0]["runner"] == "traced"
    assert [row["runner"] for row in read(Path("two/sweep.csv"))] == ["loop", "loop", "traced", "traced"] * 2


@pytest.mark.parametrize("words", ["--seeds 0 1", "--seeds 0,1", "--seeds=0,1", "--seeds [0,1]"])
def test_lists_are_written_with_spaces_or_commas(recipe: ModuleType, words: str) -> None:
    for methods in (["fedavg", "fedprox"], ["fedavg,fedprox"], ["fedavg,", "fedprox"]):
        values = values_of(recipe.main, ["--methods", *methods, *words.split()])
        assert (values["methods"], values["seeds"]) == (["fedavg", "fedprox"], [0, 1])


def test_the_folder_names_the_settings(recipe: ModuleType) -> None:
    def folder(*more: str) -> str:
        given = options(recipe, "--methods", "fedavg", *more)
        return str(recipe.default_folder(given, values_of_all(given)))

    assert folder() == "logs/compare/synthetic/logistic_1_1_T50_m10_K20_B10"
    assert folder(*FAKE) == "logs/compare/fashion_mnist/fake_A0d10C20_logistic_T2_m3_K2_B32"
    assert folder("--local-epochs", "2").endswith("logistic_1_1_T50_m10_E2_B10")
    assert folder("--clients-per-round", "0.5", "--lr", "0.3", "--data-beta", "0.5").endswith(
        "logistic_1_0.5_T50_m0.5_K20_B10_lr0.3"
    )
    assert folder("--sampler", "uniform").endswith("_uniform")
    assert folder("--validation", "0.1", *FAKE).endswith("_B32_V0.1")


def test_synthetic_is_that_of_its_own_recipe(recipe: ModuleType) -> None:
    """The same learning rate, and the same clients in each round."""
    work = ["--rounds", "2", "--local-steps", "5"]
    call_program(recipe.main, ["--methods", "fedavg", "--seeds", "0", *work, "--out", "o"])
    run("synthetic", *work, "--runner", "loop")
    own = read(Path("logs/synthetic/synthetic_1_1/fedavg/version_0/metrics.csv"))
    compared = read(Path("o/runs/fedavg/seed_0/metrics.csv"))
    for name in ("train/loss", "test/loss", "test/accuracy"):
        assert [row[name] for row in compared] == [row[name] for row in own]


def test_the_figure_and_the_table_say_what_a_round_is(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--methods", "fedavg", "--seeds", "0", *TINY, "--clients-per-round", "0.1", "--out", "o"]
    call_program(recipe.main, words)
    assert "a round is 10% of the clients with 2 local steps of 10 examples.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "fedavgn"], "Did you mean 'fedavg'"),
        (["--methods", "fedprox muu=1"], "Did you mean 'mu'"),
        (["--methods", "fedprox mu"], "Did you mean 'mu'"),
        (["--methods", "fedprox mu=-1"], r"`mu` of FedProx must be in \[0, inf\)"),
        (["--methods", "fedprox mu=much"], "`mu` of FedProx must be a number, but is 'much'"),
        (["--methods", "fedprox mu=null"], "`mu` of FedProx must be a number, but is None"),
        (
            ["--methods", "scaffnew allow_partial=null"],
            "`allow_partial` of Scaffnew must be true or false, but is None",
        ),
        (["--methods", "fedprox", "--sweep", "mu=null"], "`mu` of FedProx must be a number, but is None"),
        (["--methods", "fedprox mu="], "'mu' is no field of fedprox with a value"),
        (["--methods", "fedprox mu=["], r"`mu` of FedProx must be a number, but is '\['"),
        (["--methods", "fedgm stages=5"], "`stages` of FedGM must be a tuple"),
        (["--methods", ""], "`--methods` must be words, but is ''; give another"),
        ([], "`--methods` must be given: words"),
        (
            ["--methods", "fedavg", "--seeds", "a"],
            "`--seeds` must be whole numbers, but is 'a'; give e.g. `--seeds 0 1 2`",
        ),
        (["--methods", "fedavg", "--sed", "1"], "there is no flag --sed here; did you mean --seeds"),
        (["--methods", "fedavg", "--dataset", "cifar"], "did you mean `--dataset cifar10`"),
        (["--methods", "fedavg", "--rounds", "0"], "`max_rounds`"),
        (["--methods", "fedavg", "--clients-per-round", "31"], "`clients_per_round` must be in 1…30"),
        (["--methods", "fedavg", "--batch-size", "0"], "`size` of Batching must be at least 1"),
        (["--methods", "fedavg", "--local-epochs", "2"], "Either `epochs` or `steps`"),
        (["--methods", "fedavg", "--slots", "moon/0"], "moon"),
        (["--methods", "fedavg", "--runner", "maybe"], "`--runner` must be auto, loop, "),
        (["--methods", "fedavg", "--seeds", "1", "1"], "none twice"),
        (["--methods", "fedavg", "--seeds", "0", "-1"], r"`--seeds` must hold numbers from 0 .* but is \[0, -1\]"),
        (["--methods", "fedavg", "--partition", "A0d10C10"], "synthetic has none"),
        (["--methods", "fedavg", "--validation", "0.1"], "synthetic has none"),
        (["--methods", "fedavg", *FAKE[:4], "--validation", "1"], r"`validation` of FakeImages must be in \[0, 1\)"),
        (["--methods", "fedavg", "--jobs", "0"], "`jobs` of run_together must be at least 1, but is 0"),
        (["--methods", "fedavg", "--tune-rounds", "0"], "`tune_rounds` of Comparison must be at least 1, but is 0"),
        (["--methods", "fedavg", "--last", "0"], "`last` of Comparison must be at least 1, but is 0"),
        (["--methods", ","], "`--methods` must be words, but is ','"),
        (["--methods", "fedavg", "--seeds", ","], "`--seeds` must be whole numbers, but is ','; give e.g."),
        (
            ["--methods", "fedavg", "--tune", "foo=1"],
            "`--tune` must name a field of a chosen method, but is 'foo=1': there is none",
        ),
        (["--methods", "fedavg", "--tune", "mu=0,1"], "but is 'mu=0,1': no chosen method has that field"),
        (
            ["--methods", "fedavg", "--tune", "fedprox:mu=1"],
            "`--tune fedprox:mu=1` must name one of `--methods`, but has 'fedprox'",
        ),
        (
            ["--methods", "fedavg", "fedprox", "--tune", "fedavg:mu=1"],
            "but is 'fedavg:mu=1': no chosen method has that field",
        ),
        (["--methods", "fedavg", "--tune", "lr=0.1,0.1"], "each value once"),
        (["--methods", "fedavg", "--tune", "lr="], "`--tune` must be like lr=0.01,0.1, each value once, but is 'lr='"),
        (["--methods", "fedavg", "--tune", "0.1"], "`--tune` must be like lr=0.01,0.1, each value once, but is '0.1'"),
        (["--methods", "fedavg", "--tune", "lr=0.1,-1"], r"`lr` of FedAvg must be in \(0, inf\)"),
        (["--methods", "fedprox", "--tune", "mu=null,1"], "`mu` of FedProx must be a number, but is None"),
        (["--methods", "fedavg", "--tune", "lr=["], r"`lr` of FedAvg must be a number, but is '\['"),
        (
            ["--methods", "fedavg lr=1", "--tune", "lr=0.1,0.2"],
            "must be the only one to set lr, but .* makes it 'fedavg lr=1'",
        ),
        (["--methods", "fedavg", "--sweep", "lr=1", "--tune", "lr=0.1,0.2"], "makes it 'fedavg lr=1'"),
        (
            ["--methods", "fedavg", *FAKE[2:], "--dataset", "cifar10", "--tune", "usual"],
            "`--tune usual` must be used with",
        ),
        (["--methods", "fedavg", "--sweep", "runner=loop,fast"], "`runner` of SlotStrategy"),
        (["--methods", "fedavg", "--data", "fake"], "synthetic has none"),
        (["--methods", "fedavg", "--model", "lenett", *FAKE[:4]], "Did you mean 'lenet'"),
        (["--methods", "fedavg", *FAKE[:6], "--partition", "A10C10"], "name of a partition"),
        (["--methods", "fedavg", *FAKE[:6], "--data-alpha", "1"], "fashion_mnist has none"),
        (["--methods", "fedavg", "--sweep", "mu=0,1"], "no chosen method has that field"),
        (["--methods", "fedavg", "--sweep", "roundz=1,2"], "Did you mean 'rounds'"),
        (["--methods", "fedavg", "--sweep", "lr=0.1,0.1"], "each value once"),
        (["--methods", "fedavg", "--sweep", "lr"], "each value once"),
        (["--methods", "fedavg", "--sweep", "lr=0.1", "--sweep", "lr=1"], "swept twice"),
        (["--methods", "fedavg lr=1", "--sweep", "lr=0.1"], "`--methods` has 'fedavg lr=1'"),
        *(
            (
                ["--methods", "fedavg", "--sweep", f"{sweep}"],
                f"must hold whole numbers.*but has '{sweep.split('=')[1]}'",
            )
            for sweep in (
                "rounds=a",
                "rounds=1.5",
                "batch_size=a",
                "batch_size=2.5",
                "local_steps=1.5",
                "local-epochs=x",
                "clients_per_round=a",
            )
        ),
        (["--methods", "fedavg", "--sweep", "data_alpha=a"], "must hold numbers, but has 'a'"),
        (["--methods", "fedavg", *FAKE[:6], "--sweep", "partition=5"], "name of a partition"),
        (["--methods", "fedavg", *FAKE[:6], "--sweep", "model=5"], "`model` must be a known name, but is '5'"),
        (["--methods", "fedavg", "--sweep", "lr=0.1,-1"], r"`lr` of FedAvg must be in \(0, inf\)"),
        (["--methods", "fedavg", "--sweep", "alpha=1,2"], "such as A0d10C100"),
        (["--methods", "fedavg", "--sweep", "partition=IIDC5"], "synthetic has none"),
        (["--methods", "fedavg", "--sweep", "clients_per_round=3,31"], "`clients_per_round` must be in 1…30"),
        (["--methods", "fedavg", *FAKE[:6], "--sweep", "alpha=0.1,0"], "`alpha` of Dirichlet"),
        (["--methods", "fedavg", *FAKE[:6], "--partition", "IIDC9", "--sweep", "alpha=1"], "is 'IIDC9'"),
        (["--methods", "fedavg", "scaffnew"], "scaffnew|Scaffnew"),
        (["--methods", "adaptivefedprox", *FAKE], "`evaluate_on`"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    recipe: ModuleType, tmp_path: Path, flags: list[str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        call_program(recipe.main, [*TINY, *flags])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file", "flags"), [("o", ["--out", "o"]), ("logs", []), ("o/runs", ["--out", "o"])])
def test_a_file_in_the_place_of_the_folder_is_refused(
    recipe: ModuleType, tmp_path: Path, file: str, flags: list[str]
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(ConfigurationError, match=r"`--out` must be a folder that can be written.*Not a directory"):
        call_program(recipe.main, [*TINY, "--methods", "fedavg", *flags])
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_runner_is_named_as_in_the_recipes(recipe: ModuleType) -> None:
    assert options(recipe, "--methods", "fedavg", "--runner", "traced").runner == "traced"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigurationError("mistaken"), 2, "compare: error: mistaken\n"),
        (KeyboardInterrupt(), 130, "compare: stopped; the same command goes on.\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "compare: stopped; the same command goes on.\n"),
    ],
)
def test_how_the_program_ends(
    recipe: ModuleType,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    caplog.set_level("INFO", "lightning.pytorch")  # the program sets it, and this puts it back
    monkeypatch.setattr(FederatedTrainer, "fit", fail)
    monkeypatch.setattr(sys, "argv", ["compare", "--methods", "fedavg", *TINY, "--out", "o"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "compare.py"), run_name="__main__")
    assert (end.value.code, capsys.readouterr().err.startswith(words)) == (status, True)


# -- sweeps --------------------------------------------------------------------------------------------------------
def test_a_sweep_runs_each_run_once(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--methods", "fedavg", "fedprox", "--seeds", "0", *FAKE, "--out", "o"]
    sweep = ["--sweep", "alpha=0.1,1", "--sweep", "mu=0.5,2", "--sweep", "batch_size=8"]
    sheets: list[Any] = []
    write = recipe.write_figure
    monkeypatch.setattr(
        recipe, "write_figure", lambda figure, stem: sheets.append((stem, figure)) or write(figure, stem)
    )
    call_program(recipe.main, [*command, *sweep])
    runs = sorted(str(path.relative_to("o/runs")) for path in Path("o/runs").glob("*/*/*"))
    assert runs == [
        f"alpha={alpha}_batch_size=8/{method}/seed_0"
        for alpha in (0.1, 1)
        for method in ("fedavg", "fedprox_mu=0.5", "fedprox_mu=2")
    ]
    run = json.loads(Path("o/runs/alpha=1_batch_size=8/fedprox_mu=2/seed_0/run.json").read_text())["run"]
    assert (run["hyperparameters"]["mu"], run["batches"][0]) == (2, 8)
    rows = read(Path("o/sweep.csv"))
    assert [(row["alpha"], row["mu"], row["method"]) for row in rows] == [
        (alpha, mu, method)
        for alpha in ("0.1", "1")
        for mu in ("0.5", "2")
        for method in ("fedavg", f"fedprox mu={mu}")
    ]
    for row in rows:
        table = read(Path("o", f"alpha={row['alpha']}_mu={row['mu']}_batch_size=8", "table.csv"))
        (same,) = (other for other in table if other["method"] == row["method"])
        assert row["final"] == same["final"]
    stem, figure = sheets[-1]
    assert stem == Path("o/heterogeneity")
    panels = figure.get_axes()
    assert [axes.get_xlabel() for axes in panels] == list(figures.AXES.values())
    for axes in panels:
        assert len(axes.containers) == 3  # fedavg once, fedprox for both mu
        assert [len(line[0].get_xdata()) for line in axes.containers] == [2, 2, 2]
    assert list(panels[0].containers[0][0].get_xdata()) == [0.1, 1.0]
    drawn = panels[0].containers[2][0].get_ydata()
    assert list(drawn) == pytest.approx([100 * float(row["final"]) for row in rows if row["method"] == "fedprox mu=2"])


def test_heterogeneity_is_what_the_run_itself_would_measure(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--methods", "fedavg", "--seeds", "0", "4", *FAKE, "--sweep", "alpha=0.1", "--out", "o"]
    call_program(recipe.main, command)
    (row,) = read(Path("o/sweep.csv"))
    expected: dict[str, list[float]] = {"B": [], "variance": [], "classes": []}
    for seed in (0, 4):
        data = FakeImages("A0d10C20", shape=(1, 28, 28), classes=10, seed=seed, batching=Batching(32, steps=2))
        task = Classification(build_model("logistic", (1, 28, 28), 10, seed=seed), 10)
        trainer = FederatedTrainer(1, 3, callbacks=[Dissimilarity()], logger=run_loggers(tmp_path / "other"))
        trainer.fit(FedAvg(), task, data)
        (logged, *_) = read(trainer.log_dir / "metrics.csv")
        expected["B"].append(float(logged["dissimilarity/B"]))
        expected["variance"].append(float(logged["dissimilarity/variance"]))
        owned = [data.train.targets[data.clients.client(k)].tolist() for k in range(20)]
        shares = [[labels.count(c) / len(labels) for c in set(labels)] for labels in owned]
        expected["classes"].append(sum(math.exp(-sum(p * math.log(p) for p in client)) for client in shares) / 20)
    for key, values in expected.items():
        assert float(row[key]) == pytest.approx(sum(values) / 2, rel=1e-6)
    monkeypatch.delattr(recipe, "dissimilarity_at")  # it is kept
    call_program(recipe.main, command)


def test_a_sweep_without_alpha_measures_nothing(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(recipe, "dissimilarity_at")
    paths = call_program(
        recipe.main, ["--methods", "fedavg", "--seeds", "0", *TINY, "--sweep", "lr=0.1,0.2", "--out", "o"]
    )
    assert [path.name for path in paths[-2:]] == ["sweep.csv", "sweep.md"]
    assert [row["lr"] for row in read(Path("o/sweep.csv"))] == ["0.1", "0.2"]
    assert sorted(path.name for path in Path("o/runs").iterdir()) == ["fedavg_lr=0.1", "fedavg_lr=0.2"]


# -- data sets -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "fashion_mnist"])
def test_every_set_of_images_has_a_made_up_twin(recipe: ModuleType, dataset: str) -> None:
    values = values_of_all(options(recipe, "--methods", "fedavg", "--dataset", dataset, "--data", "fake"))
    data = data_of(dataset, values, 0)
    assert isinstance(data, FakeImages)
    assert task_of(dataset, values, 0).classes == data.classes == {"cifar100": 100}.get(dataset, 10)


@pytest.mark.parametrize(
    ("dataset", "files"), [("cifar100", "cifar-100-python"), ("fashion_mnist", "FashionMNIST"), ("mnist", "MNIST")]
)
def test_real_data(recipe: ModuleType, dataset: str, files: str) -> None:
    if DATA is None or not Path(DATA, files).is_dir():
        pytest.skip(f"$FEDLIGHTNING_DATA holds no {files}")
    model = ["--model", "logistic"]
    call_program(
        recipe.main,
        ["--methods", "fedavg", "--seeds", "0", "--dataset", dataset, "--data-dir", DATA, *TINY, *model, "--out", "o"],
    )
    (row,) = read(Path("o/table.csv"))
    assert 0 < float(row["final"]) < 1


def test_shakespeare(recipe: ModuleType) -> None:
    if DATA is None or not Path(DATA, "shakespeare").is_dir():
        pytest.skip("$FEDLIGHTNING_DATA holds no shakespeare")
    command = ["--methods", "fedavg", "--dataset", "shakespeare", "--data-dir", DATA]
    values = values_of_all(options(recipe, *command))
    task, data = task_of("shakespeare", values, 0), data_of("shakespeare", values, 0)
    losses = task.loss(data.batch(data.train, data.clients.client(0)[:4]))
    assert losses.shape == (4,)
    assert (data.batching.steps, data.batching.size) == (20, 10)
