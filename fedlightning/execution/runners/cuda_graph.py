"""Local steps as CUDA graphs: one step of a cohort captured once for each slot, replayed over static buffers.

A step of a small model is a few hundred kernels of microseconds each, which take longer to launch than to run; a replay
launches them at once. What is captured is the loop's own step (one client) or the cohort's (several), so a graph computes
what they compute, and nothing is compiled. Only steps that never wait for the device can be captured; whether a step does is
looked at while it is tried, before the first capture.

This is experimental: it is tested on a CPU, where a tape of operations stands for a graph, and has not run on a card. So it is
asked for by name, `compile=True`, and whatever fails names `compile=False`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fedlightning.errors import ClientError, ConfigurationError, FedLightningError, first_line
from fedlightning.execution.model import Replica
from fedlightning.execution.plan import Clients
from fedlightning.execution.runners._capture import Capture, CudaCapture, Step, StepGraph
from fedlightning.execution.runners.loop import Block, CohortExecutor, Executor, LoopExecutor, of_clients, where_active
from fedlightning.execution.slots import out_of_memory
from fedlightning.hooks.diagnose import Hooks
from fedlightning.method import Batch
from fedlightning.state import State


class Graphs:
    """The graphs of a run's slots.

    Args:
        cohort_size: the largest width.
        batch_size: B of a full batch.
        capture: makes what captures for a slot; called in the slot's thread.

    Attributes:
        widths: at most three: 1, the cohort's size, and one between.
        seconds: that slots have spent trying and capturing, all together.
    """

    def __init__(self, cohort_size: int, batch_size: int, capture: Callable[[], Capture] = CudaCapture) -> None:
        self.widths: tuple[int, ...] = tuple(sorted({1, round(cohort_size**0.5), cohort_size}))
        self.batch_size, self._make = batch_size, capture
        self.seconds = 0.0
        self._slots: dict[str, tuple[Capture, dict[Any, StepGraph]]] = {}
        self._lock = threading.Lock()

    def get(self, slot: str, key: Any, build: Callable[[Capture], StepGraph]) -> StepGraph:
        """A slot's graph, built where it is not there."""
        if slot not in self._slots:
            self._slots[slot] = (self._make(), {})
        capture, graphs = self._slots[slot]
        if key not in graphs:
            began = time.perf_counter()
            graphs[key] = build(capture)
            with self._lock:
                self.seconds += time.perf_counter() - began
        return graphs[key]

    def forget(self, slot: str) -> None:
        """Drop a slot's graphs and their buffers."""
        self._slots.pop(slot, None)


def check_capture(task: nn.Module, batched: bool, coupled: bool = False) -> None:
    """Check that steps can be captured as far as that is known beforehand.

    Args:
        task: the model.
        batched: whether batches have a fixed size.
        coupled: whether the loss of one example depends on the others of its batch; a graph's batches have empty places.

    Raises:
        ConfigurationError: they cannot.
    """
    recurrent = next((name for name, m in task.named_modules() if isinstance(m, nn.RNNBase)), None)
    obstacle = "" if batched else "batches are whole data sets"
    obstacle = "the loss looks across a batch, empty places included" if coupled else obstacle
    if recurrent is not None:
        obstacle = f"cuDNN's recurrent layer {recurrent!r} copies its weights"
    if obstacle:
        raise ConfigurationError(
            "`compile=True` on a GPU must have batches of one size, a loss of each example alone, and no recurrent layer of "
            f"cuDNN, but {obstacle}; use `compile=False`, or set `batch_size`."
        )


