"""Local steps as graphs: several steps of a cohort traced once, compiled ahead of time, kept on disk, run by every slot.

A graph holds U steps of C clients, for a few fixed C. Its inputs are the clients' tensors, what the server sent and the
batches, so one graph serves all rounds, data sets of one shape and runs with the same hyperparameters. Calls go straight
to the compiled library: through dynamo they would contend between slots.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from fedlightning.engine.executors import Block, CohortExecutor
from fedlightning.engine.hooks import Hooks
from fedlightning.engine.job import Clients
from fedlightning.engine.replica import Replica
from fedlightning.state import State

UNROLL = 8
"""Steps of one graph: from eight on, the call costs little beside them."""

Runner = Callable[[list[Tensor]], Any]


class Programs:
    """The graphs of a run, for each width, and the widths there are.

    Args:
        how: "compile" them, or only "trace" them, which needs no compiler and shows that a method can be compiled.
        cohort_size: the largest width.
        threads: intra-operator threads of the compiled code.

    Attributes:
        widths: at most three: 1, the cohort's size, and one between.
        seconds: spent tracing and compiling.
    """

    def __init__(self, how: Literal["compile", "trace"], cohort_size: int, threads: int) -> None:
        self.how, self._threads = how, threads
        self.widths = tuple(sorted({1, round(cohort_size**0.5), cohort_size}))
        self.seconds = 0.0
        self._sources: dict[tuple[bool, int], Callable[[], Runner]] = {}
        self._runners: dict[tuple[str, bool, int], Runner] = {}
        self._first: dict[bool, bool] = {}

    def has(self, gradient_pass: bool, width: int) -> bool:
        """Whether the graph of this width is there."""
        return (gradient_pass, width) in self._sources

    def add(self, hooks: Hooks, gradient_pass: bool, local: State, block: Block, replica: Replica) -> None:
        """Trace and build the graph that takes this block's U steps; called by one thread, while no slot works."""
        began, width = time.perf_counter(), len(block.mask[0])
        one = _first_step(block)
        single = _trace(hooks, local, one, replica, first=False)
        if gradient_pass not in self._first:
            lone = _trace(hooks, local, one, replica, first=True)
            self._first[gradient_pass] = _digest(lone) != _digest(single)

        def whole() -> GraphModule:
            return _trace(hooks, local, block, replica, first=False)

        if self.how == "trace":
            graph = whole()
            self._sources[gradient_pass, width] = lambda: lambda inputs: graph(*inputs)
            return
        flat = _flatten(hooks, local, block)
        path, found = _package(single, whole, flat, self._threads)
        self._sources[gradient_pass, width] = lambda: _load(path)
        took = time.perf_counter() - began
        self.seconds += took
        what = "found compiled" if found else "compiled"
        clients = f"{width} client{'s' * (width > 1)}"
        rank_zero_info(f"{UNROLL} local steps of {type(hooks.method).__name__} for {clients}: {what} in {took:.1f} s")

    def first_alone(self, gradient_pass: bool) -> bool:
        """Whether a client's first step differs from the others."""
        return self._first[gradient_pass]

    def runner(self, slot: str, gradient_pass: bool, width: int) -> Runner:
        """The slot's own copy of a graph."""
        key = (slot, gradient_pass, width)
        if key not in self._runners:
            self._runners[key] = self._sources[key[1:]]()
        return self._runners[key]


class CompiledExecutor(CohortExecutor):
    """C clients at once, U steps a call; the same mathematics as the cohort's, lifted into a graph.

    Args:
        replica: the slot's model, for what is not compiled: the first step of a method that looks at `first_step`.
        programs: the graphs.
        slot: whose copies it takes.
        gradient_pass: whether they are those of the gradient pass.
    """

    unroll, block = UNROLL, 8 * UNROLL

    def __init__(self, replica: Replica, programs: Programs, slot: str, gradient_pass: bool) -> None:
        super().__init__(replica, programs.widths[-1])
        self._programs, self._slot, self._gradient_pass = programs, slot, gradient_pass
        self.first_alone = programs.first_alone(gradient_pass)

    def width(self, active: int) -> int:
        """The narrowest width there is a graph for."""
        widths: tuple[int, ...] = self._programs.widths
        return next(width for width in widths if width >= active)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """U steps a call."""
        if block.first and self.first_alone:
            return super().steps(hooks, local, block)
        width, count = block.mask.shape[1], len(local)
        run = self._programs.runner(self._slot, self._gradient_pass, width)
        fixed, stepped = _arguments(hooks, block)
        chunks = zip(*(tensor.contiguous().unflatten(0, (-1, UNROLL)).unbind() for tensor in stepped), strict=True)
        fixed, state = ([tensor.contiguous() for tensor in tensors] for tensors in (fixed, local.values()))
        losses = []
        for chunk in chunks:
            results = run([*state, *fixed, *chunk])
            state = list(results[:count])
            losses.append(results[count])
        return State(**dict(zip(local, state, strict=True))), torch.cat(losses)


