"""One folder for a run's logs, and logs that go on where a run was left."""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger

from fedlightning import Callback, FederatedTrainer, Scaffold
from fedlightning.errors import ConfigurationError, SaveError
from fedlightning.loggers import (
    Rows,
    RunCSVLogger,
    check_writable,
    latest_run,
    log_hyperparameters,
    next_version,
    run_loggers,
)
from fedlightning.testing import Quadratics

HYPERPARAMETERS = {"method": "FedProx", "method/mu": 0.1, "method/clip_norm": None, "seed": 3}
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard, which reads event files, is not installed"
)


def log(loggers: Iterable[Logger], steps: Iterable[int], offset: float = 0.0) -> None:
    """Rounds as a run logs them: a loss always, an evaluation with every other round."""
    for step in steps:
        evaluation = {"test/accuracy": step / 10 + offset} if step % 2 == 0 else {}
        for logger in loggers:
            logger.log_metrics({"train/loss": 1 / (step + 1), **evaluation}, step=step)
            logger.save()


def finish(loggers: Iterable[Logger], status: str = "success") -> None:
    for logger in loggers:
        logger.finalize(status)


def run(root: Path, name: str | None, steps: Iterable[int], offset: float = 0.0) -> Path:
    loggers = run_loggers(root, name)
    log_hyperparameters(loggers, HYPERPARAMETERS)
    log(loggers, steps, offset)
    finish(loggers)
    return Path(str(loggers[0].log_dir))


# -- the folder -----------------------------------------------------------------------------------------------
def test_one_folder_holds_everything(tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "config.yaml").write_text("kept: true")
    folder = run(tmp_path, "named", range(3))
    assert folder == tmp_path / "named"
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "config.yaml"
    assert names[1].startswith("events.out.tfevents.")
    assert names[2:] == ["hparams.yaml", "metrics.csv"]
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == HYPERPARAMETERS


def test_loggers_agree_on_the_folder(tmp_path: Path) -> None:
    for expected in ("version_0", "version_1"):
        loggers = run_loggers(tmp_path / "a" / "b")
        assert {logger.log_dir for logger in loggers} == {str(tmp_path / "a" / "b" / expected)}