class GraphExecutor(CohortExecutor):
    """Replays the steps of the loop (width 1) or of a cohort; up to eight steps share one gather of their batches.

    Batches are padded to full ones, so that one graph serves all; a model with batch norm, whose statistics padding would
    spoil, takes the steps with smaller batches without a graph.

    Args:
        replica: the slot's model.
        graphs: the run's graphs.
        slot: whose they are.
        gradient_pass: whether they are those of the gradient pass.
    """

    def __init__(self, replica: Replica, graphs: Graphs, slot: str, gradient_pass: bool) -> None:
        super().__init__(replica, graphs.widths[-1])
        self._graphs, self._slot, self._gradient_pass = graphs, slot, gradient_pass
        self._pads = not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in replica.task.modules())
        self._alone = LoopExecutor(replica)

    def block(self, width: int) -> int:
        """8, for whose batches there is one gather."""
        return 8 if self._pads else 1

    def width(self, active: int) -> int:
        """The narrowest of the graphs' widths that holds so many clients."""
        return next(width for width in self._graphs.widths if width >= active)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """The block's steps, the client's first one by a graph of its own."""
        clients = block.clients
        fixed = [*hooks.server.values(), *of_clients(clients)]
        batch = [_padded(t, self._graphs.batch_size) if self._pads else t for t in (*block.batch, block.mask)]
        stepped = [clients.key, block.active, *batch]
        state, losses, done = list(local.values()), [], 0
        for end, first in ((1, True), (len(block.mask), False)) if block.first else ((len(block.mask), False),):
            if end > done:
                part = [tensor[done:end] for tensor in stepped]
                state, loss = self._run(hooks, tuple(local), state, fixed, clients, part, first)
                losses.append(loss)
            done = end
        return State(**dict(zip(local, state, strict=True))), torch.cat(losses)

    def _run(
        self,
        hooks: Hooks,
        names: tuple[str, ...],
        state: list[Tensor],
        fixed: list[Tensor],
        clients: Clients,
        stepped: list[Tensor],
        first: bool,
    ) -> tuple[list[Tensor], Tensor]:
        step = self._step(hooks, names, clients, first)
        one = [tensor[0] for tensor in stepped]
        key = (self._gradient_pass, first, *((t.shape, t.dtype) for t in (*state, *fixed, *one)))

        def build(capture: Capture) -> StepGraph:
            with self._replica.unchanged():
                return StepGraph(step, state, fixed, one, capture)

        full = one[-1].shape[1] == self._graphs.batch_size
        if full:
            return self._graphs.get(self._slot, key, build)(state, fixed, stepped)
        losses = []
        for s in range(len(stepped[0])):
            state, loss = step(state, fixed, [tensor[s] for tensor in stepped])
            losses.append(loss)
        return state, torch.stack(losses)

    def _step(self, hooks: Hooks, names: tuple[str, ...], clients: Clients, first: bool) -> Step:
        """One step of C clients as a function of its tensors alone; it keeps none of those it was made from."""
        kind, method, layout = type(hooks), hooks.method, hooks.layout
        shape = _pytree.tree_structure((hooks.server, clients.gradient, clients.state, clients.numbers))
        take_step = self._alone.step if len(clients.gradient) == 1 else self.step

        def step(
            state: Sequence[Tensor], fixed: Sequence[Tensor], stepped: Sequence[Tensor]
        ) -> tuple[list[Tensor], Tensor]:
            server, gradient, remembered, numbers = _pytree.tree_unflatten(fixed, shape)
            key, active, *batch = stepped
            now, before = Clients(gradient, remembered, numbers, key), State(**dict(zip(names, state, strict=True)))
            after, loss = take_step(kind(method, server, layout), before, now, Batch(*batch), first)
            return [where_active(active, after[name], before[name]) for name in names], loss

        return step


def _padded(tensor: Tensor, batch_size: int) -> Tensor:
    """Batches [S, C, b, …] as [S, C, B, …], with zeros at the end."""
    if tensor.shape[2] == batch_size:
        return tensor
    padded = tensor.new_zeros(*tensor.shape[:2], batch_size, *tensor.shape[3:])
    padded[:, :, : tensor.shape[2]] = tensor
    return padded


@contextmanager
def explained(executor: Executor, slot: str) -> Iterator[None]:
    """What fails of captured steps as one line that names the setting without them; memory that runs out is not of that kind."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not isinstance(executor, GraphExecutor) or isinstance(error, FedLightningError) or out_of_memory(error):
            raise
        failure = ClientError(
            f"Local steps must run as CUDA graphs on slot {slot}, since `compile=True` asks for that (it is experimental), "
            f"but fail: {first_line(error)}; use `compile=False`."
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error
