"""The trained model: from the state that a run returns, and from its checkpoint."""

from pathlib import Path

import pytest
import torch
from small_runs import fit
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTask,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    Partition,
    RoundState,
    State,
    TensorData,
)
from fedlightning.methods import FedExP

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(80, 4, generator=GENERATOR) * 3 + 20
LABELS = ((INPUTS - 20) @ torch.randn(4, 3, generator=GENERATOR)).argmax(1)


def normed(frozen: int = 0) -> nn.Sequential:
    """Two layers, batch norm before each; the running statistics are most of what it learns here."""
    torch.manual_seed(frozen)
    first = nn.Linear(4, 6)
    first.requires_grad_(not frozen)
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(4), first, nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def full_run(task: FederatedTask, method: FedMethod | None = None, folder: Path | None = None) -> FederatedTrainer:
    """Eight rounds with two of four clients, evaluated."""
    data = TensorData(Examples(INPUTS, LABELS), Partition.of(torch.arange(80).split(20)), batching=Batching(10))
    callbacks = [ModelCheckpoint(folder)] if folder else []
    how = {"clients_per_round": 2, "evaluate_every": 1, "callbacks": callbacks}
    return fit(method or FedAvg(lr=0.2), task, data, 8, **how)


def accuracy(task: FederatedTask) -> float:
    return float((task(INPUTS).argmax(1) == LABELS).float().mean())


def parts(task: FederatedTask) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in task.state_dict().items() if not name.startswith("metrics")}


@pytest.mark.parametrize("method", [FedAvg(lr=0.2), FedExP(lr=0.2)])
def test_the_trained_task_is_the_one_that_was_evaluated(method: FedMethod, tmp_path: Path) -> None:
    task = Classification(normed())
    before = {name: tensor.clone() for name, tensor in parts(task).items()}
    trainer = full_run(task, method, tmp_path)
    logged, trained = trainer.metrics["test/accuracy"], task.with_state(trainer.state)
    assert not trained.training
    assert accuracy(trained) == pytest.approx(logged, abs=1e-7)
    assert accuracy(task.with_parameters(trainer.state.server.x).eval()) != pytest.approx(logged, abs=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts(task).items())
    assert int(trained.state_dict()["model.0.num_batches_tracked"]) > 0
    loaded = Classification.load_from_checkpoint(str(tmp_path / "last.ckpt"), model=normed())
    assert isinstance(loaded, Classification)
    assert not loaded.training
    assert all(torch.equal(tensor, parts(loaded)[name]) for name, tensor in parts(trained).items())


def test_a_method_that_evaluates_another_point_gives_that_one() -> None:
    state = full_run(Classification(nn.Linear(4, 3)), FedExP(lr=0.05)).state
    assert torch.equal(state.model, (state.server.previous + state.server.x) / 2)
    assert not torch.equal(state.model, state.server.x)
    trained = Classification(nn.Linear(4, 3)).with_state(state)
    assert torch.equal(nn.utils.parameters_to_vector(trained.parameters()), state.model)


def test_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    state = full_run(Classification(normed(frozen=5)), folder=tmp_path).state
    Classification(normed(frozen=5)).with_state(state)
    wrong = {
        "`frozen` is": normed(frozen=6),
        r"`layout` is .*\(entry 2\) in the state and .* in the model of Classification": normed(),
        "`buffers` is": nn.Sequential(*normed(frozen=5), nn.BatchNorm1d(3, affine=False)),
        "`dtype` is 'torch.float32' in the state and 'torch.float64'": normed(frozen=5).double(),
    }
    for message, model in wrong.items():
        for take in (
            lambda model: Classification(model).with_state(state),
            lambda model: Classification.load_from_checkpoint(tmp_path / "last.ckpt", model=model),
        ):
            with pytest.raises(ConfigurationError, match=message) as found:
                take(model)
            assert "\n" not in str(found.value)


def test_a_state_of_ones_own_is_checked_by_its_sizes() -> None:
    task = Classification(nn.Linear(4, 3))
    trained = task.with_state(RoundState(0, State(x=torch.arange(15.0))))
    assert torch.equal(nn.utils.parameters_to_vector(trained.parameters()), torch.arange(15.0))
    for x in (torch.zeros(14), torch.zeros(15, dtype=torch.float64), torch.zeros(1, 15)):
        with pytest.raises(
            ConfigurationError, match=r"holds .* parameters of .* and the model of Classification has \[15\]"
        ):
            task.with_state(RoundState(0, State(x=x)))
    with pytest.raises(ConfigurationError, match=r"\[2\] entries of buffers"):
        task.with_state(RoundState(0, State(x=torch.zeros(15)), buffers=torch.zeros(2, dtype=torch.float64)))


def test_what_makes_no_task_is_refused_in_one_line(tmp_path: Path) -> None:
    full_run(Classification(nn.Linear(4, 3)), folder=tmp_path)
    for arguments in ({}, {"model": nn.Linear(4, 3), "depth": 3}):
        with pytest.raises(ConfigurationError, match="`load_from_checkpoint` of Classification must be given what the"):
            Classification.load_from_checkpoint(tmp_path / "last.ckpt", **arguments)
    with pytest.raises(ConfigurationError, match="there is no file"):
        Classification.load_from_checkpoint(tmp_path / "none.ckpt", model=nn.Linear(4, 3))


def test_a_checkpoint_of_lightning_is_loaded_as_lightning_does(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    task = Classification(nn.Linear(4, 3))
    data = TensorData(Examples(INPUTS, LABELS), Partition.of(torch.arange(80).split(20)), batching=Batching(10))
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "centralised.ckpt")
    loaded = Classification.load_from_checkpoint(tmp_path / "centralised.ckpt", model=nn.Linear(4, 3))
    assert torch.equal(loaded.state_dict()["model.weight"], task.model.weight)
