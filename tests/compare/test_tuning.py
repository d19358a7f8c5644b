"""Points of a grid are tried on the first seed, and the best one that diverges on no seed is run on all."""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_comparison import METHODS, ROUNDS, data, logged, numbers, options, run, task, without_clock

from fedlightning import Callback, ConfigurationError, FedAvg, FedProx
from fedlightning.compare import Outcome, Progress, Table, Tuned, compare
from fedlightning.methods import FedAdam

LRS = (0.01, 0.5, 0.05)


def trials(root: Path, rounds: int = 2) -> dict[str, list[float]]:
    """The accuracies of what was tried, by the folder's name."""
    folders = (root / f"tuning_{rounds}").glob("*/seed_0")
    rows = {folder.parent.name: logged(folder) for folder in folders}
    return {
        name: [float(row["test/accuracy"]) for row in found if row["test/accuracy"]] for name, found in rows.items()
    }


class Late(FedAvg):
    """Diverges at a high rate in the fourth round, and at a very high one in the first."""

    def direction(self, local: Any, grad: Any, client: Any) -> Any:
        diverges = self.lr >= 1 or (self.lr > 0.3 and client.round >= 3)
        return grad(local.w) * (float("inf") if diverges else 1.0)


@pytest.mark.quick
def test_the_best_point_is_run_on_all_seeds(tmp_path: Path) -> None:
    told: list[Outcome] = []
    changed = {"tune": {"lr": LRS}, "tune_rounds": 2, "trainer": {"evaluate_every": 1}, "on_run_end": told.append}
    table = run(tmp_path, last=2, **changed)
    tried = trials(tmp_path)
    assert set(tried) == {f"{name}_lr={lr}" for name in METHODS for lr in LRS}
    for name in METHODS:
        best = max(LRS, key=lambda lr: statistics.mean(tried[f"{name}_lr={lr}"][-2:]))
        assert [run.folder for run in table.of(name)] == [
            tmp_path / f"{name}_lr={best}" / f"seed_{seed}" for seed in (0, 1)
        ]
        assert table.tuned[name] == Tuned({"lr": best}, {"lr": LRS})
        assert [len(curve) for key, curve in tried.items() if key.startswith(name)] == [3, 3, 3]
    assert len(set(tmp_path.glob("*_lr=*/seed_*"))) == 4
    assert sum(outcome.name.endswith("(tried)") for outcome in told) == 6
    assert table.tuning == "Tuned on seed 0 in 2 rounds by test/accuracy."
    alone = run(tmp_path / "alone", {"fedavg": FedAvg(lr=table.tuned["fedavg"].values["lr"])}, last=2, **changed)
    assert [r.curve for r in alone.outcomes] == [r.curve for r in table.of("fedavg")]


def test_the_table_says_what_was_tuned_and_from_which_grid(tmp_path: Path) -> None:
    methods = {"fedadam": FedAdam(), "fedavg": FedAvg(lr=0.5)}
    tune = {"fedadam": {"lr": (0.5, 0.1), "server_lr": (0.1,)}}
    table = run(tmp_path, methods, tune=tune, tune_rounds=1, seeds=(0,))
    (adam, avg) = table.rows()
    assert (adam["tuned"].partition(", ")[2], adam["from"]) == ("server_lr 0.1", "lr 0.5, 0.1")
    assert (avg["tuned"], avg["from"]) == ("", "")
    assert table.markdown().startswith("| method | tuned | from | final accuracy % |")
    assert str(table).splitlines()[0].split()[:3] == ["method", "tuned", "from"]
    assert not list(tmp_path.glob("tuning_1/fedavg*"))
    assert (tmp_path / "fedavg" / "seed_0").is_dir()
    table.save(tmp_path, "About it.")
    assert (tmp_path / "table.md").read_text().startswith("About it.\n\n| method | tuned |")


