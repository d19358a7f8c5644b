"""Lists of runs: the same table wherever they are stopped, and nothing run twice."""

import csv
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_comparison import METHODS, ROUNDS, Broken, data, diary, logged, numbers, options, run, task, without_clock
from torch import nn

from fedlightning import (
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedProx,
    MethodError,
    ModelCheckpoint,
    TensorData,
)
from fedlightning.compare import Comparison, Outcome, Table, compare, name_methods
from fedlightning.data import IID, Batching, RandomCropFlip
from fedlightning.methods import Scaffnew


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return run(tmp_path_factory.mktemp("whole"))


# -- the numbers ---------------------------------------------------------------------------------------------------
@pytest.mark.quick
def test_the_table_is_what_the_runs_have_logged(whole: Table) -> None:
    assert whole.names == ["fedavg", "scaffold"]
    for row in whole.rows():
        folders = [outcome.folder for outcome in whole.of(row["method"])]
        assert [folder.name for folder in folders] == ["seed_0", "seed_1"]
        evaluated = [[row for row in logged(folder) if row["test/accuracy"]] for folder in folders]
        accuracy = [[float(row["test/accuracy"]) for row in rows] for rows in evaluated]
        assert [[int(row["step"]) for row in rows] for rows in evaluated] == [[0, 2, 4, 6]] * 2
        assert row["final"] == statistics.mean(curve[-1] for curve in accuracy)
        assert row["final_std"] == statistics.stdev(curve[-1] for curve in accuracy)
        assert row["best"] == statistics.mean(max(curve) for curve in accuracy)
        reached = [[2 * i for i, value in enumerate(curve) if value >= 0.5] for curve in accuracy]
        assert row["seeds_at_target"] == sum(map(bool, reached))
        assert row["rounds_to_target"] == statistics.mean(first[0] for first in reached if first)
        up = [sum(float(row["communication/up_bytes"]) for row in logged(folder)[1:]) for folder in folders]
        assert row["up_bytes"] == statistics.mean(up) > 0
        seconds = [sum(p["seconds"] for p in diary(folder)["pieces"]) for folder in folders]
        assert row["seconds"] == pytest.approx(statistics.mean(seconds))
    fedavg, scaffold = whole.rows()
    assert scaffold["up_bytes"] == 2 * fedavg["up_bytes"]
    assert scaffold["down_bytes"] == 2 * fedavg["down_bytes"] == 2 * 3 * ROUNDS * 15 * 4


def test_all_methods_of_a_seed_start_at_one_model(whole: Table) -> None:
    first = {(run.name, run.seed): logged(run.folder)[0]["test/loss"] for run in whole.outcomes}
    assert first["fedavg", 0] == first["scaffold", 0]
    assert first["fedavg", 1] == first["scaffold", 1]
    assert first["fedavg", 0] != first["fedavg", 1]


def test_one_task_and_one_data_set_serve_every_seed(tmp_path: Path) -> None:
    table = compare([FedAvg(lr=0.5)], task(7), data(7), **options(tmp_path))
    zero, one = table.of("fedavg lr=0.5")
    assert zero.curve[0] == one.curve[0]
    assert logged(zero.folder)[3]["train/loss"] != logged(one.folder)[3]["train/loss"]


def outcome(curve: Mapping[int, float], seed: int = 0, failure: str | None = None) -> Outcome:
    return Outcome("a", seed, Path(), curve, max(curve), 2.0, 3e6, 5e6, failure)


def test_final_best_and_rounds_to_the_target() -> None:
    curve = outcome({0: 0.5, 5: 0.9, 10: 0.25, 15: 0.75})
    assert curve.final() == 0.75
    assert curve.final(last=3) == pytest.approx(1.9 / 3)
    assert (curve.best("max"), curve.best("min")) == (0.9, 0.25)
    assert (curve.rounds_to(0.75), curve.rounds_to(0.95), curve.rounds_to(None)) == (5, None, None)
    assert curve.rounds_to(0.5, "min") == 0
    assert curve.rounds_to(0.25, "min") == 10


@pytest.mark.quick
def test_how_the_table_looks() -> None:
    runs = (outcome({0: 0.1, 1: 0.5}, 0), outcome({0: 0.2, 1: 0.7}, 1), outcome({0: 0.2}, 2, "diverged"))
    table = Table(runs, target=0.6)
    (row,) = table.rows()
    assert (row["final"], row["diverged"], row["seeds"], row["seeds_at_target"]) == (0.6, 1, 3, 1)
    text, markdown = str(table).splitlines(), table.markdown().splitlines()
    assert text[0].split() == "method final accuracy % best accuracy % rounds to 60 seconds MB up MB down".split()
    assert "60.00 ± 14.14 (1 of 3 diverged)" in text[1]
    assert "1, never in 2 of 3" in text[1]
    assert markdown[0].startswith("| method | final accuracy % |")
    assert markdown[2].startswith(
        "| a | 60.00 ± 14.14 (1 of 3 diverged) | 60.00 ± 14.14 | 1, never in 2 of 3 | 2 | 3 | 5 |"
    )
    single = Table((outcome({0: 0.25}),), metric="test/loss", mode="min")
    assert single.markdown().splitlines()[2] == "| a | 0.2500 | 0.2500 | 2 | 3 | 5 |"
    assert next(iter(csv.DictReader(single.csv().splitlines())))["final_std"] == ""


