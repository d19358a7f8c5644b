"""One local step over static buffers, captured as a CUDA graph and replayed; whether it can be is tried first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedlightning.execution.slots import CAPTURE

_WARM_UP = 3
"""Steps that are tried before a capture, in which libraries make their handles and choose their kernels."""

StaticStep = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[list[Tensor], Tensor]]
"""From state, fixed inputs and the step's own to the next state, in new tensors, and the losses."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""From work over static buffers to what does it again."""


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device: a tensor's value is read, or tensors travel between devices."""

    _READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")
    _COPIES = ("aten::_to_copy", "aten::copy_")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, or refuse it."""
        name = func._schema.name
        if name in self._READS or (name.startswith("aten::index") and _by_mask(args)):
            raise RuntimeError(f"{name} reads a tensor's value, for which the host waits (data-dependent control flow)")
        result = func(*args, **(kwargs or {}))
        if name in self._COPIES and len({tensor.device.type for tensor in (*args, result) if _is_tensor(tensor)}) > 1:
            raise RuntimeError(f"{name} copies between devices, for which the host waits; make tensors where `w` is")
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _by_mask(args: tuple[Any, ...]) -> bool:
    """Whether entries are picked by a mask, whose count the host must know."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(_is_tensor(index) and index.dtype in (torch.bool, torch.uint8) for index in indices)


class CudaCapture:
    """Captures on the calling thread's stream, the slot's, into the slot's own pool of memory.

    The graphs of a slot share the pool: they run one after another, and what they compute is copied out at once, so one may
    overwrite what another has left.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """A replay of `run`."""
        graph = torch.cuda.CUDAGraph()
        with (
            CAPTURE,
            torch.cuda.graph(  # other slots go on meanwhile, hence "thread_local"
                graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ),
        ):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


class StepGraph:
    """One local step over static buffers, which hold copies of the inputs; what it gives are copies, too.

    Args:
        step: the step.
        state, fixed, stepped: inputs of the shapes and dtypes that all inputs will have; their values are tried.
        capture: makes the graph.
    """

    def __init__(
        self,
        step: StaticStep,
        state: Sequence[Tensor],
        fixed: Sequence[Tensor],
        stepped: Sequence[Tensor],
        capture: Capture,
    ) -> None:
        self._state, self._fixed, self._stepped = ([_buffer(t) for t in part] for part in (state, fixed, stepped))
        for _ in range(_WARM_UP):
            with NoWaiting():  # type: ignore[no-untyped-call]
                _, loss = step(self._state, self._fixed, self._stepped)
        self._loss = _buffer(loss)

        def once() -> None:
            after, loss = step(self._state, self._fixed, self._stepped)
            torch._foreach_copy_([*self._state, self._loss], [*after, loss])

        self._replay = capture(once)

    def __call__(
        self, state: Sequence[Tensor], fixed: Sequence[Tensor], stepped: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The state after a step, and the loss [].

        Raises:
            ValueError: an input has another shape or dtype than the buffer.
        """
        static = [*self._state, *self._fixed]
        _check([*static, *self._stepped], [*state, *fixed, *stepped])
        torch._foreach_copy_(static, [*state, *fixed])
        torch._foreach_copy_(self._stepped, list(stepped))
        self._replay()
        return [tensor.clone() for tensor in self._state], self._loss.clone()


def _buffer(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _check(static: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    for buffer, tensor in zip(static, inputs, strict=True):
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            raise ValueError(
                f"A graph's input must be {list(buffer.shape)} of {buffer.dtype}, but is {list(tensor.shape)} of "
                f"{tensor.dtype}."
            )
