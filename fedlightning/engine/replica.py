"""A slot's own copy of the task's model, as functions of the flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlightning.engine.precision import Autocast, channels_last
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
        precision: what the model is computed in, one of `Precision`.
    """

    def __init__(self, task: FederatedTask, layout: Layout, device: torch.device, precision: str = "32-true") -> None:
        self.task = key_dropout(task).to(device).train()
        self.layout, self.device = layout, device
        self._keys = dropout_key_names(self.task)
        self._apply = _Apply(self.task)
        self._autocast = Autocast(precision, device)
        self._names = list(persistent_buffers(self.task))
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
        start = 0
        for buffer in self._buffers:
            values = buffers[start : start + buffer.numel()].view(buffer.shape)
            buffer.copy_(values if buffer.is_floating_point() else values.round())
            start += buffer.numel()

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

    def losses(self, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at the parameters that are set."""
        result: Tensor = self._autocast(self._losses, batch)
        return result

    def outputs(self, inputs: Tensor) -> Any:
        """The model's outputs [B, …] at the parameters that are set."""
        return self._autocast(self._outputs, inputs)

    def gradient(self, w: Tensor, batch: Batch, key: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gradient [P] and value [] of the mean loss at w, by plain backward through the module.

        With a mask [B], the mean is over the places that are filled.
        """
        self._point_to(w)
        if self._keys:
            set_dropout_key(self.task, key)
        with torch.enable_grad():
            loss = mean_loss(self.losses(batch), mask)
            gradients = torch.autograd.grad(loss, self._params, materialize_grads=True, allow_unused=True)
        return self.layout.flatten(gradients), loss.detach()

    def _losses(self, batch: Batch) -> Tensor:
        return self.task.loss(tuple(channels_last(tensor) for tensor in batch))

    def _outputs(self, inputs: Tensor) -> Any:
        return self.task(channels_last(inputs))

    def _point_to(self, w: Tensor) -> None:
        """Make the module's parameters views of w; nothing is copied, and the module only reads them."""
        parts = w.split_with_sizes(self.layout.sizes)
        for parameter, part, shape in zip(self._params, parts, self.layout.shapes, strict=True):
            parameter.data = part.view(shape)

    def at(self, key: Tensor) -> FunctionalModel:
        """The model as a pure function of w, with its dropout at `key`."""
        return FunctionalModel(self._apply, self.layout, {f"task.{name}": key for name in self._keys}, self._autocast)


class FunctionalModel:
    """The `FlatModel` that a method's `objective` is given; differentiable in w, and may be vmapped."""

    def __init__(self, apply: nn.Module, layout: Layout, keys: dict[str, Tensor], autocast: Autocast) -> None:
        self._module, self._layout, self._keys, self._autocast = apply, layout, keys, autocast

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The model's outputs [B, …] at w [P]."""
        return self._run(w, "forward", inputs)

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at w [P]."""
        return self._run(w, "loss", batch)

    def _run(self, w: Tensor, name: str, argument: Any) -> Tensor:
        parameters = {f"task.{name}": value for name, value in self._layout.unflatten(w).items()}
        swapped = {**parameters, **self._keys}
        result: Tensor = self._autocast(functional_call, self._module, swapped, (name, argument))
        return result


def mean_loss(losses: Tensor, mask: Tensor | None) -> Tensor:
    """The mean [] of losses [B], over the filled places where there is a mask."""
    return losses.mean() if mask is None else (losses * mask).sum() / mask.sum().clamp(min=1)


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the model (running statistics, tables) by name, in the module's order."""
    kept = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def flatten_buffers(buffers: Iterable[Tensor], device: torch.device) -> Tensor:
    """Buffers as one vector [Q] (float64)."""
    flat = [buffer.detach().reshape(-1).to(torch.float64) for buffer in buffers]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64, device=device)
