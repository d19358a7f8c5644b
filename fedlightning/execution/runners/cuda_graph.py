"""Local steps on a GPU as CUDA graphs. Experimental: it has never run on a card, and is taken only where it is asked for by
name.

A step of a small model is a few hundred kernels of microseconds each, which take longer to launch than to run; a replay
launches them at once. What is captured is the loop's own step, once for each slot and phase, over static buffers, so it
computes what the loop computes, and nothing is compiled. Only steps that never wait for the device can be captured; whether a
step does is looked at while it is tried, before the capture. It is tested on a CPU, where a tape of operations stands for a
graph; so whatever fails here ends with one line that names the setting without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedlightning.errors import ClientError, FedLightningError, first_line, out_of_memory
from fedlightning.execution.plan import CohortPlan
from fedlightning.execution.runners._capture import Capture, CudaCapture, StepGraph
from fedlightning.execution.runners.base import Backend
from fedlightning.execution.runners.loop import LoopRunner
from fedlightning.execution.slots import Worker
from fedlightning.execution.step import Clients, FlatFunction, LocalStep, by_module, flat
from fedlightning.method import Batch, ClientContext
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State


class CudaGraphBackend(Backend):
    """Makes runners that capture.

    Args:
        batch_size: B of a full batch; smaller ones are padded, so that one graph serves all.
        capture: makes what captures for a slot; called in the slot's thread.
    """

    def __init__(self, batch_size: int, capture: Callable[[], Capture] = CudaCapture) -> None:
        self.batch_size, self.capture = batch_size, capture

    def __call__(self, step: LocalStep, slot: Worker) -> CudaGraphRunner:
        """A slot's runner."""
        return CudaGraphRunner(step, slot, self)


class CudaGraphRunner(LoopRunner):
    """The loop, whose steps are replayed.

    A model with batch norm, whose statistics padding would spoil, takes the steps with smaller batches without a graph.

    Args:
        step: what a local step is.
        slot: where it is taken.
        backend: the size of a batch, and what captures.
    """

    def __init__(self, step: LocalStep, slot: Worker, backend: CudaGraphBackend) -> None:
        super().__init__(step, slot)
        self._backend = backend
        self._graph: StepGraph | None = None
        self._pads = not any(isinstance(module, _BatchNorm) for module in slot.replica.task.modules())

    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """Train the cohorts, one after another.

        Raises:
            ClientError: a step cannot be captured, or a replay fails.
        """
        with _explained(str(self._slot.slot)):
            return super().run(plans, inputs)

    def take(self, local: State, context: ClientContext, batch: Batch) -> tuple[State, Tensor]:
        """One step of one client, replayed if its batch is as large as the graph's."""
        size = self._backend.batch_size
        if self._pads:
            batch = Batch(*(_sized(tensor, size) for tensor in batch))
        if len(batch.mask) < size:
            return super().take(local, context, batch)
        numbers = State(**{name: getattr(context, name) for name in ("lr", "num_steps", "num_examples", "round")})
        client = Clients(context.gradient, context.state, numbers, context.key, context.step)
        fixed = flat(context.server, client.gradient, client.state, numbers)
        if self._graph is None:
            self._graph = self._captured(context.server, local, client, batch, fixed)
        state, loss = self._graph(list(local.values()), fixed, [client.key, client.step, *batch])
        return State(**dict(zip(local, state, strict=True))), loss

    def _captured(self, server: State, local: State, client: Clients, batch: Batch, fixed: list[Tensor]) -> StepGraph:
        """The step over static buffers, as the one flat function of its state, of what is fixed for a client, and of the rest."""
        began = time.perf_counter()

        def one(server: State, gradient: Tensor, state: State, numbers: State, *others: Any) -> tuple[State, Tensor]:
            key, number, batch, local = others
            return _step(self._step, server, local, Clients(gradient, state, numbers, key, number), batch)

        known = server, client.gradient, client.state, client.numbers
        function = FlatFunction(one, *known, client.key, client.step, batch, local)

        def step(state: Any, fixed: Any, stepped: Any) -> tuple[list[Tensor], Tensor]:
            *after, loss = function(*fixed, *stepped, *state)
            # An entry may be another one's buffer, as w_{k−1} is w's, and that is written first.
            return [tensor.clone() for tensor in after], loss

        with self._slot.replica.unchanged():
            graph = StepGraph(
                step, list(local.values()), fixed, [client.key, client.step, *batch], self._backend.capture()
            )
        self._backend.seconds += time.perf_counter() - began
        return graph


def _step(step: LocalStep, server: State, local: State, client: Clients, batch: Batch) -> tuple[State, Tensor]:
    """The loop's step, on a batch of which places may be empty."""
    step.model.begin_step()
    return step.take(local, step.context(server, client), batch, partial(by_module, padded=True))


def _sized(tensor: Tensor, size: int) -> Tensor:
    """A batch [b, …] of another size, with zeros at the end."""
    if len(tensor) >= size:
        return tensor[:size]
    padded = tensor.new_zeros(size, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return padded


@contextmanager
def _explained(slot: str) -> Iterator[None]:
    """What fails of captured steps as one line that names the setting without them; memory that runs out is not of that kind."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, FedLightningError) or out_of_memory(error):
            raise
        failure = ClientError(
            f"Local steps must run as CUDA graphs on slot {slot}, since `runner='cuda_graph'` asks for that (it is "
            f"experimental), but fail: {first_line(error)}; use `runner='loop'`."
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error
