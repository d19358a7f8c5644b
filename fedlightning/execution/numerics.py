"""In what numbers local steps are computed: as torch is set, in TF32 on a GPU, or with bfloat16 products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree

from fedlightning.errors import ConfigurationError

Precision = Literal["32-true", "tf32", "bf16-mixed"]
"""The names are Lightning's, and `tf32`. There is no "16-mixed": float16 needs a scaler of the loss, whose state would depend
on the order of the clients, and a GPU that has fast float16 but no bfloat16."""


def check_precision(wish: str, dtype: torch.dtype = torch.float32) -> None:
    """Check a precision, and the dtype of the model that it is for.

    Raises:
        ConfigurationError: there is no such precision, or the model is not of float32 where it must be.
    """
    known = get_args(Precision)
    if wish not in known:
        names = ", ".join(map(repr, known[:-1]))
        raise ConfigurationError(f"`precision` of SlotStrategy must be {names} or {known[-1]!r}, but is {wish!r}.")
    if wish != "32-true" and dtype != torch.float32:
        raise ConfigurationError(
            f"The model must be of float32 for `precision={wish!r}`, but is of {str(dtype).removeprefix('torch.')}; convert "
            "it with `.float()`, or use '32-true', which leaves the model's numbers as they are."
        )


_cudnn: Any = torch.backends.cudnn  # its parts are unknown to the type checker


class Autocast:
    """Computes a function of a model under a precision.

    Under "bf16-mixed", matrix products and convolutions take bfloat16, and what comes out is float32 again: parameters,
    gradients, losses and everything that a method computes stay float32. Casts are not cached, since the cache is shared
    between threads and cannot be captured in a CUDA graph.

    Args:
        precision: one of `Precision`.
        device: where the model is.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self._reduced, self._kind = precision == "bf16-mixed", device.type

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`; tensors of bfloat16 in the result become float32."""
        if not self._reduced:
            return function(*arguments)
        with torch.autocast(self._kind, torch.bfloat16, cache_enabled=False):
            result = function(*arguments)
        return _pytree.tree_map_only(Tensor, _widen, result)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def channels_last(tensor: Tensor) -> Tensor:
    """Images [B, C, H, W] in the layout that their device convolves fastest; others as they are.

    On a CPU that is channels-last, by a quarter. On a GPU it is what tensor cores take, so images are turned where they are
    used: under bfloat16, and for float32 where convolutions may use TF32, which they may unless torch is told otherwise. Else
    cuDNN's plain float32 kernels are as fast on either layout, and nothing is turned. Weights are views of one flat vector
    and stay as they are: cuDNN turns them in each call, which costs a copy of the layer's weights, and did so before too,
    together with the images.
    """
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    if tensor.device.type == "cpu" or (tensor.device.type == "cuda" and uses_tensor_cores(tensor.dtype)):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def uses_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether a GPU convolves images of this dtype on its tensor cores, as torch is set."""
    if dtype != torch.float32:
        return dtype in (torch.bfloat16, torch.float16)
    return torch.is_autocast_enabled("cuda") or _cudnn.conv.fp32_precision == "tf32"


class Numerics(AbstractContextManager["Numerics"]):
    """Torch's own switches while a run is on: TF32 where it is asked for, and cuDNN's algorithms that give one result.

    The switches belong to the process. They are set at `__enter__` and put back at `__exit__`; nothing is touched without a
    GPU.

    Args:
        precision: one of `Precision`.
        on_gpu: whether any slot is on a GPU.
        cudnn: whose switches they are.
    """

    def __init__(self, precision: str, on_gpu: bool, cudnn: Any = _cudnn) -> None:
        self._tf32, self._on_gpu, self._cudnn = precision == "tf32" and on_gpu, on_gpu, cudnn
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Numerics:
        try:
            self._switch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _switch(self) -> None:
        if self._on_gpu:
            self._set(self._cudnn, "deterministic", True)
            self._set(self._cudnn, "benchmark", False)
        if self._tf32:
            before = torch.get_float32_matmul_precision()
            self._undo.append(lambda: torch.set_float32_matmul_precision(before))
            torch.set_float32_matmul_precision("high")
            for part in (self._cudnn.conv, self._cudnn.rnn):
                self._set(part, "fp32_precision", "tf32")

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        if before != value:
            self._undo.append(lambda: setattr(owner, name, before))
            setattr(owner, name, value)
