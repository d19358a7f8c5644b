"""Runs side by side in processes: the same table to the last bit, however it ends and goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_comparison import (
    METHODS,
    Broken,
    Dots,
    data,
    diary,
    numbers,
    options,
    run,
    slow,
    task,
    wide_task,
    without_clock,
)

from fedlightning import ConfigurationError, FedAvg, FedLightningError, SlotStrategy
from fedlightning._locks import locked
from fedlightning.compare import Comparison, Outcome, Progress, Table, compare, run_together
from fedlightning.loggers import run_loggers

PROGRAM = """
import sys
from pathlib import Path
import small_comparison
if __name__ == "__main__":
    small_comparison.run(Path(sys.argv[1]), jobs=2, callbacks=small_comparison.slow, checkpoint_every=2)
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Begins a slow comparison in a process of its own, and waits until two of its runs are under way."""
    begun: list[subprocess.Popen[bytes]] = []
    (tmp_path / "program.py").write_text(PROGRAM)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "o")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (tmp_path / "said.txt").open("w") as said:
            begun.append(subprocess.Popen(command, env=environment, stderr=said))
        until(lambda: len(far(tmp_path / "o", 1)) == 2)
        return begun[0]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def far(root: Path, rounds: int) -> list[Path]:
    """The folders of the runs that have come so far."""
    lines = {path.parent: len(path.read_text().splitlines()) for path in root.glob("*/seed_*/metrics.csv")}
    return [folder for folder, count in lines.items() if count > 1 + rounds]


def until(done: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def writers(root: Path) -> list[str]:
    """The processes that work for a comparison: those that have the program's environment and a file of its open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(root) in os.readlink(link) for link in (process / "fd").iterdir()):
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return run(tmp_path_factory.mktemp("whole"))


# -- the same numbers ----------------------------------------------------------------------------------------------
def test_two_jobs_give_the_table_of_one(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"tune": {"lr": (0.1, 0.5)}, "tune_rounds": 2, "seeds": (0, 1, 2)}
    progress: list[Progress] = []
    ended: list[Outcome] = []
    one = run(tmp_path / "one", **changed)
    two = run(tmp_path / "two", **changed, jobs=2, on_progress=progress.append, on_run_end=ended.append)
    assert numbers(two) == numbers(one)
    assert two.tuned == one.tuned
    for here, there in zip(two.outcomes, one.outcomes, strict=True):
        assert without_clock(here.folder) == without_clock(there.folder)
        assert diary(here.folder)["run"] == diary(there.folder)["run"]
    assert len(ended) == 4 + 6
    curve = {one.round: one.value for one in progress if (one.name, one.seed) == ("fedavg lr=0.5", 2)}
    (same,) = (run for run in ended if (run.name, run.seed) == ("fedavg lr=0.5", 2))
    assert curve == same.curve
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert numbers(run(tmp_path / "two", **changed, jobs=2)) == numbers(one)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_run_that_two_comparisons_share_is_made_once(tmp_path: Path) -> None:
    shared = options(tmp_path, seeds=(0,))
    more = [{"a": METHODS["fedavg"]}, {"a": METHODS["fedavg"], "b": METHODS["scaffold"]}]
    ended: list[str] = []
    comparisons = [Comparison(methods, task, data, **shared) for methods in more]
    for comparison in comparisons:
        comparison.on_run_end = lambda run: ended.append(run.name)
    places: list[int] = []
    tables = run_together(comparisons, 2, lambda place, table: places.append(place))
    assert places == [0, 1]
    assert sorted(ended) == ["a", "a", "b"]
    assert [table.names for table in tables] == [["a"], ["a", "b"]]
    assert numbers(tables[0])[-1] == next(one for one in numbers(tables[1]) if one[0] == "a")
    assert len(diary(tmp_path / "a" / "seed_0")["pieces"]) == 1


def test_a_sum_over_a_long_vector_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Torch divides it among its threads, whose number is that of this process, and not that of a job's cores."""

    def rows(jobs: int) -> list[Any]:
        given = options(tmp_path / str(jobs), seeds=(0, 1), trainer={"max_rounds": 2})
        return [
            without_clock(run.folder) for run in compare({"dots": Dots()}, wide_task, data, **given, jobs=jobs).outcomes
        ]

    assert rows(2) == rows(1)


