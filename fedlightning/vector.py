"""The flat model: all trainable parameters of a module as one vector w [P]."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

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
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        dtypes = {p.dtype for _, p in named}
        if len(dtypes) != 1:
            found = f"{len(dtypes)} dtypes ({', '.join(sorted(map(str, dtypes)))})" if dtypes else "no parameter"
            raise ConfigurationError(
                f"The trainable parameters of {type(module).__name__} must be one vector of one dtype, but it has "
                f"{found}; convert it with `.to(torch.float32)`, or set `requires_grad=False` where it is frozen."
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