def test_saved_tables_can_be_read_back(whole: Table, tmp_path: Path) -> None:
    paths = whole.save(tmp_path / "new")
    assert [path.name for path in paths] == ["table.txt", "table.csv", "table.md"]
    with paths[1].open(newline="") as file:
        assert [float(row["final"]) for row in csv.DictReader(file)] == [row["final"] for row in whole.rows()]
    assert paths[0].read_text() == f"{whole}\n"


# -- going on ------------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """As sudden as Ctrl-C."""


class Kill(Callback):
    """Raises in a hook of a round; `hard` leaves no callback the time to save anything."""

    def __init__(self, hook: str, round: int, hard: bool) -> None:
        self.round, self.hard = round, hard
        setattr(self, hook, self.kill)

    def kill(self, trainer: FederatedTrainer, *_: Any) -> None:
        if trainer.round == self.round:
            if self.hard:
                trainer.callbacks.clear()
            raise Killed


@pytest.mark.parametrize(
    ("name", "damage"),
    [("run.json", b"{"), ("run.json", b"\xff\xfe"), ("metrics.csv", b"\xff\xfe"), ("metrics.csv", b"a,b\n1,2\n"), ("metrics.csv", b"step\nx\n")],
)  # fmt: skip
def test_a_damaged_file_of_a_finished_run_is_one_line(name: str, damage: bytes, tmp_path: Path) -> None:
    run(tmp_path, {"fedavg": METHODS["fedavg"]}, seeds=(0,))
    (tmp_path / "fedavg" / "seed_0" / name).write_bytes(damage)
    with pytest.raises(ConfigurationError, match=rf"{name} must .*, but cannot be read .*; move .* away") as found:
        run(tmp_path, {"fedavg": METHODS["fedavg"]}, seeds=(0,))
    assert "\n" not in str(found.value)


def test_what_a_killed_comparison_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "fedavg" / "seed_0"
    folder.mkdir(parents=True)
    (folder / ".run.json.999999999").touch()
    run(tmp_path, {"fedavg": METHODS["fedavg"]}, seeds=(0,))
    assert not list(folder.glob(".*"))


def killing(method: str, *arguments: Any) -> Callable[[str, int], list[Callback]]:
    return lambda name, seed: [Kill(*arguments)] if (name, seed) == (method, 1) else []


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("hook", "round"),
    [
        ("on_fit_start", 0),
        ("on_evaluation_end", 0),
        ("on_round_start", 0),
        ("on_cohort_end", 3),
        ("on_evaluation_end", 4),
        ("on_round_end", 5),
        ("on_round_end", 6),
        ("on_fit_end", 6),
    ],
)
def test_a_comparison_goes_on_to_the_same_table(
    whole: Table, tmp_path: Path, hook: str, round: int, hard: bool, every: int
) -> None:
    changed = {"checkpoint_every": every, "seeds": (1,)}
    with pytest.raises(Killed):
        run(tmp_path, callbacks=killing("scaffold", hook, round, hard), **changed)
    assert diary(tmp_path / "fedavg" / "seed_1")["finished"]
    assert not diary(tmp_path / "scaffold" / "seed_1")["finished"]
    table = run(tmp_path, **changed)
    for done in table.outcomes:
        (expected,) = (other for other in whole.of(done.name) if other.seed == 1)
        assert without_clock(done.folder) == without_clock(expected.folder)
        assert (done.curve, done.up_bytes, done.down_bytes) == (expected.curve, expected.up_bytes, expected.down_bytes)
    pieces = diary(tmp_path / "scaffold" / "seed_1")["pieces"]
    assert len(pieces) == 2
    assert table.of("scaffold")[0].seconds == pytest.approx(sum(piece["seconds"] for piece in pieces))
    if hook == "on_round_end" and every == 1:
        assert pieces[1]["from"] == round - 1


@pytest.mark.parametrize("round", [3, ROUNDS])
def test_a_signal_does_not_finish_a_run(whole: Table, tmp_path: Path, round: int) -> None:
    class Terminate(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
            if trainer.round == round:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=lambda name, seed: [Terminate()], seeds=(1,))
    assert not diary(tmp_path / "fedavg" / "seed_1")["finished"]
    assert not (tmp_path / "scaffold").exists()
    (done, _) = run(tmp_path, seeds=(1,)).outcomes
    assert without_clock(done.folder) == without_clock(whole.of("fedavg")[1].folder)
    assert [piece["from"] for piece in diary(done.folder)["pieces"]] == [0, round]


