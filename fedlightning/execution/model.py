"""A slot's own copy of the task's model, as functions of the flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlightning.errors import MethodError
from fedlightning.execution.numerics import Autocast, channels_last
from fedlightning.layout import Layout, fill_buffers, flatten_buffers, persistent_buffers
from fedlightning.method import Batch
from fedlightning.models.dropout import dropout_key_names, key_dropout, set_dropout_key
from fedlightning.task import FederatedTask


class _Apply(nn.Module):
    """Makes any function of the task the forward of a module, which is what `functional_call` swaps parameters for."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, name: str, argument: Any) -> Any:
        return getattr(self.task, name)(argument)


class Replica:
    """The task's module with its parameters and buffers under our control; used by one thread alone.

    Args:
        task: the task; it is copied, and its dropout is made a function of the step's key.
        layout: where its parameters lie in w.
        device: where the copy lives.
        precision: what the model is computed in, one of `Precision`.
        moves: whether a forward pass in training changes the buffers, as batch norm does.
    """

    def __init__(
        self,
        task: FederatedTask,
        layout: Layout,
        device: torch.device,
        precision: str = "32-true",
        moves: bool = False,
    ) -> None:
        self.task = key_dropout(task).to(device).train()
        self.layout, self.device = layout, device
        self._keys = dropout_key_names(self.task)
        self._apply = _Apply(self.task)
        self._autocast = Autocast(precision, device)
        self._names = list(persistent_buffers(self.task))
        self._moves, self._passed = moves, False
        self._whose = f"The loss of {type(task).__name__}"
        self._params = [p for p in self.task.parameters() if p.requires_grad]

    @property
    def _buffers(self) -> list[Tensor]:
        """The buffers, which a module may exchange for others."""
        return [self.task.get_buffer(name) for name in self._names]

    def load(self, w: Tensor, buffers: Tensor) -> None:
        """Set the module's parameters and buffers."""
        self._point_to(w)
        self.load_buffers(buffers)

    def load_buffers(self, buffers: Tensor) -> None:
        """Set the module's buffers."""
        fill_buffers(self._buffers, buffers)

    def buffers(self) -> Tensor:
        """The module's buffers, flat [Q] (float64)."""
        return flatten_buffers(self._buffers, self.device)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put the module's buffers back as they were, after trial steps."""
        before = [buffer.clone() for buffer in self._buffers]
        yield
        for buffer, values in zip(self._buffers, before, strict=True):
            buffer.copy_(values)

    def release(self) -> None:
        """Let go of the parameters, so that their memory is free; `load` or `gradient` sets them again."""
        for parameter in self._params:
            parameter.data = parameter.data.new_empty(0)

    def begin_step(self) -> None:
        """Let the next forward pass move the buffers; those after it, until the next call, leave them as they are.

        So batch norm counts one batch for each local step, however many gradients the method asks for (FedSAM asks for two).
        """
        self._passed = False

    def _pass(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """A forward pass of a local step."""
        first, self._passed = not self._passed, True
        if first or not self._moves:
            return run(*arguments)
        before = [buffer.clone() for buffer in self._buffers]
        result = run(*arguments)
        for buffer, values in zip(self._buffers, before, strict=True):
            # By `data`, or autograd would take it for a write to what the backward pass needs: batch norm keeps its statistics
            # for that pass, which reads them in evaluation mode only.
            buffer.data.copy_(values)
        return result

    def losses(self, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at the parameters that are set."""
        result: Tensor = self._autocast(self._losses, batch)
        return result

    def outputs(self, inputs: Tensor) -> Any:
        """The model's outputs [B, …] at the parameters that are set."""
        return self._autocast(self._outputs, inputs)

    def gradient(self, w: Tensor, batch: Batch, key: Tensor, padded: bool = False) -> tuple[Tensor, Tensor]:
        """Gradient [P] and value [] of the mean loss at w, by plain backward through the module.

        Args:
            w: the parameters.
            batch: the examples.
            key: of the masks of dropout.
            padded: whether a place of the batch may be empty.
        """
        self._point_to(w)
        if self._keys:
            set_dropout_key(self.task, key)
        with torch.enable_grad():
            losses = self._pass(self.losses, batch) if self._moves else self.losses(batch)
            loss = mean_loss(losses, batch.mask, padded, self._whose)
            gradients = torch.autograd.grad(loss, self._params, materialize_grads=True, allow_unused=True)
        return self.layout.flatten(gradients), loss.detach()

    def _losses(self, batch: Batch) -> Tensor:
        return self.task.loss(Batch(channels_last(batch.inputs), channels_last(batch.targets), batch.mask))

    def _outputs(self, inputs: Tensor) -> Any:
        return self.task(channels_last(inputs))

    def _point_to(self, w: Tensor) -> None:
        """Make the module's parameters views of w; nothing is copied, and the module only reads them."""
        parts = w.split_with_sizes(self.layout.sizes)
        for parameter, part, shape in zip(self._params, parts, self.layout.shapes, strict=True):
            parameter.data = part.view(shape)

    def at(self, key: Tensor) -> FunctionalModel:
        """The model as a pure function of w, with its dropout at `key`."""
        keys = {f"task.{name}": key for name in self._keys}
        return FunctionalModel(partial(self._pass, self._autocast, functional_call, self._apply), self.layout, keys)


class FunctionalModel:
    """The `FlatModel` that a method's `objective` is given; differentiable in w, and may be vmapped."""

    def __init__(self, apply: Callable[..., Any], layout: Layout, keys: dict[str, Tensor]) -> None:
        self._apply, self._layout, self._keys = apply, layout, keys

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The model's outputs [B, …] at w [P]."""
        return self._run(w, "forward", inputs)

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at w [P]."""
        return self._run(w, "loss", batch)

    def _run(self, w: Tensor, name: str, argument: Any) -> Tensor:
        parameters = {f"task.{name}": value for name, value in self._layout.unflatten(w).items()}
        swapped = {**parameters, **self._keys}
        result: Tensor = self._apply(swapped, (name, argument))
        return result


def mean_loss(losses: Tensor, mask: Tensor, padded: bool, whose: str) -> Tensor:
    """The mean [] of losses [B] over the places that the mask [B] fills.

    Args:
        losses: one for each place.
        mask: which places are filled.
        padded: whether any may be empty.
        whose: what gave the losses, for the message.

    Raises:
        MethodError: they are not one for each place: a mean of their own, or [B, B] that broadcasting made.
    """
    if losses.shape != mask.shape:
        raise MethodError(
            f"{whose} must be one number for each of the {len(mask)} examples of a batch [{len(mask)}], but is "
            f'{list(losses.shape)}; reduce over everything but the first dimension (`reduction="none"`), and give outputs and '
            "targets one shape."
        )
    return (losses * mask).sum() / mask.sum().clamp(min=1) if padded else losses.mean()
