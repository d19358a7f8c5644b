"""The traced runner's graph, compiled ahead of time, kept on disk, and called from C without the interpreter's lock."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.execution.runners._trace import digest, used_inputs, without_unused
from fedlightning.execution.runners.compiled.build import OPTIONS, Order, build, processor
from fedlightning.execution.runners.compiled.cache import kept
from fedlightning.execution.runners.compiled.native import compiled_walk, preload
from fedlightning.execution.runners.traced import TracedBackend, Walk, traced_steps
from fedlightning.execution.step import Clients, LocalStep, flat
from fedlightning.method import Batch
from fedlightning.state import State


class CompiledBackend(TracedBackend):
    """The same graphs as machine code. One is built once, in about half a minute, and found on disk by later runs.

    Args:
        unroll, large, cohort_size, gathers: as for `TracedBackend`.
        threads: intra-operator threads of the compiled code.
        build: builds a package; what it writes lies in the cache afterwards.
        walk: makes a slot's walk through the graph in a package.
    """

    def __init__(
        self,
        unroll: int,
        large: bool,
        cohort_size: int,
        gathers: bool,
        threads: int,
        build: Callable[[Order, Path], None] = build,
        walk: Callable[[Path, Sequence[int], int], Walk] = compiled_walk,
    ) -> None:
        super().__init__(unroll, large, cohort_size, gathers)
        self._threads, self._build, self._walk = threads, build, walk

    def _built(self, step: LocalStep, given: tuple[State, State, Clients, Batch, Tensor]) -> Callable[[], Walk]:
        # One step tells graphs apart as well as U do, and is traced in an eighth of the time.
        local, server, client, batches, active = given
        first = client._replace(key=client.key[:1], step=client.step[:1])
        single = traced_steps(step, (local, server, first, Batch(*(t[:1] for t in batches)), active[:1]))
        used = used_inputs(single)
        tensors = flat(*given)
        inputs = [tensors[i].detach().clone(memory_format=torch.contiguous_format) for i in used]

        def make(path: Path) -> None:
            steps = f"{self.unroll} local step{'s' * (self.unroll > 1)}"
            rank_zero_info(f"Compiling {steps} into a graph, which takes about half a minute.")
            graph = without_unused(single if self.unroll == 1 else traced_steps(step, given), used)
            self._build(Order(graph, inputs, self._threads, in_place=not self.large), path)

        path = package(f"{self._name(digest(single), inputs)}.pt2", make)
        return lambda: self._walk(path, used, self.unroll)

    def _name(self, graph: str, inputs: list[Tensor]) -> str:
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in inputs]
        known = (graph, shapes, OPTIONS, self._threads, self.large, torch.__version__, platform.machine(), processor())
        return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def package(name: str, make: Callable[[Path], None]) -> Path:
    """A package that is there, whole and loaded.

    Args:
        name: tells it apart from others.
        make: is told where to write it.

    Raises:
        ConfigurationError: it cannot be built, written or loaded.
    """
    try:
        path = kept(name, make)
        preload(path)
    except OSError as error:
        raise ConfigurationError(
            f'Compiled steps must be written and loaded, but this machine says: {error}; use `runner="loop"`.'
        ) from error
    return path
