"""What a trainer does besides `fit`: it checks, identifies, validates, tests and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Dirichlet,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedProx,
    MethodError,
    ModelCheckpoint,
    Partition,
    SlotStrategy,
    TensorData,
)
from fedlightning.loggers import run_loggers
from fedlightning.methods import AdaptiveFedProx, FedExP
from fedlightning.models import MLP

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(300, 6, generator=GENERATOR), torch.randint(0, 3, (300,), generator=GENERATOR)


def data(validation: bool = False, **options: Any) -> TensorData:
    owners = Dirichlet(alpha=1.0, num_clients=5).split(Y[:200], 0)
    held = {"val": Examples(X[200:240], Y[200:240]), "val_clients": Partition.of_sizes(torch.full((5,), 8))}
    return TensorData(
        Examples(X[:200], Y[:200]),
        owners,
        test=Examples(X[240:], Y[240:]),
        batching=Batching(16),
        **(held if validation else {}),
        **options,
    )


def task(*layers: nn.Module) -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Sequential(MLP(6, 3, (8,)), *layers), 3)


def accuracy(outputs: Tensor) -> float:
    return float((outputs.argmax(1) == Y[240:]).float().mean())


# -- validate, test, predict --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 3])
def test_the_last_and_the_best_model_of_a_run_are_scored_as_the_run_scored_them(tmp_path: Path, slots: int) -> None:
    best = ModelCheckpoint(monitor="val/accuracy")
    trainer = FederatedTrainer(6, 3, SlotStrategy(slots), [best], run_loggers(tmp_path, "run"))
    trainer.fit(FedAvg(lr=0.5), task(nn.BatchNorm1d(3)), data(validation=True))
    fresh = task(nn.BatchNorm1d(3))
    tested, validated = (score(fresh, data(validation=True), "last") for score in (trainer.test, trainer.validate))
    assert {**tested, **validated} == {name: trainer.metrics[name] for name in (*tested, *validated)}
    assert {name.split("/")[0] for name in tested} == {"test", "test_clients"}
    assert {name.split("/")[0] for name in validated} == {"val", "val_clients"}
    assert trainer.validate(fresh, data(validation=True), "best")["val/accuracy"] == best.best_model_score
    path = trainer.log_dir / "checkpoints" / "last.ckpt"
    assert FederatedTrainer().test(fresh, data(), path)["test/loss"] == pytest.approx(tested["test/loss"], rel=1e-6)


def test_without_a_checkpoint_the_task_is_scored_as_it_is() -> None:
    model, trainer = task(), FederatedTrainer()
    found = trainer.test(model, data())
    with torch.no_grad():
        outputs = model(X[240:])
    assert found["test/accuracy"] == pytest.approx(accuracy(outputs))
    assert found["test/loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, Y[240:])), rel=1e-6)


def test_the_model_that_a_method_evaluates_is_scored(tmp_path: Path) -> None:
    """FedExP evaluates the mean of the last two models, which the checkpoint holds beside x."""
    trainer = FederatedTrainer(4, callbacks=[ModelCheckpoint()], logger=run_loggers(tmp_path, "run"))
    state = trainer.fit(FedExP(lr=0.5), task(), data())
    assert not torch.equal(state.model, state.server.x)
    assert trainer.test(task(), data(), "last")["test/loss"] == trainer.metrics["test/loss"]


@pytest.mark.parametrize("slots", [1, 3])
def test_predictions_come_in_the_order_of_the_test_set(slots: int) -> None:
    model, large = task(), data()
    large.setup()
    outputs = FederatedTrainer(strategy=SlotStrategy(slots)).predict(model, large)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(X[240:]), rtol=0, atol=1e-6)
    many = TensorData(large.train, large.clients, test=Examples(X.repeat(9, 1), Y.repeat(9)))
    assert FederatedTrainer(strategy=SlotStrategy(slots)).predict(model, many).shape == (2700, 3)


def test_predictions_may_be_a_tree() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = MLP(6, 3, (8,))

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(inputs), "inputs": inputs}

    class Dictionary(Classification):
        def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
            return super().criterion(outputs["logits"], targets)

        def scores(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
            return {"loss": self.criterion(outputs, targets)}

    found = FederatedTrainer().predict(Dictionary(Two(), 3), data())
    assert torch.equal(found["inputs"], X[240:])
    assert found["logits"].shape == (60, 3)


def test_a_split_that_is_not_there_cannot_be_validated_on() -> None:
    with pytest.raises(
        ConfigurationError, match="must have a validation split that holds an example, but has none; give one"
    ):
        FederatedTrainer().validate(task(), data())


def test_a_checkpoint_that_is_not_there_or_another_models_is_refused(tmp_path: Path) -> None:
    trainer = FederatedTrainer(1, callbacks=[ModelCheckpoint()], logger=run_loggers(tmp_path, "run"))
    with pytest.raises(
        ConfigurationError, match='`ckpt_path="best"` must be that of a run\'s own folder, but there is no'
    ):
        trainer.test(task(), data(), "best")
    trainer.fit(FedAvg(), task(), data())
    with pytest.raises(ConfigurationError, match="A state must be one of the model that takes it up"):
        trainer.test(task(nn.Linear(3, 3)), data(), "last")


# -- check and identify ---------------------------------------------------------------------------------------------------
class Unhappy(Callback):
    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        raise AssertionError("a check begins no run")


def test_a_check_leaves_nothing_and_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, model = FederatedTrainer(2, 3, callbacks=[Unhappy()]), task()
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.check(FedProx(mu=0.1), model, data())
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (trainer.round, trainer.metrics, trainer.num_clients) == (0, {}, 0)


class Pairs(Classification):
    """Scores a batch by one number, which an evaluation refuses."""

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": self.criterion(outputs, targets).mean()}


def test_a_check_evaluates_a_little_and_asks_the_callbacks() -> None:
    trainer = FederatedTrainer(2, callbacks=[ModelCheckpoint()], logger=False)
    with pytest.raises(ConfigurationError, match="`scores` of the task must be per example"):
        trainer.check(FedAvg(), Pairs(MLP(6, 3), 3), data())
    with pytest.raises(ConfigurationError, match=r"`monitor` of ModelCheckpoint must be a metric .* 'round/time'"):
        FederatedTrainer(callbacks=[ModelCheckpoint(monitor="round/time")]).check(FedAvg(), task(), data())


class Forgets(FedAvg):
    def on_aggregate(self, server: Any, mean: Any, round: Any) -> Any:
        return mean


@pytest.mark.parametrize(
    ("method", "options", "fault"),
    [
        (FedAvg(), {"clients_per_round": 9}, "`clients_per_round` must be in 1…5, but is 9"),
        (Forgets(), {}, "on_aggregate"),
        (AdaptiveFedProx(), {}, "`evaluate_on` of FederatedTrainer must hold 'train' for AdaptiveFedProx"),
        (FedAvg(), {"strategy": SlotStrategy(1, runner="cuda_graph")}, "cuda_graph"),
    ],
)
def test_a_check_refuses_what_fit_refuses(method: FedAvg, options: dict[str, Any], fault: str) -> None:
    trainer = FederatedTrainer(2, callbacks=[], logger=False, **options)
    for act in (trainer.check, trainer.fit):
        with pytest.raises((ConfigurationError, MethodError), match=fault):
            act(method, task(), data())


def test_what_identifies_a_run_is_what_its_checkpoint_holds() -> None:
    trainer = FederatedTrainer(1, 3, callbacks=[], logger=False)
    identity = trainer.identify(FedProx(mu=0.1), task(), data())
    assert trainer.fit(FedProx(mu=0.1), task(), data()).identity == identity
    others = [
        FederatedTrainer(1, 3, seed=1).identify(FedProx(mu=0.1), task(), data()),
        trainer.identify(FedProx(mu=0.2), task(), data()),
        trainer.identify(FedProx(mu=0.1), task(nn.Tanh()), data()),
        FederatedTrainer(1, 4).identify(FedProx(mu=0.1), task(), data()),
    ]
    assert all(other != identity for other in others)
    assert FederatedTrainer(9, 3).identify(FedProx(mu=0.1), task(), data()) == identity