PROGRAM = """
import os, signal, sys
from pathlib import Path
import small_comparison
count, replace = int(sys.argv[2]), os.replace
def dying(*arguments):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = dying
small_comparison.run(Path(sys.argv[1]), checkpoint_every=2)
"""


def test_killed_without_warning_again_and_again(whole: Table, tmp_path: Path) -> None:
    """Just before a file gets its name, each time somewhere else; every call comes further or ends."""
    for count in (3, 8, 17):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(count)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert numbers(run(tmp_path, checkpoint_every=2)) == numbers(whole)


def test_a_second_call_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was set up")

    monkeypatch.setattr(FederatedTrainer, "fit", refuse)
    ended: list[Outcome] = []
    second = run(tmp_path, on_run_end=ended.append)
    assert second.rows() == first.rows()
    assert sorted(ended, key=lambda run: run.name) == list(second.outcomes)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_more_methods_and_seeds_join_the_finished_ones(whole: Table, tmp_path: Path) -> None:
    run(tmp_path, {"fedavg": METHODS["fedavg"]}, seeds=(0,))
    before = (tmp_path / "fedavg" / "seed_0" / "run.json").stat().st_mtime_ns
    assert numbers(run(tmp_path)) == numbers(whole)
    assert (tmp_path / "fedavg" / "seed_0" / "run.json").stat().st_mtime_ns == before