def test_versions_are_claimed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that begin at the same moment see the same free number; one of them takes the next."""
    answers = iter(["version_0", "version_1"])
    (tmp_path / "version_0").mkdir()
    monkeypatch.setattr("fedlightning.loggers.next_version", lambda root: next(answers))
    assert run_loggers(tmp_path)[0].version == "version_1"


def test_next_version(tmp_path: Path) -> None:
    assert next_version(tmp_path / "absent") == "version_0"
    for name in ("version_2", "version_10", "version_x", "mine"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "version_11"


def test_latest_run(tmp_path: Path) -> None:
    assert latest_run(tmp_path / "absent") is None
    (tmp_path / "version_7").mkdir()  # no checkpoint
    assert latest_run(tmp_path) is None
    for name in ("version_3", "mine"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    for name, when in (("version_3", 200), ("mine", 100)):
        os.utime(tmp_path / name / "checkpoints" / "last.ckpt", (when, when))
    assert latest_run(tmp_path) == tmp_path / "version_3"


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    for attempt in (lambda root: check_writable(root), run_loggers):
        with pytest.raises(
            ConfigurationError, match=r"log folder must be writable, but .*file.* \(.*\); choose another"
        ):
            attempt(tmp_path / "file" / "below")

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        check_writable(tmp_path)


# -- metrics.csv -----------------------------------------------------------------------------------------------
def test_metrics_are_on_disk_at_once(tmp_path: Path) -> None:
    loggers = run_loggers(tmp_path)
    log(loggers, range(2))
    with open(tmp_path / "version_0" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert [row["test/accuracy"] for row in rows] == ["0.0", ""]
    finish(loggers)


@pytest.mark.parametrize(("killed", "resumed"), [(7, 5), (7, 7), (5, 3), (1, 1), (7, 0)])
def test_resumed_metrics_equal_the_uninterrupted_ones(tmp_path: Path, killed: int, resumed: int) -> None:
    whole = run(tmp_path, "whole", range(9))
    log(run_loggers(tmp_path, "cut"), range(killed), offset=0.25 if resumed == 0 else 0.0)  # and never finalised
    cut = run(tmp_path, "cut", range(resumed, 9))
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize("torn", ["1", "12,0.5", "12,0.5,0.", "\0"])
def test_a_torn_last_row_is_dropped(tmp_path: Path, torn: str) -> None:
    whole = run(tmp_path, "whole", range(9))
    cut = run(tmp_path, "cut", range(6))
    with open(cut / "metrics.csv", "a") as file:
        file.write(torn)
    run(tmp_path, "cut", range(5, 9))
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_columns_of_dropped_rows_go(tmp_path: Path) -> None:
    loggers = run_loggers(tmp_path, "a")
    log(loggers, [1])
    log(loggers, [2])  # brings test/accuracy
    finish(loggers, "stopped")
    folder = run(tmp_path, "a", [3])
    assert "test/accuracy" in (folder / "metrics.csv").read_text()
    folder = run(tmp_path, "a", [1])
    assert (folder / "metrics.csv").read_text().split() == ["step,train/loss", "1,0.5"]


def test_a_logger_may_be_used_again(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", range(6))
    loggers = run_loggers(tmp_path, "twice")
    log(loggers, range(3))
    finish(loggers)
    log(loggers, range(3, 6))
    finish(loggers)
    assert (tmp_path / "twice" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


# -- TensorBoard -----------------------------------------------------------------------------------------------
def events(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("events.out.tfevents.*")))


def test_hyperparameters_are_in_the_event_file(tmp_path: Path) -> None:
    content = events(run(tmp_path, None, range(3)))
    assert content.count(b"_hparams_/session_start_info") == 1
    assert b"method/mu" in content
    assert b"FedProx" in content
    assert b"hp_metric" not in content
    assert b"_hparams_/experiment" not in content  # it would hide the hyperparameters of other methods


def test_hyperparameters_given_late(tmp_path: Path) -> None:
    loggers = run_loggers(tmp_path)
    log(loggers, range(2))
    log_hyperparameters(loggers, {"shape": (3, 4)})
    finish(loggers)
    assert b"(3, 4)" in events(tmp_path / "version_0")
    assert yaml.safe_load((tmp_path / "version_0" / "hparams.yaml").read_text()) == {"shape": "(3, 4)"}


def test_each_start_writes_its_own_event_file(tmp_path: Path) -> None:
    """Even within a second, and without a file for a start that logs nothing."""
    for steps in (range(3), range(3, 4), range(4, 4), range(4, 5)):
        folder = run(tmp_path, "a", steps)
    assert len(list(folder.glob("events.out.tfevents.*"))) == 3


@needs_tensorboard
def test_resumed_curves_do_not_double(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = run_loggers(tmp_path, "a")
    log(killed, range(7), offset=0.5)
    finish(killed, "stopped")
    folder = run(tmp_path, "a", range(5, 9))
    reader = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in reader.Scalars("train/loss")] == list(range(9))
    assert [round(point.value, 3) for point in reader.Scalars("test/accuracy")] == [0.5, 0.7, 0.9, 0.6, 0.8]


@needs_tensorboard
def test_tensorboard_shows_the_hyperparameters_of_all_methods(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    names = {}
    for index, hyperparameters in enumerate(({"method": "FedAvg"}, {"method": "FedProx", "method/mu": 0.1})):
        loggers = run_loggers(tmp_path)
        log_hyperparameters(loggers, hyperparameters)
        log(loggers, range(2))
        finish(loggers)
        reader = EventAccumulator(str(tmp_path / f"version_{index}")).Reload()
        metadata = reader.SummaryMetadata("_hparams_/session_start_info")
        names[index] = set(parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams)
    assert names == {0: {"method"}, 1: {"method", "method/mu"}}


# -- damage ----------------------------------------------------------------------------------------------------------
def binary(path: Path) -> None:
    path.write_bytes(bytes(range(128, 256)) * 9)


def headless(path: Path) -> None:
    path.write_text(path.read_text().replace("step", "stop"))


def long_row(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], f"{lines[2]},7,7", *lines[3:], ""]))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").touch()


def huge_field(path: Path) -> None:
    path.write_text(path.read_text() + "7," + "x" * 200_000)


def empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("damage", "kept"),
    [(binary, []), (headless, []), (long_row, [0, 2, 3, 4]), (folder, []), (huge_field, []), (empty, [])],
)
def test_a_damaged_file_is_put_aside_with_a_line_and_the_run_goes_on(
    damage: Callable[[Path], None], kept: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run(tmp_path, "a", range(7)) / "metrics.csv"
    damage(path)
    before = None if path.is_dir() else path.read_bytes()
    run(tmp_path, "a", range(5, 9))
    with path.open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*kept, *range(5, 9)]
    if damage is empty:
        return
    aside = path.with_name("metrics.csv.damaged")
    assert (aside / "kept").exists() if before is None else aside.read_bytes() == before
    (line,) = [line for line in caplog.messages if "damaged" in line]
    assert f"{path} is damaged (" in line
    assert f"is kept as {aside}" in line
    assert "\n" not in line
    damage(path)
    run(tmp_path, "a", range(5, 9))
    assert path.with_name("metrics.csv.damaged1").exists()


def test_what_is_logged_for_a_round_again_joins_its_row(tmp_path: Path) -> None:
    loggers = run_loggers(tmp_path, "a")
    log(loggers, range(4))
    for logger in loggers:
        logger.log_metrics({"test/accuracy": 0.75, "late": 1.0}, step=3)
    finish(loggers)
    with (tmp_path / "a" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[-1] == {"step": "3", "train/loss": "0.25", "test/accuracy": "0.75", "late": "1.0"}
    assert rows[-2]["late"] == ""


def test_all_loggers_get_a_row_whichever_of_them_fails(tmp_path: Path) -> None:
    class Full(RunCSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise OSError(28, "No space left on device")

    class Broken(RunCSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise KeyError("what is this")

    rows = Rows([Full(tmp_path, "a"), Broken(tmp_path, "b"), RunCSVLogger(tmp_path, "c")])
    full, broken = rows.write({"train/loss": 1.0}, 3)
    assert isinstance(full, SaveError)
    assert "must be written, but Full could not log round 3 ([Errno 28] No space left on device); make room" in str(
        full
    )
    assert isinstance(broken, KeyError)
    assert broken.__notes__ == ["(Broken could not log round 3)"]
    assert (tmp_path / "c" / "metrics.csv").read_text().split() == ["step,train/loss", "3,1.0"]


class AsFiles(RunCSVLogger):
    """Keeps hyperparameters as MLflow's file store does, and takes the ends that it takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "run")
        self.ends: list[str] = []

    def log_hyperparams(self, params: Any = None, *_: Any, **__: Any) -> None:
        for name, value in params.items():
            path = Path(self.log_dir) / "params" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(value))

    def finalize(self, status: str) -> None:
        assert status in ("success", "failed", "finished")
        self.ends.append(status)


