"""Local steps as graphs: several steps of a client traced once, compiled ahead of time, kept on disk, run by every slot.

A graph holds U steps of one client, so that one is enough: side by side, clients would want a graph for each number of them
and save but little, since a product of a small model fills the processor's vectors by itself. U is 1 where a step is large,
and its convolutions stay the library's; what lies between them is fused. A graph's inputs are the client's tensors, what the
server sent and the batches, so it serves all rounds, data sets of one shape and runs with the same hyperparameters. Calls go
straight to the compiled library: through dynamo they would contend between slots.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree

from fedlightning.errors import ConfigurationError
from fedlightning.execution.grid import Padding
from fedlightning.execution.model import Replica
from fedlightning.execution.plan import Clients
from fedlightning.execution.runners.compiled.build import OPTIONS, Order, build, processor
from fedlightning.execution.runners.compiled.cache import kept
from fedlightning.execution.runners.compiled.native import Inputs, Walk, compiled_walk, preload, walk_in_python
from fedlightning.execution.runners.compiled.rewrite import RULES
from fedlightning.execution.runners.compiled.trace import NoGlobalNumbers, trace
from fedlightning.execution.runners.hooks import LiftedHook
from fedlightning.execution.runners.loop import Block, InTurnExecutor, LoopExecutor, of_clients, where_active
from fedlightning.hooks.diagnose import Hook, Hooks
from fedlightning.method import Batch
from fedlightning.state import State

UNROLL = 8
"""The most steps of one graph: from eight on, the call costs little beside them."""

_BLOCK = 512
"""Steps of all clients of a block, if one gather makes their batches; those of more steps would leave the cache."""


class _Program(NamedTuple):
    """The graph of a pass.

    Attributes:
        walk: makes a slot's own walk through it.
        used: positions of the inputs that it looks at.
        first_alone: whether a client's first step differs from the others.
        hooks: what clients do before and after it.
    """

    walk: Callable[[], Walk]
    used: tuple[int, ...]
    first_alone: bool
    hooks: Mapping[Hook, LiftedHook]


class Programs:
    """The graphs of a run: one for the local steps, and one for the gradient pass if there is one.

    Args:
        how: "compile" them, or only "trace" them, which needs no compiler and shows that a method can be compiled.
        threads: intra-operator threads of the compiled code.
        longest: local steps of the longest client; a graph has no more.
        large: whether a step is large; its graph has but one.

    Attributes:
        large: as given.
        unroll: U, steps of a graph.
        seconds: spent tracing and compiling.
    """

    def __init__(self, how: Literal["compile", "trace"], threads: int, longest: int, large: bool) -> None:
        self.how, self._threads, self.large = how, threads, large
        self.unroll = 1 if large else min(UNROLL, longest)
        self.seconds = 0.0
        self._programs: dict[bool, _Program] = {}
        self._walks: dict[tuple[str, bool], Walk] = {}

    @property
    def steps(self) -> str:
        """What a graph holds, in words."""
        return f"{self.unroll} local step{'s' * (self.unroll > 1)}"

    def has(self, gradient_pass: bool) -> bool:
        """Whether the graph of a pass is there."""
        return gradient_pass in self._programs

    def add(self, hooks: Hooks, gradient_pass: bool, local: State, block: Block, replica: Replica) -> None:
        """Trace the graph that takes this block's U steps of one client, and build it if it is not on disk.

        Raises:
            RuntimeError: it cannot be traced.
            ConfigurationError: it cannot be compiled.
        """
        began = time.perf_counter()
        try:
            self._programs[gradient_pass] = self._program(hooks, local, block, replica)
        finally:
            self.seconds += time.perf_counter() - began

    def _program(self, hooks: Hooks, local: State, block: Block, replica: Replica) -> _Program:
        one = _first_step(block)
        lone, single = (_trace(hooks, local, one, replica, first) for first in (True, False))
        used, first_alone, once = _used(single), _digest(lone) != _digest(single), _lifted(hooks, local, block)

        def whole() -> GraphModule:
            graph = single if self.unroll == 1 else _trace(hooks, local, block, replica, first=False)
            return _without_unused(graph, used)

        if self.how == "trace":
            graph = whole()
            walk = walk_in_python(lambda inputs: graph(*inputs), used, self.unroll)
            return _Program(lambda: walk, used, first_alone, once)
        inputs = [_flatten(hooks, local, block)[i] for i in used]

        def make(path: Path) -> None:
            rank_zero_info(f"Compiling {self.steps} into a graph, which takes about half a minute.")
            build(Order(whole(), inputs, self._threads, in_place=not self.large), path)

        path = _package(f"{self._name(_digest(single), inputs)}.pt2", make)
        return _Program(lambda: compiled_walk(path, used, self.unroll), used, first_alone, once)

    def _name(self, digest: str, inputs: list[Tensor]) -> str:
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in inputs]
        known = (digest, shapes, OPTIONS, self._threads, self.large, torch.__version__, platform.machine(), processor())
        return hashlib.sha256(repr(known).encode()).hexdigest()[:32]

    def first_alone(self, gradient_pass: bool) -> bool:
        """Whether a client's first step differs from the others."""
        return self._programs[gradient_pass].first_alone

    def hook(self, hook: Hook, gradient_pass: bool) -> LiftedHook:
        """What clients do before or after the local steps of a pass."""
        return self._programs[gradient_pass].hooks[hook]

    def walk(self, slot: str, gradient_pass: bool) -> Walk:
        """The slot's own walk through a graph."""
        key = (slot, gradient_pass)
        if key not in self._walks:
            self._walks[key] = self._programs[gradient_pass].walk()
        return self._walks[key]


