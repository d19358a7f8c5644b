"""A slot's own copy of the task's model, as functions of the flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlightning.method import Batch
from fedlightning.models.dropout import dropout_key_names, key_dropout, set_dropout_key
from fedlightning.task import FederatedTask
from fedlightning.vector import Layout


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
    """

    def __init__(self, task: FederatedTask, layout: Layout, device: torch.device) -> None:
        self.task = key_dropout(task).to(device).train()
        self.layout, self.device = layout, device
        self._keys = dropout_key_names(self.task)
        self._apply = _Apply(self.task)
        self._buffers = persistent_buffers(self.task)
        self._params = [p for p in self.task.parameters() if p.requires_grad]

    def load(self, w: Tensor, buffers: Tensor) -> None:
        """Set the module's parameters and buffers."""
        self._point_to(w)
        start = 0
        for buffer in self._buffers:
            values = buffers[start : start + buffer.numel()].view(buffer.shape)
            buffer.copy_(values if buffer.is_floating_point() else values.round())
            start += buffer.numel()

    def buffers(self) -> Tensor:
        """The module's buffers, flat [Q] (float64)."""
        return flatten_buffers(self._buffers, self.device)

    def gradient(self, w: Tensor, batch: Batch, key: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [P] and value [] of the mean loss at w, by plain backward through the module."""
        self._point_to(w)
        if self._keys:
            set_dropout_key(self.task, key)
        with torch.enable_grad():
            loss = self.task.loss(tuple(channels_last(tensor) for tensor in batch)).mean()
            gradients = torch.autograd.grad(loss, self._params, materialize_grads=True, allow_unused=True)
        return self.layout.flatten(gradients), loss.detach()

    def _point_to(self, w: Tensor) -> None:
        """Make the module's parameters views of w; nothing is copied, and the module only reads them."""
        for parameter, view in zip(self._params, self.layout.unflatten(w).values(), strict=True):
            parameter.data = view

    def at(self, key: Tensor) -> FunctionalModel:
        """The model as a pure function of w, with its dropout at `key`."""
        return FunctionalModel(self._apply, self.layout, {f"task.{name}": key for name in self._keys})


class FunctionalModel:
    """The `FlatModel` that a method's `objective` is given; differentiable in w, and may be vmapped."""

    def __init__(self, apply: nn.Module, layout: Layout, keys: dict[str, Tensor]) -> None:
        self._module, self._layout, self._keys = apply, layout, keys

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The model's outputs [B, …] at w [P]."""
        return self._run(w, "forward", inputs)

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at w [P]."""
        return self._run(w, "loss", batch)

    def _run(self, w: Tensor, name: str, argument: Any) -> Tensor:
        parameters = {f"task.{name}": value for name, value in self._layout.unflatten(w).items()}
        result: Tensor = functional_call(self._module, {**parameters, **self._keys}, (name, argument))
        return result


def channels_last(tensor: Tensor) -> Tensor:
    """Images [B, C, H, W] on a CPU in the layout that its convolutions are a quarter faster in; others as they are."""
    if tensor.dim() != 4 or not tensor.is_floating_point() or tensor.device.type != "cpu":
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def persistent_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that belong to the model (running statistics, tables), in the module's order."""
    kept = module.state_dict(keep_vars=True)
    return [buffer for name, buffer in module.named_buffers() if name in kept]


def flatten_buffers(buffers: Sequence[Tensor], device: torch.device) -> Tensor:
    """Buffers as one vector [Q] (float64)."""
    flat = [buffer.detach().reshape(-1).to(torch.float64) for buffer in buffers]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64, device=device)