@pytest.mark.parametrize("ended", ["all", "early", "failed"])
def test_hyperparameters_may_be_files_and_an_end_is_one_that_lightning_has(ended: str, tmp_path: Path) -> None:
    class Ends(Callback):
        def on_round_end(self, trainer: Any, metrics: object) -> None:
            trainer.should_stop = ended == "early"
            if ended == "failed":
                raise RuntimeError("on purpose")

    logger = AsFiles(tmp_path)
    trainer = FederatedTrainer(3, callbacks=[Ends()], logger=logger)
    problem = Quadratics([torch.eye(2)] * 3, [torch.ones(2)] * 3, [2] * 3)
    with pytest.raises(RuntimeError) if ended == "failed" else nullcontext():
        trainer.fit(Scaffold(), Quadratics.task([0.0, 0.0]), problem)
    assert logger.ends == ["failed" if ended == "failed" else "success"]
    assert (tmp_path / "run" / "params" / "method" / "class").read_text() == "Scaffold"
    assert (tmp_path / "run" / "params" / "method" / "lr").read_text() == "0.1"


@needs_tensorboard
def test_curves_are_whole_where_the_clock_was_put_back_between_two_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps, now = [range(30), range(20, 40), range(35, 50), range(50, 60)], time.time()
    for late, some in zip(
        (7200.0, 3600.0, 3600.0, 0.0), steps, strict=True
    ):  # an hour back, twice, and twice in one second
        monkeypatch.setattr("time.time", lambda late=late: now + late)
        run(tmp_path, "a", some, offset=late / 1e6)
    reader = EventAccumulator(str(tmp_path / "a")).Reload()
    assert [point.step for point in reader.Scalars("train/loss")] == list(range(60))
    found = {point.step: round(point.value, 4) for point in reader.Scalars("test/accuracy")}
    assert (found[18], found[34], found[36], found[52]) == (1.8072, 3.4036, 3.6036, 5.2)
    names = sorted(path.name for path in (tmp_path / "a").glob("events*"))
    assert len({name.split(".")[3] for name in names}) == 4
