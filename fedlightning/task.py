"""What is learned: a model with a per-example loss and its metrics."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from os import PathLike
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils import _pytree
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError

from fedlightning._checked import checked
from fedlightning.errors import ConfigurationError, shown
from fedlightning.layout import Layout, fill_buffers, identify_model, persistent_buffers
from fedlightning.method import Batch
from fedlightning.server.checkpoint import RoundState, check_model, is_checkpoint, load_checkpoint


class FederatedTask(LightningModule):
    """A model, its per-example loss and its metrics; also a `LightningModule` that a plain `Trainer` trains centrally.

    Subclass it and define `criterion`. The loss is per example because clients of different sizes run side by side and
    unfilled places of a batch are masked.

    Args:
        model: any `nn.Module`; its trainable parameters are the vector w that methods see.
        metrics: torchmetrics by name, updated with (outputs, targets) over all examples of a split; one of several numbers, such
            as the accuracy of each class, is logged by entry, `test/accuracies_0` and so on.
        lr: learning rate of centralised training alone; a federated run takes the method's.
    """

    coupled: bool = False
    """Whether the loss of one example depends on the others of its batch, e.g. a contrast. Such a task trains one client at
    a time, on batches without an empty place. A trial before the first round finds most that do so unsaid."""

    @checked(lr="(0, inf)")
    def __init__(self, model: nn.Module, metrics: dict[str, Metric] | None = None, lr: float = 0.1) -> None:
        super().__init__()
        for name in metrics or {}:
            if "." in name or name == "loss":
                raise ConfigurationError(
                    f"The `metrics` of {type(self).__name__} must have names without a dot, none of them 'loss', but one is "
                    f"{name!r}."
                )
        self.model = model
        self.metrics = MetricCollection(cast(Any, metrics or {}))
        self.lr = lr

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per-example losses [B]."""
        raise ConfigurationError(
            f"{type(self).__name__} must define `criterion(outputs, targets)` -> losses [B], but does not; see `Classification`."
        )

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Per-example numbers [B] by name that are averaged over each client's examples, the loss among them."""
        return {"loss": self.criterion(outputs, targets)}

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, targets: Tensor) -> None:
        """Feed a batch to the metrics."""
        for metric in metrics.values():
            metric.update(outputs, targets)

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Check the data against the task before the first round; raise `ConfigurationError` if they do not fit."""

    def check_outputs(self, outputs: Any, targets: Tensor) -> None:
        """Check what the model gives for a batch in the same way; not called where the task defines its own `loss`."""

    def _check_shape(self, outputs: Any, wanted: list[int], what: str, remedy: str) -> None:
        """Refuse outputs of another shape, unless a subclass elsewhere says what becomes of them."""
        found = list(outputs.shape) if isinstance(outputs, Tensor) else shown(outputs)
        if found != wanted and type(self).criterion.__module__.startswith("fedlightning."):
            raise ConfigurationError(
                f"Outputs of {type(self).__name__} must be {what}, {wanted}, but are {found}; {remedy}."
            )

    def forward(self, inputs: Tensor) -> Any:
        """The model's outputs [B, …]."""
        return self.model(inputs)

    def loss(self, batch: Batch) -> Tensor:
        """Per-example losses [B] of a batch, of which inputs and targets are looked at; an empty place may have any."""
        inputs, targets = batch[:2]
        return self.criterion(self(inputs), targets)

    @checked()
    def with_state(self, state: RoundState) -> Self:
        """The trained task: a copy with the parameters and buffers that a run ended with, in evaluation mode.

        It is the model that the run evaluates, so its accuracy on the test set is the run's `test/accuracy`. Predict with
        `trained(data.preprocess(inputs))`.

        Args:
            state: what `FederatedTrainer.fit` returned.

        Raises:
            ConfigurationError: the state is one of another model, or was trained on other frozen parameters.
        """
        check_model(state, identify_model(self), type(self).__name__)
        task = self.with_parameters(state.model)
        fill_buffers(persistent_buffers(task).values(), state.buffers)
        return task.eval()

    @classmethod
    @checked()
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is no plain classmethod
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The trained task from a checkpoint, in evaluation mode.

        E.g. `Classification.load_from_checkpoint(path, model=LeNet(3, 10))`. A checkpoint of Lightning's own `Trainer`, such
        as the centralised baseline's, is loaded as Lightning does.

        Args:
            checkpoint_path: a checkpoint of a federated run, or of Lightning.
            map_location: the device to load to.
            hparams_file: for a checkpoint of Lightning alone.
            strict: the same.
            weights_only: the same.
            **kwargs: what the task is made of: its model, and its other arguments.

        Raises:
            ConfigurationError: the file is damaged, the arguments make no task, or they make another model than the one that
                was trained.
        """
        if not is_checkpoint(checkpoint_path):
            load, path = super().load_from_checkpoint, str(checkpoint_path)
            return load(path, map_location, hparams_file, strict, weights_only, **kwargs)
        try:
            inspect.signature(cls).bind(**kwargs)
        except TypeError as error:
            raise ConfigurationError(
                f"`load_from_checkpoint` of {cls.__name__} must be given what the task was made of, but {error}; give e.g. "
                "`model=LeNet(3, 10)`."
            ) from None
        task = cls(**kwargs).with_state(load_checkpoint(checkpoint_path)[0])
        return task.to(map_location) if isinstance(map_location, str | torch.device) else task

    @checked()
    def with_parameters(self, x: Tensor) -> Self:
        """A copy whose trainable parameters are x [P], and whose buffers are this task's; `with_state` gives a trained one."""
        task = copy.deepcopy(self)
        layout = Layout.of(task)
        if x.shape != (layout.size,) or x.dtype != layout.dtype or x.is_meta:
            raise ConfigurationError(
                f"`x` of {type(self).__name__}.with_parameters must be the model's parameters, "
                f"{str(layout.dtype).removeprefix('torch.')}[{layout.size}], but is {shown(x)}; it belongs to another model."
            )
        with torch.no_grad():
            for name, value in layout.unflatten(x).items():
                task.get_parameter(name).copy_(value)
        return task

    # -- centralised training under lightning.Trainer -----------------------------------------------------------------
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch (inputs, targets)."""
        loss = self.loss(Batch.full(*batch)).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the mean loss as `val/loss`, and feed the metrics."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._end_evaluation("val")

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the mean loss as `test/loss`, and feed the metrics."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._end_evaluation("test")

    def _evaluate(self, split: str, batch: Sequence[Tensor]) -> None:
        inputs, targets = batch
        outputs = self(inputs)
        self.log(f"{split}/loss", self.criterion(outputs, targets).mean(), batch_size=len(targets))
        self.update_metrics(self.metrics, outputs, targets)

    def _end_evaluation(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in computed(self.metrics).items()})
        self.metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, which is what the clients run."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


_MOST_ENTRIES = 256


def computed(metrics: MetricCollection) -> dict[str, float]:
    """The values of metrics by name, one of several numbers by entry: `f1_0`, `confusion_0_1`, `rouge_fmeasure`.

    One of more than 256 numbers is left out, with a line: each would be a curve of its own.
    """
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        leaves = _pytree.tree_leaves(value)
        count = sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves)
        if count > _MOST_ENTRIES:
            _tell_left_out(name, count)
        else:
            found.update(_entries(str(name), value))
    return found


def _entries(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in a tree of tensors."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, Tensor) and value.numel() != 1:
        items = enumerate(value.unbind()) if value.dim() else ()
    else:
        yield name, float(value)
        return
    for key, each in items:
        yield from _entries(f"{name}_{key}", each)


@cache
def _tell_left_out(name: str, count: int) -> None:
    rank_zero_info(
        f"The metric {name!r} has {count:,} numbers, more than {_MOST_ENTRIES}, and is left out of what is logged."
    )


def _check_labels(targets: Tensor, classes: int, owner: str) -> None:
    kind = str(targets.dtype).removeprefix("torch.")
    wanted = f"Labels must be integers in 0…{classes - 1} for {owner}(classes={classes}), but the data hold"
    if targets.is_floating_point() or targets.is_complex():
        remedy = "`targets.argmax(1)`" if targets.dim() == 2 else "`targets.to(torch.int64)`"
        raise ConfigurationError(
            f"{wanted} {kind} values {list(targets.shape)}; use {remedy} if they are classes, else `Regression`."
        )
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)
    if low < 0 or high >= classes:
        remedy = f"set `classes={high + 1}` or relabel" if low >= 0 else "leave out what has no label (`targets >= 0`)"
        raise ConfigurationError(f"{wanted} {kind} values in {low}…{high}; {remedy}.")


def _as_index(labels: Tensor) -> Tensor:
    """Labels in a dtype that torch's cross-entropy takes."""
    return labels if labels.dtype in (torch.int64, torch.uint8) else labels.to(torch.int64)


