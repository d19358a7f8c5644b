"""Dropout whose masks are a pure function of a key: the same bits one client at a time, vmapped and traced."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fedlightning._checked import checked
from fedlightning.errors import ConfigurationError, shown
from fedlightning.randomness import keyed_uniform

Module = TypeVar("Module", bound=nn.Module)

_CHANNELS = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}


class KeyedDropout(nn.Module):
    """Dropout with a mask drawn from the buffer `key` (int64 []) instead of the global generator.

    Numbers are addressed in row-major order, batch first, so that the mask of an example does not depend on how many
    examples follow it: a padded batch agrees with the batch it was made from.

    Args:
        p: probability that an entry is dropped.
        salt: tells the layers of a model apart.
        channels: drop whole channels of [B, channels, …].
    """

    key: Tensor

    @checked(p="[0, 1]")
    def __init__(self, p: float, salt: int, channels: bool = False) -> None:
        super().__init__()
        self.p, self.salt, self.channels = p, salt, channels
        self.threshold = math.ceil(p * 2**24) / 2**24  # on the grid of `keyed_uniform`, hence exact on every device
        self.use: int | None = None  # which call this is in the parent's running forward pass; None outside one
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, …] with entries dropped and the others scaled by 1/(1 − p); in evaluation the inputs."""
        if not self.training or self.p == 0:
            return inputs
        salt = (self.salt + 1 << 32) + (self.use or 0)  # far from the small salts of a method's own draws
        if self.use is not None:
            self.use += 1
        shape = (*inputs.shape[:2], *[1] * (inputs.dim() - 2)) if self.channels else inputs.shape
        kept = (keyed_uniform(self.key, shape, salt) >= self.threshold).to(inputs.dtype)
        return inputs * (kept * (1 / (1 - self.p) if self.p < 1 else 0.0))

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"p={self.p}, salt={self.salt}, channels={self.channels}"


@checked()
def key_dropout(module: Module) -> Module:
    """A deep copy of `module` in which each `nn.Dropout` (or 1d, 2d, 3d) is a `KeyedDropout`.

    A layer called several times in one forward pass of its parent draws a new mask each time. A parent that is itself
    called again, e.g. once a time step, repeats its masks, as in Gal & Ghahramani, NeurIPS 2016.

    Raises:
        ConfigurationError: a recurrent layer, attention or alpha dropout draws masks which no key reaches.
    """
    _refuse_hidden_dropout(module)
    if type(module) in _CHANNELS:
        return cast(Module, _keyed(cast(_DropoutNd, module), 0))
    module = copy.deepcopy(module)
    salts = itertools.count()
    for parent in list(module.modules()):
        dropouts = {name: child for name, child in parent._modules.items() if type(child) in _CHANNELS}
        for name, child in dropouts.items():
            setattr(parent, name, _keyed(cast(_DropoutNd, child), next(salts)))
        if dropouts:
            parent.register_forward_pre_hook(_count_uses)
            parent.register_forward_hook(_stop_counting, always_call=True)
    return module


@checked()
def dropout_key_names(module: nn.Module) -> list[str]:
    """Names of the key buffers, for `torch.func.functional_call`; they are no statistics to be averaged."""
    return [
        f"{name}.key".removeprefix(".") for name, child in module.named_modules() if isinstance(child, KeyedDropout)
    ]


def set_dropout_key(module: nn.Module, key: Tensor) -> None:
    """Copy a key [] (int64) into every key buffer, in place."""
    if not isinstance(module, nn.Module):
        raise ConfigurationError(f"`module` of `set_dropout_key` must be an nn.Module, but is {shown(module)}.")
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim():
        raise ConfigurationError(f"`key` of `set_dropout_key` must be a key [] (int64), but is {shown(key)}.")
    for child in module.modules():
        if isinstance(child, KeyedDropout):
            child.key.copy_(key)


def _keyed(dropout: _DropoutNd, salt: int) -> KeyedDropout:
    return KeyedDropout(dropout.p, salt, _CHANNELS[type(dropout)]).train(dropout.training)


def _count_uses(parent: nn.Module, inputs: Any) -> None:
    for child in parent.children():
        if isinstance(child, KeyedDropout):
            child.use = 0


def _stop_counting(parent: nn.Module, inputs: Any, outputs: Any) -> None:
    for child in parent.children():
        if isinstance(child, KeyedDropout):
            child.use = None


def _refuse_hidden_dropout(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, nn.RNNBase | nn.MultiheadAttention):
            p, remedy = child.dropout, "set `dropout=0` in it and put `nn.Dropout` layers around it"
        elif isinstance(child, _DropoutNd) and type(child) not in _CHANNELS:
            p, remedy = child.p, "use `nn.Dropout`, or set `p=0`"
        else:
            continue
        if p > 0:
            where = f"`{name}` ({type(child).__name__})" if name else type(child).__name__
            raise ConfigurationError(
                f"Every dropout mask must come from the client's key, but {where} draws its own with p={p}; {remedy}."
            )