def test_a_checkpoint_without_its_log_is_not_resumed(whole: Table, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, callbacks=killing("fedavg", "on_round_start", 4, False), seeds=(1,))
    (tmp_path / "fedavg" / "seed_1" / "metrics.csv").unlink()
    (done, _) = run(tmp_path, seeds=(1,)).outcomes
    assert without_clock(done.folder) == without_clock(whole.of("fedavg")[1].folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"methods": {"fedavg": FedAvg(lr=0.25)}}, r"`hyperparameters/lr` is 0\.5, and 0\.25 is asked"),
        ({"methods": {"fedavg": FedProx(lr=0.5)}}, "`method` is 'FedAvg', and 'FedProx' is asked"),
        ({"trainer": {"max_rounds": 7}}, "`rounds` is 6, and 7 is asked"),
        ({"trainer": {"clients_per_round": 0.4}}, "`clients_per_round` is 3, and 2 is asked"),
        ({"task": lambda seed: task(seed + 1)}, "`start`"),
        ({"data": lambda seed: data(seed + 1)}, "`partition`"),
    ],
)
def test_a_folder_keeps_to_its_run(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    given = {"methods": {"fedavg": METHODS["fedavg"]}, "task": task, "data": data}
    shared = options(tmp_path, seeds=(0,))
    compare(*given.values(), **shared)
    shared["trainer"] = shared["trainer"] | change.pop("trainer", {})
    with pytest.raises(ConfigurationError, match=named):
        compare(*(given | change).values(), **shared)


# -- what is refused, and when -------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", [".", "fedavg", "fedavg/seed_1"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "root" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "root" / place).write_text("mine")
    with pytest.raises(ConfigurationError, match="`root` of a comparison must be a folder that can be written, but"):
        run(tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path("root", place).name]


def test_a_method_that_cannot_run_is_refused_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Scaffnew") as caught:
        run(tmp_path, [FedAvg(), Scaffnew(p=0.5)])
    assert "(method scaffnew p=0.5)" in caught.value.__notes__
    assert list(tmp_path.rglob("run.json")) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"last": 0}, "`last` of Comparison must be at least 1"),
        ({"mode": "most"}, "'min' or 'max'"),
        ({"trainer": {"evaluate_every": 0}}, "`evaluate_every` must be at least 1"),
        ({"trainer": {"seed": 3}}, "may not hold 'seed'"),
        ({"trainer": {"clients_per_round": 9}}, "`clients_per_round` must be in 1…5"),
        ({"metric": "test/acuracy"}, "Did you mean 'test/accuracy'"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["fedavg"]}, "instances such as"),
        ({"callbacks": lambda name, seed: [ModelCheckpoint()]}, "save_last=False"),
    ],
)
def test_mistakes(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        run(tmp_path, **changed)
    assert not list(tmp_path.rglob("last.ckpt"))


@pytest.mark.quick
def test_names() -> None:
    wanted = ["fedavg", "fedavg #2", "fedprox mu=0.5", "fedprox lr=1.0 mu=0.5", "mine", "fedavg #3"]
    given = [FedAvg(), FedAvg(), FedProx(mu=0.5), FedProx(lr=1.0, mu=0.5), ("mine", FedAvg()), ("FedAvg", FedAvg())]
    assert list(name_methods(given))[:5] == wanted[:5]
    assert list(name_methods(given))[5] == "FedAvg #3"
    assert list(name_methods([("a b", FedAvg()), ("a/b", FedAvg())])) == ["a b", "a/b #2"]


def test_the_same_method_twice_has_two_folders(tmp_path: Path) -> None:
    table = run(tmp_path, [METHODS["fedavg"]] * 2, seeds=(0,))
    one, two = table.outcomes
    assert one.folder != two.folder
    assert one.curve == two.curve


# -- other ends ----------------------------------------------------------------------------------------------------
def test_a_run_that_diverges_is_kept_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = run(tmp_path, {"fast": FedAvg(lr=1e38), "fedavg": METHODS["fedavg"]}, seeds=(0,))
    fast, fedavg = table.rows()
    assert (fast["diverged"], fast["final"], fedavg["diverged"]) == (1, None, 0)
    assert "must be finite" in (table.outcomes[0].failure or "")
    assert "(1 of 1 diverged)" in str(table)
    monkeypatch.delattr(FederatedTrainer, "fit")
    again = run(tmp_path, {"fast": FedAvg(lr=1e38), "fedavg": METHODS["fedavg"]}, seeds=(0,))
    assert numbers(again) == numbers(table)


def test_a_folder_of_runs_with_another_augmentation_is_refused(tmp_path: Path) -> None:
    def images(padding: int) -> Callable[[int], TensorData]:
        def made(seed: int) -> TensorData:
            pixels, targets = torch.zeros(20, 1, 2, 2), torch.arange(20) % 3
            return TensorData(
                Examples(pixels, targets),
                IID(num_clients=4).split(targets, seed=0),
                batching=Batching(steps=1),
                augmentation=RandomCropFlip(padding),
            )

        return made

    flat = Classification(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    compare({"fedavg": FedAvg()}, flat, images(1), **options(tmp_path))
    with pytest.raises(ConfigurationError, match="`training_data`"):
        compare({"fedavg": FedAvg()}, flat, images(2), **options(tmp_path))


def test_another_failure_stops_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such thing") as caught:
        run(tmp_path, {"broken": Broken()}, seeds=(0,))
    assert "(run broken, seed 0)" in caught.value.__notes__
    assert not diary(tmp_path / "broken" / "seed_0")["finished"]


def test_a_method_that_breaks_the_contract_is_named_before_any_runs(tmp_path: Path) -> None:
    class Broken(FedAvg):
        def direction(self, local: Any, grad: Any, client: Any) -> Any:
            return grad(local.w)[:1]

    with pytest.raises(MethodError, match=r"`Broken.direction` .* like w") as caught:
        run(tmp_path / "new", {"fedavg": FedAvg(), "broken": Broken()})
    assert "(method broken)" in caught.value.__notes__
    assert not list((tmp_path / "new").rglob("metrics.csv"))


def test_a_trainer_may_be_made_by_a_function(tmp_path: Path) -> None:
    def make(**own: Any) -> FederatedTrainer:
        return FederatedTrainer(max_rounds=own["seed"] + 1, clients_per_round=2, **own)

    table = compare([FedAvg()], task, data, root=tmp_path, seeds=(0, 2), trainer=make)
    assert [run.rounds for run in table.outcomes] == [1, 3]


def test_a_loss_is_compared_downwards(tmp_path: Path) -> None:
    table = run(tmp_path, {"fedavg": METHODS["fedavg"]}, metric="test/loss", mode="min", target=0.9, seeds=(0,))
    losses = {int(row["step"]): float(row["test/loss"]) for row in logged(table.outcomes[0].folder) if row["test/loss"]}
    (row,) = table.rows()
    assert row["best"] == min(losses.values())
    assert row["rounds_to_target"] == min(t for t, loss in losses.items() if loss <= 0.9)


def test_a_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Comparison(METHODS, task, data, **options(tmp_path / "new")).check()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_summary_of_each_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="reads event files")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        run(tmp_path, callbacks=killing("fedavg", "on_round_start", 4, False), seeds=(1,))
    for done in run(tmp_path, seeds=(1,)).outcomes:
        reader = EventAccumulator(str(done.folder)).Reload()
        (final,), (best,), (up,) = (reader.Scalars(f"compare/{key}") for key in ("final", "best", "up_bytes"))
        assert (final.step, final.value) == (ROUNDS, pytest.approx(done.final()))
        assert (best.value, up.value) == (pytest.approx(done.best()), done.up_bytes)
        assert [point.step for point in reader.Scalars("test/accuracy")] == [0, 2, 4, 6]
        content = b"".join(path.read_bytes() for path in done.folder.glob("events.out.tfevents.*"))
        assert b"_hparams_/session_start_info" in content
        assert done.name.encode() in content