def _package(name: str, make: Callable[[Path], None]) -> Path:
    """A package that is there, whole and loaded."""
    try:
        path = kept(name, make)
        preload(path)
    except OSError as error:
        raise ConfigurationError(
            f"Compiled steps must be written and loaded, but this machine says: {error}; use `compile=False`."
        ) from error
    return path


class CompiledExecutor(InTurnExecutor):
    """C clients one after another, U steps a call; the same mathematics as the cohort's, lifted into a graph.

    Args:
        replica: the slot's model, for what is not compiled: the first step of a method that looks at `first_step`.
        programs: the graphs.
        slot: whose copies it takes.
        gradient_pass: whether they are those of the gradient pass.
        gathers: whether it makes the batches itself, by picking examples.
    """

    def __init__(self, replica: Replica, programs: Programs, slot: str, gradient_pass: bool, gathers: bool) -> None:
        super().__init__(replica, size=0)
        self._programs, self._slot, self._gradient_pass, self._gathers = programs, slot, gradient_pass, gathers

    def padding(self, clients: int) -> Padding:
        """To U steps a call."""
        return Padding(clients, self._programs.unroll, self._programs.first_alone(self._gradient_pass))

    def block(self, width: int) -> int:
        """About 512 steps of all clients together, or eight times as many where no batch is made beforehand; 8 large ones."""
        if self._programs.large:
            return 8
        unroll = self._programs.unroll
        return max((8 * _BLOCK if self._gathers else _BLOCK) // unroll, 1) * unroll

    def call(self, hooks: Hooks, hook: Hook, *arguments: Any) -> Any:
        """Call the hook's own graph."""
        return self._programs.hook(hook, self._gradient_pass)(hooks.server, *arguments)

    def prepare(self, hooks: Hooks, local: State, block: Block) -> Callable[[], tuple[State, Tensor]]:
        """U steps a call."""
        calls = [length // self._programs.unroll for length in block.lengths]
        run = self._programs.walk(self._slot, self._gradient_pass)(_inputs(hooks, local, block), calls)

        def steps() -> tuple[State, Tensor]:
            state, losses = run()
            return State(**dict(zip(local, state, strict=True))), losses.unsqueeze(1)

        return steps


def _inputs(hooks: Hooks, local: State, block: Block) -> Inputs:
    rows: tuple[Any, ...] = (block.clients.key, block.mask, block.active, *block.batch, *block.gathered)
    return Inputs(tuple(local.values()), tuple(hooks.server.values()), of_clients(block.clients), rows)


def _flatten(hooks: Hooks, local: State, block: Block) -> list[Tensor]:
    inputs: Iterator[Any] = (tensor for part in _inputs(hooks, local, block) for tensor in part)
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs]


def _lifted(hooks: Hooks, local: State, block: Block) -> dict[Hook, LiftedHook]:
    clients = block.clients._replace(key=block.clients.key[0])
    with hooks.calling("on_client_start"):
        start = LiftedHook(hooks, "start", clients)
    with hooks.calling("on_client_end"):
        return {"start": start, "end": LiftedHook(hooks, "end", local, clients)}


def _trace(hooks: Hooks, local: State, block: Block, replica: Replica, first: bool) -> GraphModule:
    """The block's steps as a graph, from flat inputs to the local state's entries and the losses [S, 1]."""
    executor = LoopExecutor(replica, functional=True)
    clients = block.clients
    shape = _pytree.tree_structure((local, hooks.server, clients.gradient, clients.state, clients.numbers))

    def steps(*inputs: Tensor) -> list[Tensor]:
        known = shape.num_leaves
        states, server, gradient, remembered, numbers = _pytree.tree_unflatten(inputs[:known], shape)
        key, mask, active, *batch = inputs[known:]
        inner = hooks.at(server)
        losses = []
        with inner.calling("on_local_step"), NoGlobalNumbers():  # type: ignore[no-untyped-call]
            for s in range(len(mask)):
                now = Clients(gradient, remembered, numbers, key[s])
                one = Batch(*(tensor[s] for tensor in (*batch, mask)))
                after, loss = executor.step(inner, states, now, one, first)
                states = State(**{name: where_active(active[s], after[name], states[name]) for name in states})
                losses.append(torch.where(active[s], loss, 0).to(server.x.dtype))
        return [*(state.contiguous() for state in states.values()), torch.stack(losses)]

    return trace(steps, _flatten(hooks, local, block), rules=RULES)


def _used(graph: GraphModule) -> tuple[int, ...]:
    """The positions of the inputs that a graph looks at."""
    inputs = graph.graph.find_nodes(op="placeholder")
    return tuple(i for i, node in enumerate(inputs) if node.users)


def _without_unused(graph: GraphModule, used: tuple[int, ...]) -> GraphModule:
    """The graph without its other inputs."""
    for i, node in enumerate(graph.graph.find_nodes(op="placeholder")):
        if i not in used:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _first_step(block: Block) -> Block:
    return Block(
        block.clients._replace(key=block.clients.key[:1]),
        tuple(tensor[:1] for tensor in block.batch),
        block.mask[:1],
        block.active[:1],
        block.count,
        block.first,
    )


def _digest(graph: GraphModule) -> str:
    """What tells a graph and its constants, such as frozen layers, apart from others."""
    digest = hashlib.sha256(graph.code.encode())
    for name, constant in sorted(
        {**dict(graph.named_parameters()), **dict(graph.named_buffers()), **vars(graph)}.items()
    ):
        if isinstance(constant, Tensor):
            digest.update(
                name.encode() + constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()