class Classification(FederatedTask):
    """Softmax cross-entropy over classes.

    Args:
        model: gives logits [B, classes].
        classes: number of classes; None reads it from the model's last layer.
        metrics: torchmetrics by name, beside `accuracy`.
        lr: learning rate of centralised training alone.
    """

    @checked(classes="[2, inf)")
    def __init__(
        self, model: nn.Module, classes: int | None = None, metrics: dict[str, Metric] | None = None, lr: float = 0.1
    ) -> None:
        classes = classes or _last_width(model, type(self).__name__)
        super().__init__(model, {"accuracy": MulticlassAccuracy(classes, average="micro"), **(metrics or {})}, lr)
        self.classes = classes

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [B]."""
        return F.cross_entropy(outputs, _as_index(targets), reduction="none")

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and correctness [B]."""
        return {**super().scores(outputs, targets), "accuracy": (outputs.argmax(1) == targets).to(torch.float32)}

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Refuse labels outside the classes, and several for an example."""
        _check_labels(targets, self.classes, type(self).__name__)
        if type(self).criterion is Classification.criterion and targets.dim() != 1:
            remedy = (
                "use `targets.squeeze(1)`" if targets.shape[1:] == (1,) else "use `NextToken`, or define `criterion`"
            )
            raise ConfigurationError(
                f"Labels of {type(self).__name__} must be one for each example [n], but are {list(targets.shape)}; {remedy}."
            )

    def check_outputs(self, outputs: Any, targets: Tensor) -> None:
        """Refuse another number of outputs than classes."""
        tokens = isinstance(self, NextToken) and targets.dim() > 1
        wanted = [*targets.shape[: 1 + tokens], self.classes]
        self._check_shape(outputs, wanted, "logits", "set `classes` to the model's outputs, or change its last layer")


class NextToken(Classification):
    """Next-token prediction: logits [B, V] with targets [B], or logits [B, T, V] with targets [B, T].

    The loss of an example is the mean over its tokens.
    """

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [B]."""
        losses = F.cross_entropy(outputs.flatten(0, -2), _as_index(targets.flatten()), reduction="none")
        return losses.view(targets.shape).flatten(1).mean(1) if targets.dim() > 1 else losses

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and share of correct tokens [B]."""
        correct = (outputs.argmax(-1) == targets).to(torch.float32)
        accuracy = correct.flatten(1).mean(1) if targets.dim() > 1 else correct
        return {"loss": self.criterion(outputs, targets), "accuracy": accuracy}

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, targets: Tensor) -> None:
        """Feed all tokens of a batch to the metrics."""
        super().update_metrics(metrics, outputs.flatten(0, -2), targets.flatten())


class Regression(FederatedTask):
    """Mean squared error, the mean over an example's outputs."""

    @checked()
    def __init__(self, model: nn.Module, metrics: dict[str, Metric] | None = None, lr: float = 0.1) -> None:
        super().__init__(model, {"mae": MeanAbsoluteError(), **(metrics or {})}, lr)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error [B]."""
        return (outputs - targets).square().flatten(1).mean(1)

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Refuse targets without an output dimension, which would broadcast against the outputs."""
        if targets.dim() < 2:
            raise ConfigurationError(
                f"Targets of Regression must be [n, outputs], but are {list(targets.shape)}; use `targets[:, None]`."
            )

    def check_outputs(self, outputs: Any, targets: Tensor) -> None:
        """Refuse outputs of another shape than the targets, which would broadcast."""
        self._check_shape(
            outputs, list(targets.shape), "as the targets are", "change the model's last layer, or the targets"
        )


