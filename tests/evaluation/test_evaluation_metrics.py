"""Metrics of any shape are logged by entry, in a federated run as in a central one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecisionRecallCurve,
)

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    EarlyStopping,
    Examples,
    FedAvg,
    FederatedTrainer,
    Partition,
    TensorData,
)
from fedlightning.loggers import run_loggers

pytestmark = pytest.mark.quick

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, LABELS = torch.randn(90, 6, generator=GENERATOR), torch.randint(0, 3, (90,), generator=GENERATOR)


class Mapped(Metric):
    """Gives a tree."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> Any:
        return {"low": torch.tensor(1.0), "both": [torch.tensor([2.0]), 3], "none": torch.zeros(0)}


METRICS: dict[str, Metric] = {
    "f1": MulticlassF1Score(3, average="macro"),
    "auroc": MulticlassAUROC(3),
    "accuracies": MulticlassAccuracy(3, average=None),
    "confusion": MulticlassConfusionMatrix(3),
}


def data() -> TensorData:
    return TensorData(Examples(INPUTS, LABELS), Partition.of(torch.arange(90).split(15)), batching=Batching(15))


def task(**metrics: Metric) -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Linear(6, 3), metrics=metrics)


def test_each_entry_is_what_the_metric_gives_for_the_trained_model(tmp_path: Path) -> None:
    trainer = FederatedTrainer(2, callbacks=[], logger=run_loggers(tmp_path, "a"))
    state = trainer.fit(FedAvg(lr=0.5), task(**METRICS), data())
    outputs = task().with_state(state)(INPUTS).detach()
    for name, metric in METRICS.items():
        again = metric.clone()
        again.update(outputs, LABELS)
        value = again.compute()
        expected = {f"test/{name}": float(value)} if value.dim() == 0 else {}
        for k in range(3):
            expected |= {f"test/{name}_{k}": float(value[k])} if value.dim() == 1 else {}
            expected |= {f"test/{name}_{k}_{j}": float(value[k, j]) for j in range(3)} if value.dim() == 2 else {}
        found = {key: value for key, value in trainer.metrics.items() if key.startswith(f"test/{name}")}
        assert found == pytest.approx(expected)
    assert "test/confusion_2_1" in (tmp_path / "a" / "metrics.csv").read_text().splitlines()[0]


def test_a_tree_of_numbers_is_logged_and_a_very_large_one_is_left_out_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = {"tree": Mapped(), "curve": MulticlassPrecisionRecallCurve(3, thresholds=200)}
    trainer = FederatedTrainer(1, callbacks=[EarlyStopping("test/tree_low")], logger=False)
    trainer.fit(FedAvg(), task(**metrics), data())
    found = {key: value for key, value in trainer.metrics.items() if key.startswith(("test/tree", "test/curve"))}
    assert found == {"test/tree_low": 1.0, "test/tree_both_0": 2.0, "test/tree_both_1": 3.0}
    assert caplog.text.count("The metric 'curve' has 1,406 numbers, more than 256, and is left out") == 1


def test_a_metric_that_does_not_fit_is_refused_before_the_first_round() -> None:
    trainer = FederatedTrainer(1, callbacks=[], logger=False)
    with pytest.raises(ConfigurationError, match=r"The metrics of Classification \(accuracy, f1\) must take") as found:
        trainer.fit(FedAvg(), task(f1=MulticlassF1Score(2)), data())
    assert trainer.round == 0
    assert "\n" not in str(found.value)


def test_the_central_baseline_logs_the_same_names(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    model = task(**METRICS)
    trainer.fit(model, data())
    trainer.test(model, data(), verbose=False)
    federated = FederatedTrainer(1, callbacks=[], logger=False)
    federated.fit(FedAvg(), task(**METRICS), data())
    assert {name for name in trainer.callback_metrics if name.startswith("test/")} == {
        name for name in federated.metrics if name.startswith("test/")
    }
    counts = sum(float(value) for name, value in trainer.callback_metrics.items() if "confusion" in name)
    assert counts == len(LABELS)


# -- a model of several outputs -----------------------------------------------------------------------------------------
class Heads(nn.Module):
    """Logits, and something else in whatever form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.logits = form, nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Any:
        logits = self.logits(inputs)
        return {"tuple": (logits, logits.sum(1)), "dict": {"logits": logits, "none": None}, "list": [logits]}[self.form]


class FirstHead(Classification):
    """Looks at the logits."""

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().criterion(_logits(outputs), targets)

    def scores(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        return super().scores(_logits(outputs), targets)

    def update_metrics(self, metrics: Any, outputs: Any, targets: Tensor) -> None:
        super().update_metrics(metrics, _logits(outputs), targets)


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return found


@pytest.mark.parametrize("form", ["tuple", "dict", "list"])
def test_a_model_may_give_several_outputs(form: str) -> None:
    def evaluated(model: nn.Module, kind: type[Classification]) -> dict[str, float]:
        trainer = FederatedTrainer(2, callbacks=[], logger=False)
        torch.manual_seed(0)
        model.load_state_dict({name: torch.randn_like(p) for name, p in model.state_dict().items()})
        trainer.fit(FedAvg(), kind(model, 3), data())
        return {name: value for name, value in trainer.metrics.items() if not name.startswith("throughput")}

    class Plain(Heads):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.logits(inputs)

    assert evaluated(Heads(form), FirstHead) == evaluated(Plain(form), Classification)
