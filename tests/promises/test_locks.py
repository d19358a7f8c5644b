"""One run at a time in a folder."""

import csv
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit

from fedlightning import (
    Callback,
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    ModelCheckpoint,
)
from fedlightning._locks import locked
from fedlightning.loggers import run_loggers
from fedlightning.testing import Quadratics

EYE = torch.eye(2)
IN_USE = "A folder must be one run's at a time, but another run writes to"


def run(logger: Any = False, callbacks: Sequence[Callback] = (), **how: Any) -> FederatedTrainer:
    """Two rounds on three quadratics, evaluated."""
    task, data = Quadratics.task([0.0, 0.0]), Quadratics([EYE] * 3, [EYE[0]] * 3, [2] * 3)
    return fit(FedAvg(), task, data, logger=logger, callbacks=callbacks, evaluate_every=1, **how)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a folder locked."""
    program = (
        "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def is_free(folder: Path) -> bool:
    """Whether a folder is not locked."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def test_a_second_run_is_refused_and_a_kill_leaves_no_lock(tmp_path: Path) -> None:
    run(run_loggers(tmp_path, "a"))
    rows = (tmp_path / "a" / "metrics.csv").read_bytes()
    with holder(tmp_path / "a") as other:
        with pytest.raises(
            ConfigurationError, match=f"{IN_USE} .*a; wait until it has ended, or choose another name"
        ) as e:
            run(run_loggers(tmp_path, "a"))
        assert "\n" not in str(e.value)
        assert (tmp_path / "a" / "metrics.csv").read_bytes() == rows
        other.kill()
        other.wait()
        run(run_loggers(tmp_path, "a"))


def test_a_folder_of_checkpoints_is_one_runs_too(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with holder(tmp_path / "kept"), pytest.raises(ConfigurationError, match=IN_USE):
        run(callbacks=[ModelCheckpoint(tmp_path / "kept")])
    run(callbacks=[ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, filename="r{round}")])


def test_another_thread_is_another_run_and_the_same_one_is_not(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def other() -> None:
        try:
            run(run_loggers(tmp_path, "a"))
        except ConfigurationError as error:
            refused.append(error)

    class Starts(Callback):
        def on_round_start(self, trainer: FederatedTrainer, round: Any) -> None:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    run(run_loggers(tmp_path, "a"), [Starts()])
    assert len(refused) == 2
    with locked(tmp_path / "a"):
        with locked(tmp_path / "a" / ".." / "a"):
            assert not is_free(tmp_path / "a")
        assert not is_free(tmp_path / "a")
    assert is_free(tmp_path / "a")


class Ends(Callback):
    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", [{"callbacks": [Ends()]}, {"ckpt_path": "nowhere.ckpt"}, {}])
def test_the_lock_goes_however_the_run_ends_and_leaves_nothing(how: dict[str, Any], tmp_path: Path) -> None:
    if how:
        with pytest.raises((KeyboardInterrupt, ConfigurationError)):
            run(run_loggers(tmp_path, "a"), **how)
    else:
        run(run_loggers(tmp_path, "a"))
    assert not list((tmp_path / "a").glob("*lock*"))
    assert is_free(tmp_path / "a")


def test_where_folders_cannot_be_locked_a_file_in_them_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fcntl.flock

    def as_nfs(descriptor: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "Bad file descriptor")
        plain(descriptor, how)

    monkeypatch.setattr("fcntl.flock", as_nfs)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
        descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            plain(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_a_file_system_without_locks_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match="has no locks .No locks available.; see to it yourself") as told:
        run(run_loggers(tmp_path, "a"))
    assert len(told) == 1
    run(run_loggers(tmp_path, "a"))


# -- what is left, and what is not ------------------------------------------------------------------------------------
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kept = [f".last.ckpt.{living.pid}", ".last.ckpt.mine", "last.ckpt.7", ".mine.7"]
    gone = [f".last.ckpt.{dead()}", f".round=7.ckpt.{dead()}", f".last.ckpt.{os.getpid()}", ".last.ckpt.link"]
    for name in (*kept, *gone):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f".metrics.csv.{dead()}").touch()
    run(run_loggers(tmp_path, "a"), callbacks=[ModelCheckpoint(tmp_path)])
    living.kill()
    living.wait()
    assert not [path.name for path in (tmp_path / "a").iterdir() if path.name.startswith(".")]
    shutil.rmtree(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "last.ckpt", "round=2.ckpt"}


def test_runs_without_a_folder_have_one_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        trainer = FederatedTrainer(2, logger=False, seed=number)
        trainer.fit(FedAvg(), Quadratics.task([0.0, 0.0]), Quadratics([EYE] * 3, [EYE[0]] * 3, [2] * 3))
        assert trainer.log_dir == Path(f"logs/fedavg/version_{number}")
        assert (trainer.log_dir / "checkpoints" / "last.ckpt").is_file()
    assert len(list(tmp_path.rglob("*.ckpt"))) == 4


def test_a_run_that_keeps_nothing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("logger", [True, False])
def test_a_run_that_is_refused_leaves_no_folder_thread_or_lock(
    logger: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    state = run().state
    for how in ({"ckpt_path": "none.ckpt"}, {"state": state.__class__(-1, state.server)}):
        with pytest.raises(ConfigurationError):
            run(logger, [ModelCheckpoint()], **how)
        assert [path for path in tmp_path.rglob("*") if path.is_file() or "version" in path.name] == []
        assert threading.active_count() == threads


# -- the command line -------------------------------------------------------------------------------------------------
def test_of_two_runs_of_one_name_that_are_started_together_one_is_refused(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "synthetic.py"
    command = [
        sys.executable,
        str(recipe),
        "--runner",
        "loop",
        "--name",
        "both",
        "--local-steps",
        "2",
        "--rounds",
        "100000",
    ]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while all(run.poll() is None for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    refused = next(run for run in runs if run.poll() is not None)
    goes_on = runs[1 - runs.index(refused)]
    errors = refused.communicate(timeout=60)[1].splitlines()
    assert refused.returncode == 2
    assert "another run writes to" in errors[-1] or "holds a run" in errors[-1]
    folder = tmp_path / "logs" / "synthetic" / "synthetic_1_1" / "fedavg" / "both"
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    resumed = subprocess.run([*command, "--resume", "last"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 2
    assert f"{IN_USE} {folder.relative_to(tmp_path)}" in resumed.stderr
    assert "Traceback" not in resumed.stderr
    goes_on.terminate()
    goes_on.communicate(timeout=60)
    assert goes_on.returncode == 143
    with (folder / "metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert len(steps) == len(set(steps))
