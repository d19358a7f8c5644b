"""What `FederatedTrainer` and `fit` are given: arguments of another kind, in another order, and those of Lightning."""

import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedlightning import (
    IID,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedDataModule,
    FederatedTask,
    FederatedTrainer,
    TensorData,
)
from fedlightning._arguments import LIGHTNING
from fedlightning.models import MLP, LeNet

LABELS = torch.arange(12) % 3
DATA = TensorData(Examples(torch.zeros(12, 4), LABELS), IID(3).split(LABELS, seed=0))
TASK = Classification(MLP(4, 3, (4,)))


class Untouched(TensorData):
    """Data that are not even prepared where an argument is refused."""

    def prepare_data(self) -> None:
        raise AssertionError("prepared")


UNTOUCHED = Untouched(Examples(torch.zeros(12, 4), LABELS), IID(3).split(LABELS, seed=0))
FITS: list[tuple[tuple[Any, ...], str]] = [
    ((FedAvg(), LeNet(3, 10), UNTOUCHED), "`task` of `fit` must be a FederatedTask, but is a LeNet; wrap the module, e.g. `Classification(LeNet(…))`."),
    ((FedAvg, TASK, UNTOUCHED), "`method` of `fit` must be a FedMethod, but is the class FedAvg; give an instance of it, `FedAvg(…)`."),
    ((FedAvg(), Classification, UNTOUCHED), "`task` of `fit` must be a FederatedTask, but is the class Classification; give an instance of it"),
    ((FedAvg(), TASK, Untouched), "`data` of `fit` must be a FederatedDataModule, but is the class Untouched; give an instance of it"),
    ((TASK, FedAvg(), UNTOUCHED), "`fit` must be given (method, task, data), but was given (Classification, FedAvg, Untouched); use `fit(FedAvg, Classification, Untouched)`."),
    ((UNTOUCHED, FedAvg(), TASK), "but was given (Untouched, FedAvg, Classification)"),
    ((TASK, TASK, UNTOUCHED), "`method` of `fit` must be a FedMethod, but is a Classification"),
    (("fedavg", TASK, UNTOUCHED), "`method` of `fit` must be a FedMethod, but is 'fedavg'; import its class from fedlightning.methods"),
    ((None, TASK, UNTOUCHED), "`method` of `fit` must be a FedMethod, but is None"),
    ((FedAvg(), None, UNTOUCHED), "`task` of `fit` must be a FederatedTask, but is None; give e.g. `Classification(model)`."),
    ((FedAvg(), TASK, None), "`data` of `fit` must be a FederatedDataModule, but is None; give e.g. `TensorData("),
    ((FedAvg(), TASK, DataLoader(TensorDataset(LABELS))), "`data` of `fit` must be a FederatedDataModule, but is a DataLoader; give e.g. `TensorData("),
    ((FedAvg(), TASK, (LABELS, LABELS)), "`data` of `fit` must be a FederatedDataModule, but is a tuple"),
    ((FedAvg(), TASK, lightning.LightningDataModule()), "`data` of `fit` must be a FederatedDataModule, but is a LightningDataModule"),
    ((FedAvg(), TASK, UNTOUCHED, "last"), "`state` of `fit` must be the RoundState that a `fit` returned, but is 'last'; a checkpoint's path is `ckpt_path`."),
    ((FedAvg(), TASK, UNTOUCHED, None, 3), '`ckpt_path` of `fit` must be a path or "last", but is 3'),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), FITS)
def test_fit_refuses_what_is_of_another_kind_before_it_touches_anything(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FederatedTrainer(1, logger=False, callbacks=[]).fit(*given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_one_state_to_go_on_from() -> None:
    trainer = FederatedTrainer(1, logger=False, callbacks=[])
    state = trainer.fit(FedAvg(), TASK, DATA)
    with pytest.raises(ConfigurationError, match="`fit` must go on from one state, but has `state` and `ckpt_path`"):
        trainer.fit(FedAvg(), TASK, UNTOUCHED, state, Path("last.ckpt"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("max_epochs", "a run is counted in rounds, `max_rounds`"),
        ("accelerator", "`strategy=SlotStrategy("),
        ("devices", "`strategy=SlotStrategy("),
        ("check_val_every_n_epoch", "`evaluate_every`"),
        ("gradient_clip_val", "`FedAvg(clip_norm=10.0)`"),
        ("max_round", "Did you mean 'max_rounds'"),
        ("sede", "Did you mean 'seed'"),
    ],
)
def test_an_argument_of_lightnings_trainer_is_told_what_there_is_in_its_place(name: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match="FederatedTrainer has no argument") as caught:
        FederatedTrainer(max_rounds=1, **{name: 3})
    assert f"FederatedTrainer has no argument `{name}`: " in str(caught.value)
    assert remedy in str(caught.value)


def test_the_arguments_of_lightning_are_lightnings() -> None:
    theirs = set(inspect.signature(lightning.Trainer).parameters)
    ours = set(inspect.signature(FederatedTrainer).parameters)
    assert set(LIGHTNING) - {"gpus"} <= theirs  # there was one
    assert not set(LIGHTNING) & ours


@pytest.mark.parametrize("name", ["datamodule", "train_dataloaders", "max_epochs"])
def test_fit_has_not_the_arguments_of_lightnings(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`fit` has no argument `{name}`: "):
        FederatedTrainer(1).fit(FedAvg(), TASK, UNTOUCHED, **{name: DATA})


def test_subclasses_are_taken() -> None:
    class Own(FederatedTask):
        def criterion(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs.squeeze(1) - targets).square()

    assert isinstance(DATA, FederatedDataModule)
    trainer = FederatedTrainer(1, logger=False, callbacks=[])
    assert trainer.fit(FedAvg(), Own(MLP(4, 1, (4,))), DATA).round == 1