class Reconstruction(Regression):
    """Mean squared error of an autoencoder's outputs to the inputs, which its data module gives as targets.

    Take a data module with `target="image"`, e.g. `EMNIST(target="image")`. Outputs may be flat.
    """

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error [B], the mean over an image's entries.

        Raises:
            ConfigurationError: outputs and targets do not have as many entries.
        """
        if outputs[0].shape.numel() != targets[0].shape.numel():
            raise ConfigurationError(
                f"Outputs of Reconstruction must have as many entries as the targets, but are {list(outputs.shape)} for "
                f"{list(targets.shape)}; give the data module `target='image'`, or the autoencoder the images' shape."
            )
        return super().criterion(outputs.flatten(1), targets.flatten(1))

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, targets: Tensor) -> None:
        """Feed all entries of a batch to the metrics."""
        super().update_metrics(metrics, outputs.flatten(), targets.flatten())

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Nothing: the labels that lie in memory are no targets here."""

    def check_outputs(self, outputs: Any, targets: Tensor) -> None:
        """Nothing: `criterion` looks at them."""


def _last_width(model: nn.Module, owner: str) -> int:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigurationError(
            f"`classes` must be given, since {type(model).__name__} has no linear layer to read it from."
        )
    if linear[-1].out_features < 2:
        raise ConfigurationError(
            f"The model of {owner} must have an output for each class, but its last linear layer has "
            f"{linear[-1].out_features}; give it two, or take `Regression`."
        )
    return linear[-1].out_features