def test_where_a_seed_diverges_the_next_best_is_taken(tmp_path: Path) -> None:
    tune = {"lr": (0.01, 0.5, 2.0)}
    table = run(tmp_path, {"late": Late()}, tune=tune, tune_rounds=2, trainer={"evaluate_every": 1})
    tried = trials(tmp_path)
    assert tried["late_lr=0.5"][-1] > tried["late_lr=0.01"][-1]
    assert len(tried["late_lr=2.0"]) == 1  # it diverged in the first round
    assert (tmp_path / "late_lr=0.5" / "seed_0").is_dir()
    assert table.tuned["late"].values == {"lr": 0.01}
    assert table.rows()[0]["diverged"] == 0
    assert not (tmp_path / "late_lr=2.0").exists()


def test_where_every_point_diverges_the_best_is_shown_as_that(tmp_path: Path) -> None:
    table = run(tmp_path, {"late": Late()}, tune={"lr": (0.6, 0.5)}, tune_rounds=2, seeds=(0,))
    assert table.rows()[0]["diverged"] == 1
    assert len(list(tmp_path.glob("late_lr=*"))) == 2
    first = max(trials(tmp_path).items(), key=lambda item: item[1][-1])[0]
    assert f"late_lr={table.tuned['late'].values['lr']}" == first
    both = run(tmp_path / "both", {"late": Late()}, tune={"lr": (1.0, 2.0)}, tune_rounds=2, seeds=(0,))
    assert both.rows()[0]["diverged"] == 1


def test_whole_runs_that_are_tried_count(tmp_path: Path) -> None:
    """Without `tune_rounds`, or with as many as the run has, nothing is run twice."""
    for place, rounds in (("none", None), ("same", ROUNDS)):
        progress: list[Progress] = []
        given = {"tune": {"lr": LRS}, "tune_rounds": rounds, "on_progress": progress.append}
        table = run(tmp_path / place, {"fedavg": METHODS["fedavg"]}, **given)
        assert not list((tmp_path / place).glob("tuning_*"))
        assert len(list((tmp_path / place).glob("*/seed_0"))) == 3
        assert len(list((tmp_path / place).glob("*/seed_1"))) == 1
        assert len(progress) == 4 * 4
        assert {one.rounds for one in progress} == {ROUNDS}
        assert table.tuning == "Tuned on seed 0 in whole runs by test/accuracy."


def test_a_validation_split_chooses(tmp_path: Path) -> None:
    given = options(tmp_path, seeds=(0,), tune={"lr": LRS}, tune_rounds=2, trainer={"evaluate_every": 1})
    table = compare({"fedavg": FedAvg()}, task, partial(data, validation=True), **given)
    scores = {
        folder.parent.name: float(logged(folder)[-1]["val/accuracy"])
        for folder in (tmp_path / "tuning_2").glob("*/seed_0")
    }
    assert f"fedavg_lr={table.tuned['fedavg'].values['lr']}" == max(scores, key=lambda name: scores[name])
    assert table.tuning == "Tuned on seed 0 in 2 rounds by val/accuracy."
    (outcome,) = table.outcomes
    assert list(outcome.curve.values()) == [float(row["test/accuracy"]) for row in logged(outcome.folder)]
    losses = run(
        tmp_path / "loss", {"fedavg": FedAvg()}, tune={"lr": LRS}, tune_rounds=2, metric="test/loss", mode="min"
    )
    tried = {f.parent.name: float(logged(f)[-1]["test/loss"]) for f in (tmp_path / "loss/tuning_2").glob("*/seed_0")}
    assert f"fedavg_lr={losses.tuned['fedavg'].values['lr']}" == min(tried, key=lambda name: tried[name])


class Killed(BaseException):
    """As sudden as Ctrl-C."""


class Kill(Callback):
    """Ends a run in its first round."""

    def on_round_start(self, trainer: Any, round: Any) -> None:
        raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return run(tmp_path_factory.mktemp("whole"), tune={"lr": LRS}, tune_rounds=2)