def _arguments(hooks: Hooks, block: Block) -> tuple[list[Tensor], list[Tensor]]:
    """A graph's inputs besides the local state: those that stay, and those that have a row for each step."""
    clients = block.clients
    fixed = [*hooks.server.values(), clients.gradient, *clients.state.values(), *clients.numbers.values()]
    return fixed, [clients.key, block.mask, block.active, *block.batch]


def _flatten(hooks: Hooks, local: State, block: Block) -> list[Tensor]:
    fixed, stepped = _arguments(hooks, block)
    return [
        tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in (*local.values(), *fixed, *stepped)
    ]


def _trace(hooks: Hooks, local: State, block: Block, replica: Replica, first: bool) -> GraphModule:
    """The block's steps as a graph, from flat inputs to the local state's entries and the losses [S, C]."""
    executor = CohortExecutor(replica, len(block.mask[0]))
    clients = block.clients
    shape = _pytree.tree_structure((local, hooks.server, clients.gradient, clients.state, clients.numbers))

    def steps(*inputs: Tensor) -> list[Tensor]:
        known = shape.num_leaves
        states, server, gradient, remembered, numbers = _pytree.tree_unflatten(inputs[:known], shape)
        key, mask, active, *batch = inputs[known:]
        inner = type(hooks)(hooks.method, server, hooks.layout)
        losses = []
        for s in range(len(mask)):
            now = Clients(gradient, remembered, numbers, key[s])
            after, loss = executor.step(inner, states, now, tuple(tensor[s] for tensor in batch), mask[s], first)
            states = State(**{name: _where(active[s], after[name], states[name]) for name in states})
            losses.append(loss)
        return [*states.values(), torch.stack(losses)]

    with torch.no_grad(), hooks.calling("on_local_step"):
        return make_fx(steps, tracing_mode="fake", _allow_non_fake_inputs=True)(*_flatten(hooks, local, block))


def _where(active: Tensor, after: Tensor, before: Tensor) -> Tensor:
    return torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)


def _first_step(block: Block) -> Block:
    return Block(
        block.clients._replace(key=block.clients.key[:1]),
        tuple(tensor[:1] for tensor in block.batch),
        block.mask[:1],
        block.active[:1],
        block.count,
        block.first,
    )


def _digest(graph: GraphModule, *more: object) -> str:
    """A name for a graph, its constants and whatever else decides about the compiled code."""
    digest = hashlib.sha256(graph.code.encode())
    for name, constant in sorted({**dict(graph.named_buffers()), **vars(graph)}.items()):
        if isinstance(constant, Tensor):
            digest.update(
                name.encode() + constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    digest.update(repr(more).encode())
    return digest.hexdigest()[:32]


def _package(
    single: GraphModule, whole: Callable[[], GraphModule], flat: list[Tensor], threads: int
) -> tuple[Path, bool]:
    """Where the compiled graph is, and whether it was there already; the graph of a single step tells them apart."""
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in flat]
    name = _digest(single, shapes, threads, torch.__version__, platform.machine(), _processor())
    path = cache_folder() / f"{name}.pt2"
    if path.is_file():
        return path, True
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{name}.{os.getpid()}.pt2")
    with _quiet(), torch.no_grad():
        exported = torch.export.export(whole(), tuple(flat), strict=False)
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(beside), inductor_configs={"cpp.threads": threads}
        )
    beside.replace(path)
    return path, False


def _load(path: Path) -> Runner:
    with _quiet():
        loaded = torch._inductor.aoti_load_package(str(path))
    runner: Runner = loaded.loader.run
    return runner


def cache_folder() -> Path:
    """Where compiled graphs are kept: `$FEDLIGHTNING_CACHE`, or fedlightning in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlightning"
    return Path(os.environ.get("FEDLIGHTNING_CACHE") or usual) / "compiled"


@cache
def compiler() -> str | None:
    """The C++ compiler that a graph would be built with; None if there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports much, and only a compiled run needs it

    try:
        return get_cpp_compiler()
    except Exception:  # noqa: BLE001 - inductor raises its own kinds, which differ between versions
        return None


@cache
def _processor() -> str:
    """What tells processors apart that the compiled code may not run on alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks that the compiler's own modules make, e.g. on a missing GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
