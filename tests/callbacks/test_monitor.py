"""What stands in for the validation split where there is none, with one warning a fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit
from torch import nn

from fedlightning import (
    Callback,
    Classification,
    EarlyStopping,
    Examples,
    FedAvg,
    FederatedTrainer,
    ModelCheckpoint,
    Partition,
    TensorData,
)
from fedlightning.errors import ConfigurationError

pytestmark = pytest.mark.quick

ASIDE = "There is no validation split, so `val/accuracy` is read from the test set as `test/accuracy`"


def data(val: bool = False) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    parts = Examples(inputs, targets), Partition.of_sizes(torch.full((5,), 12))
    return TensorData(*parts, val=Examples(inputs[:20] + 1, targets[:20]) if val else None)


def run(*callbacks: Callback, source: TensorData | None = None, rounds: int = 3, **options: Any) -> FederatedTrainer:
    """A run of a linear model that is evaluated after each round."""
    torch.manual_seed(0)
    task = Classification(nn.Linear(4, 3), 3)
    options = {"evaluate_every": 1, "callbacks": callbacks, **options}
    return fit(FedAvg(lr=0.1), task, source or data(), rounds, **options)


def warned(*callbacks: Callback, **options: Any) -> list[str]:
    """The warnings of a run that nothing is there to be monitored."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(*callbacks, **options)
    return [str(warning.message) for warning in said if "validation split" in str(warning.message)]


def checkpoint(folder: Path, monitor: str = "val/accuracy", **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, monitor=monitor, save_top_k=-1, **options)


class Logs(Callback):
    """Logs a metric of the validation split's name from some round on, and says so or does not."""

    def __init__(self, name: str, at: int = 1) -> None:
        self.name, self.at = name, at

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        if trainer.round >= self.at:
            trainer.log({self.name: float(trainer.round)})


class Says(Logs):
    logs = ("val/*",)


def test_the_test_set_stands_in_with_one_warning_for_all_that_watch(tmp_path: Path) -> None:
    kept, stopping = checkpoint(tmp_path), EarlyStopping("val/loss", patience=9)
    said = warned(kept, stopping, checkpoint(tmp_path / "worst", "val_clients/accuracy_worst_decile"))
    assert len(said) == 1
    assert "`validation=0.1`" in said[0]
    watched = [(EarlyStopping, "val/loss", "test/loss"), (ModelCheckpoint, "val/accuracy", "test/accuracy")]
    assert any(f"`{name}` is read from the test set as `{other}`" in said[0] for _, name, other in watched)
    assert (kept.watched, stopping.watched) == ("test/accuracy", "test/loss")
    assert {path.name.partition("=0.")[0] for path in tmp_path.glob("round*")} == {
        f"round={t}-test_accuracy" for t in (1, 2, 3)
    }
    assert list((tmp_path / "worst").glob("round=1-test_clients_accuracy_worst_decile=*"))
    assert stopping.best_score is not None


def test_it_decides_as_the_test_sets_own_name_does(tmp_path: Path) -> None:
    watching, named = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b", "test/accuracy")
    (said,) = warned(watching)
    assert said.startswith(ASIDE)
    assert warned(named) == []
    assert [Path(path).name for path in watching.best_k_models] == [Path(path).name for path in named.best_k_models]


def test_a_metric_that_there_is_does_not_warn(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path)
    assert warned(kept, EarlyStopping("val/loss"), source=data(val=True)) == []
    assert kept.watched == "val/accuracy"
    assert list(tmp_path.glob("round=1-val_accuracy=*"))
    assert warned(EarlyStopping("test/accuracy", "max"), EarlyStopping("train/loss")) == []


def test_what_a_callback_logs_is_not_replaced(tmp_path: Path) -> None:
    for name, callback in (("declared", Says("val/accuracy", at=2)), ("undeclared", Logs("val/accuracy"))):
        kept = checkpoint(tmp_path / name)
        assert warned(callback, kept) == []
        assert kept.watched == "val/accuracy"
        assert kept.best_model_score == 3.0


def test_the_second_fit_warns_again_and_a_resumed_one_does_before_its_first_round(tmp_path: Path) -> None:
    kept, stopping = checkpoint(tmp_path), EarlyStopping("val/accuracy", "max", patience=1)
    assert len(warned(kept, rounds=2)) == len(warned(kept, stopping, rounds=2)) == 1

    class Stops(Callback):
        logs = ()

        def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match=ASIDE) as said, pytest.raises(KeyboardInterrupt):
        run(Stops(), checkpoint(tmp_path), rounds=4, ckpt_path=tmp_path / "last.ckpt")
    assert len(said) == 1


def test_why_a_run_ended_names_what_was_watched(tmp_path: Path) -> None:
    stopping = EarlyStopping("val/loss", patience=1, min_delta=10.0)
    with pytest.warns(UserWarning, match="There is no validation split"):
        trainer = run(stopping, checkpoint(tmp_path, "train/loss"), rounds=9)
    assert trainer.stop_reason.startswith("test/loss has not improved on")
    same = EarlyStopping("val/loss", patience=1, min_delta=10.0)
    with pytest.warns(UserWarning, match="There is no validation split"):
        again = run(same, rounds=9, ckpt_path=tmp_path / "last.ckpt")
    assert again.stop_reason == trainer.stop_reason


@pytest.mark.parametrize(
    ("monitor", "options"),
    [
        ("val/acuracy", {}),
        ("val/accuracy", {"evaluate_on": ("train",)}),
        ("val/accuracy", {"evaluate_every": 0}),
        ("validation/accuracy", {}),
    ],
)
def test_nothing_stands_in_for_what_the_test_set_lacks(monitor: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"`monitor` of ModelCheckpoint must be .* but is '{monitor}'"):
        warned(checkpoint(tmp_path, monitor), **options)