@pytest.mark.parametrize("killed", [("fedavg lr=0.5 (tried)", 0), ("scaffold lr=0.05 (tried)", 0), (None, 1)])
def test_a_comparison_that_tunes_goes_on_to_the_same_table(whole: Table, tmp_path: Path, killed: Any) -> None:
    def callbacks(name: str, seed: int) -> list[Callback]:
        hit = seed == 1 if killed[0] is None else (name, seed) == killed
        return [Kill()] if hit else []

    changed: dict[str, Any] = {"tune": {"lr": LRS}, "tune_rounds": 2}
    with pytest.raises(Killed):
        run(tmp_path, callbacks=callbacks, **changed)
    assert numbers(run(tmp_path, **changed)) == numbers(whole)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = run(tmp_path, **changed)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files
    assert again.rows() == run(tmp_path, **changed).rows()
    for one, other in zip(again.outcomes, whole.outcomes, strict=True):
        assert without_clock(one.folder) == without_clock(other.folder)


def test_a_grid_may_grow(whole: Table, tmp_path: Path) -> None:
    run(tmp_path, tune={"lr": LRS[:2]}, tune_rounds=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning_2").rglob("run.json")}
    assert len(before) == 4
    assert numbers(run(tmp_path, tune={"lr": LRS}, tune_rounds=2)) == numbers(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_which_grid_is_whose(tmp_path: Path) -> None:
    methods = {"fedavg": FedAvg(), "prox": FedProx(mu=1.0), "other": FedProx(mu=2.0), "fedprox": FedProx(mu=3.0)}

    def grids(tune: Any) -> dict[str, Any]:
        table = run(tmp_path, methods, tune=tune, trainer={"max_rounds": 1}, seeds=(0,))
        return {name: dict(tuned.grid) for name, tuned in table.tuned.items()}

    assert grids({"lr": (0.1,), "mu": [0.5]}) == {
        "fedavg": {"lr": (0.1,)},
        **{key: {"lr": (0.1,), "mu": (0.5,)} for key in ("prox", "other", "fedprox")},
    }
    assert grids({"lr": (0.1,), "prox": {"lr": (0.2,)}, "fedprox": {"mu": (0.5,)}}) == {
        **{key: {"lr": (0.1,)} for key in ("fedavg", "other")},
        "prox": {"lr": (0.2,)},
        "fedprox": {"lr": (0.1,), "mu": (0.5,)},
    }
    del methods["fedprox"]
    assert grids({"fedprox": {"mu": (0.5,)}}) == {key: {"mu": (0.5,)} for key in ("prox", "other")}


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"lrr": (0.1,)}, r"`tune` of a comparison must name a field of a method that it has, but names 'lrr'. Did you mean 'lr'"),
        ({"fedprox": {"mu": (1,)}}, r"must name a method that it has, but names 'fedprox'"),
        ({"fedavg": {"mu": (1,)}}, r"must name a field of fedavg that it has, but names 'mu'"),
        ({"lr": 0.1}, r"must hold different values for 'lr', such as \(0.01, 0.1\), but holds 0.1"),
        ({"lr": "0.1"}, "must hold different values"), ({"lr": ()}, "must hold different values"),
        ({"lr": (0.1, 0.1)}, "must hold different values"),
        ({"lr": (0.1, -1.0)}, r"`lr` of FedAvg must be in \(0, inf\), but is -1.0"),
        ({"lr": ("a", "b")}, "`lr` of FedAvg must be"),
    ],
)  # fmt: skip
def test_mistakes_in_a_grid(tmp_path: Path, tune: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        run(tmp_path, {"fedavg": FedAvg()}, tune=tune, tune_rounds=2)
    assert list(tmp_path.iterdir()) == []


def test_a_trainers_function_must_take_the_rounds_that_points_are_tried_in(tmp_path: Path) -> None:
    from fedlightning import FederatedTrainer

    def make(seed: int, logger: Any, callbacks: Any) -> FederatedTrainer:
        return FederatedTrainer(2, seed=seed, logger=logger, callbacks=callbacks)

    given = {"root": tmp_path, "trainer": make, "tune": {"lr": (0.1, 0.2)}}
    with pytest.raises(ConfigurationError, match="takes seed, logger, callbacks, max_rounds, but the function make"):
        compare({"fedavg": FedAvg()}, task, data, **given, tune_rounds=1)
    table = compare({"fedavg": FedAvg()}, task, data, **given, seeds=(0,))
    assert table.tuning == "Tuned on seed 0 in whole runs by test/accuracy."
