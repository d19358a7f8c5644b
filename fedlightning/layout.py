"""The flat model: all trainable parameters of a module as one vector w [P], and its buffers as another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning._hashing import digest
from fedlightning.errors import ConfigurationError


@dataclass(frozen=True)
class Layout:
    """Where each trainable parameter of a module lies in the flat vector w [P].

    Attributes:
        names: the parameters' names, in the module's order.
        shapes: their shapes.
        dtype: their common dtype, which is w's.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of `module`'s trainable parameters.

        Raises:
            ConfigurationError: there is none, or they have several dtypes.
        """
        _require_made(module)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        dtypes = {p.dtype for _, p in named}
        if not dtypes:
            frozen = sum(1 for _ in module.parameters())
            found = (
                f"all of its {frozen} are frozen; set `requires_grad=True`" if frozen else "it has none; use a model"
            )
            raise ConfigurationError(
                f"The model of {type(module).__name__} must have a trainable parameter, but {found} where it is to learn."
            )
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            raise ConfigurationError(
                f"The trainable parameters of {type(module).__name__} must be one vector of one dtype, but it has "
                f"{len(dtypes)} dtypes ({', '.join(sorted(map(str, dtypes)))}); convert it with `.to(torch.float32)`, or set "
                "`requires_grad=False` where it is frozen."
            )
        return cls(tuple(n for n, _ in named), tuple(tuple(p.shape) for _, p in named), dtypes.pop())

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """P, the number of entries of w."""
        return sum(self.sizes)

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors in this layout's order as one new vector [P]."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def read(self, module: nn.Module) -> Tensor:
        """The module's trainable parameters as one new vector [P]."""
        return self.flatten(p.detach() for p in module.parameters() if p.requires_grad)

    def unflatten(self, w: Tensor) -> dict[str, Tensor]:
        """Views into w [P] by parameter name; differentiable."""
        parts = torch.split(w, self.sizes)
        return {n: part.view(s) for n, s, part in zip(self.names, self.shapes, parts, strict=True)}

    def slices(self) -> dict[str, slice]:
        """Each parameter's place in w, for methods that work layer by layer."""
        ends = list(itertools.accumulate(self.sizes, initial=0))
        return {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.names)}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the model (running statistics, tables) by name, in the module's order."""
    kept = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def flatten_buffers(buffers: Iterable[Tensor], device: torch.device) -> Tensor:
    """Buffers as one vector [Q] (float64)."""
    flat = [buffer.detach().reshape(-1).to(torch.float64) for buffer in buffers]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64, device=device)


def fill_buffers(buffers: Iterable[Tensor], flat: Tensor) -> None:
    """Set buffers, in place, to what `flatten_buffers` made of them [Q]; integers are rounded."""
    start = 0
    for buffer in buffers:
        values = flat[start : start + buffer.numel()].view(buffer.shape)
        buffer.copy_(values if buffer.is_floating_point() else values.round())
        start += buffer.numel()


def _require_made(module: nn.Module) -> None:
    """Refuse a module whose parameters are made by its first batch, or on no device.

    Raises:
        ConfigurationError: it is such a module.
    """
    parts = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in parts:
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            why = (
                "by its first batch; run one through the model before"
                if nn.parameter.is_lazy(tensor)
                else "on no device"
            )
            remedy = "`model(inputs[:1])`" if nn.parameter.is_lazy(tensor) else "use `model.to_empty(device='cpu')`"
            raise ConfigurationError(
                f"The parameters of {type(module).__name__} must be there, but {name!r} is made {why}: {remedy}."
            )


def identify_model(module: nn.Module) -> dict[str, Any]:
    """What a flat model must be the same in to be taken up by a module, as plain JSON: its parts, and what is not trained."""
    layout, buffers = Layout.of(module), persistent_buffers(module)
    fixed: list[Tensor] = [p for p in module.parameters() if not p.requires_grad]
    fixed += [buffer for name, buffer in module.named_buffers() if name not in buffers]
    return {
        "layout": [[name, list(shape)] for name, shape in zip(layout.names, layout.shapes, strict=True)],
        "dtype": str(layout.dtype),
        "buffers": [[name, list(buffer.shape)] for name, buffer in buffers.items()],
        "frozen": digest(fixed),
    }