# -- how it ends ---------------------------------------------------------------------------------------------------
def test_a_signal_ends_all_after_their_rounds(
    whole: Table, tmp_path: Path, begin: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = begin()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert (tmp_path / "said.txt").read_text().rstrip().endswith(f"KeyboardInterrupt: {int(signal.SIGTERM)}")
    assert writers(tmp_path / "o") == []
    begun = far(tmp_path / "o", 0)
    assert len(begun) == 2
    for folder in begun:
        assert not diary(folder)["finished"]
        assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert numbers(run(tmp_path / "o", jobs=2, checkpoint_every=2)) == numbers(whole)


def test_a_second_interrupt_ends_all_at_once(
    whole: Table, tmp_path: Path, begin: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = begin()
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert writers(tmp_path / "o") == []
    assert numbers(run(tmp_path / "o", checkpoint_every=2)) == numbers(whole)


def test_what_is_left_alone_ends_after_its_round(
    whole: Table, tmp_path: Path, begin: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = begin()
    process.kill()
    process.wait()
    until(lambda: writers(tmp_path / "o") == [])
    assert not any(diary(folder)["finished"] for folder in far(tmp_path / "o", 0))
    assert numbers(run(tmp_path / "o", checkpoint_every=2)) == numbers(whole)


def test_a_process_that_is_killed_is_told_with_its_run(whole: Table, tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if (progress.name, progress.round) == ("scaffold", 2):
            for pid in writers(tmp_path / "o" / "scaffold"):
                if int(pid) != os.getpid():
                    os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(FedLightningError, match=r"that of scaffold, seed 0 was killed by SIGKILL; .*goes on") as caught:
        run(tmp_path / "o", jobs=2, callbacks=slow, on_progress=kill)
    assert "\n" not in str(caught.value)
    assert writers(tmp_path / "o") == []
    assert numbers(run(tmp_path / "o", checkpoint_every=2)) == numbers(whole)


def test_an_error_is_told_with_its_run(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such thing") as caught:
        run(tmp_path, {"fedavg": METHODS["fedavg"], "broken": Broken()}, seeds=(0,), jobs=2, callbacks=slow)
    assert "(run broken, seed 0)" in caught.value.__notes__
    assert "on_aggregate" in str(caught.value.__cause__)  # where it was raised
    assert not diary(tmp_path / "broken" / "seed_0")["finished"]
    with pytest.raises(type(caught.value), match="no such thing"):
        run(tmp_path, {"broken": Broken()}, seeds=(0,))


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_two_processes_write_one_runs_folder(tmp_path: Path, jobs: int) -> None:
    folder, done = tmp_path / "scaffold" / "seed_0", threading.Event()
    folder.mkdir(parents=True)

    def hold() -> None:
        with locked(folder):
            held.set()
            done.wait()

    held = threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    try:
        with pytest.raises(ConfigurationError, match="must be one run's at a time, but another run writes to"):
            run(tmp_path, seeds=(0,), jobs=jobs)
    finally:
        done.set()
        other.join()
    assert not (folder / "run.json").exists()


# -- what cannot be ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": lambda seed: data(seed)}, "`data` of a comparison must be such that it can be sent to another process"),
        ({"task": lambda seed: task(seed)}, "`task` of a comparison must be .*but is the function <lambda>, of which pickle"),
        ({"callbacks": lambda name, seed: []}, "`callbacks` of a comparison .*; give objects and functions that stand at the top"),
        ({"trainer": lambda **own: None}, "`trainer` of a comparison must be .* for `jobs=2`"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_before_the_first_run(tmp_path: Path, changed: Any, words: str) -> None:
    from fedlightning import FederatedTrainer

    if "trainer" in changed:
        changed = {"trainer": lambda **own: FederatedTrainer(2, **own)}
    given = {"task": task, "data": data, **options(tmp_path / "o"), **changed, "jobs": 2}
    with pytest.raises(ConfigurationError, match=words) as caught:
        compare(METHODS, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_method_that_cannot_be_sent_is_refused_before_the_first_run(tmp_path: Path) -> None:
    class Own(FedAvg):
        """Of this function."""

    with pytest.raises(ConfigurationError, match="`methods` of a comparison must be such"):
        run(tmp_path / "o", {"fedavg": FedAvg(), "own": Own()}, jobs=2)
    assert not (tmp_path / "o").exists()


def test_what_another_process_does_not_find_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a function that was typed into a notebook."""
    main = sys.modules["__main__"]
    made = lambda seed: data(seed)  # noqa: E731
    made.__module__, made.__qualname__ = "__main__", "made"
    monkeypatch.setattr(main, "made", made, raising=False)
    with pytest.raises(ConfigurationError, match="must be such that another process finds it again") as caught:
        compare(METHODS, task, made, **options(tmp_path / "o"), jobs=2)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("run.json"))


# -- the runner that was asked for ---------------------------------------------------------------------------------
def test_runs_that_were_made_with_another_runner_are_kept_and_told(tmp_path: Path) -> None:
    run(tmp_path, seeds=(0,))
    assert diary(tmp_path / "fedavg" / "seed_0")["pieces"][0]["runner"] == "auto"
    strategy = {"strategy": SlotStrategy(1, runner="traced")}
    with pytest.warns(
        UserWarning, match=r"2 of the runs in .* another `runner` .*\(fedavg, seed 0 with 'auto'\)"
    ) as said:
        table = run(tmp_path, trainer=strategy)
    assert len(said) == 1
    assert [len(diary(done.folder)["pieces"]) for done in table.outcomes] == [1] * 4
    assert diary(tmp_path / "fedavg" / "seed_1")["pieces"][0]["runner"] == "traced"


def test_a_strategy_that_has_run_can_be_sent(tmp_path: Path) -> None:
    import pickle

    from fedlightning import FederatedTrainer

    strategy = SlotStrategy("cpu/0,cpu/1", runner="traced", cohort_size=2, precision="bf16-mixed", threads_per_slot=2)
    fresh = pickle.loads(pickle.dumps(strategy))
    FederatedTrainer(1, 2, strategy, logger=run_loggers(tmp_path)).fit(FedAvg(), task(0), data(0))
    again = pickle.loads(pickle.dumps(strategy))
    assert vars(again).keys() == vars(fresh).keys() == vars(SlotStrategy(1)).keys()
    trainer = FederatedTrainer(1, 2, again, logger=run_loggers(tmp_path / "again"))
    trainer.fit(FedAvg(), task(0), data(0))
    assert again.describe() == strategy.describe()
