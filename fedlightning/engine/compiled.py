"""Local steps as graphs: several steps of a cohort traced once, compiled ahead of time, kept on disk, run by every slot.

A graph holds U steps of C clients, for a few fixed C. Its inputs are the clients' tensors, what the server sent and the
batches, so one graph serves all rounds, data sets of one shape and runs with the same hyperparameters. Calls go straight
to the compiled library: through dynamo they would contend between slots.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from fedlightning.engine.executors import (
    Block,
    CohortExecutor,
    constants,
    few_widths,
    narrowest,
    one_by_one,
    where_active,
)
from fedlightning.engine.hooks import Hooks
from fedlightning.engine.job import Clients
from fedlightning.engine.packages import Order, Run, build, cache_folder, load, processor
from fedlightning.engine.replica import Replica
from fedlightning.state import State

UNROLL = 8
"""The most steps of one graph: from eight on, the call costs little beside them."""

_SMALL = 16_384
"""Multiplications of a matrix product below which calling a library costs more than the product."""

_FEW = 4
"""Clients that a hook is called for in turn."""


class Program(NamedTuple):
    """A graph that one slot may run.

    Attributes:
        run: from the inputs that it looks at to the local state's entries and the losses [U, C].
        used: their positions among all inputs.
    """

    run: Run
    used: tuple[int, ...]


class _Step(NamedTuple):
    """What one step of a few clients tells of all graphs of a pass, since they differ in width alone.

    Attributes:
        digest: of its operations and constants.
        used: positions of the inputs that it looks at.
        first_alone: whether a client's first step differs from the others.
    """

    digest: str
    used: tuple[int, ...]
    first_alone: bool


class Programs:
    """The graphs of a run, for each width, and the widths there are.

    Args:
        how: "compile" them, or only "trace" them, which needs no compiler and shows that a method can be compiled.
        cohort_size: the largest width.
        threads: intra-operator threads of the compiled code.
        longest: local steps of the longest client; a graph has no more.

    Attributes:
        widths: at most three: 1, the cohort's size, and one between.
        unroll: U, steps of a graph.
        seconds: spent tracing and compiling.
    """

    def __init__(self, how: Literal["compile", "trace"], cohort_size: int, threads: int, longest: int) -> None:
        self.how, self._threads, self.unroll = how, threads, min(UNROLL, longest)
        self.widths = few_widths(cohort_size)
        self.seconds = 0.0
        self._sources: dict[tuple[bool, int], Callable[[], Program]] = {}
        self._programs: dict[tuple[str, bool, int], Program] = {}
        self._steps: dict[bool, _Step] = {}
        self._orders: list[Order] = []

    def has(self, gradient_pass: bool, width: int) -> bool:
        """Whether the graph of this width is there."""
        return (gradient_pass, width) in self._sources

    def add(self, hooks: Hooks, gradient_pass: bool, local: State, block: Block, replica: Replica) -> None:
        """Trace the graph that takes this block's U steps; `finish` builds it."""
        began, width = time.perf_counter(), len(block.mask[0])
        if gradient_pass not in self._steps:
            one = _first_step(block)
            lone, single = (_trace(hooks, local, one, replica, first) for first in (True, False))
            self._steps[gradient_pass] = _Step(_digest(single), _used(single), _digest(lone) != _digest(single))
        step = self._steps[gradient_pass]
        used = step.used

        def whole() -> GraphModule:
            return _without_unused(_trace(hooks, local, block, replica, first=False), used)

        if self.how == "trace":
            graph = whole()
            self._sources[gradient_pass, width] = lambda: Program(lambda inputs: graph(*inputs), used)
            return
        inputs = [_flatten(hooks, local, block)[i] for i in used]
        path = cache_folder() / f"{self._name(step, inputs)}.pt2"
        self._sources[gradient_pass, width] = lambda: Program(load(path), used)
        if not path.is_file():
            self._orders.append(Order(path, whole(), inputs, self._threads))
        self.seconds += time.perf_counter() - began

    def finish(self) -> None:
        """Build the graphs that were added and are not on disk.

        Raises:
            RuntimeError: one cannot be compiled.
        """
        began, orders = time.perf_counter(), self._orders
        self._orders = []
        if orders:
            rank_zero_info(
                f"Compiling {len(orders)} graphs of {self.unroll} local steps; they are kept for later runs."
            )
            build(orders)
        self.seconds += time.perf_counter() - began

    def _name(self, step: _Step, inputs: list[Tensor]) -> str:
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in inputs]
        known = (step.digest, shapes, self._threads, torch.__version__, platform.machine(), processor())
        return hashlib.sha256(repr(known).encode()).hexdigest()[:32]

    def first_alone(self, gradient_pass: bool) -> bool:
        """Whether a client's first step differs from the others."""
        return self._steps[gradient_pass].first_alone

    def program(self, slot: str, gradient_pass: bool, width: int) -> Program:
        """The slot's own copy of a graph."""
        key = (slot, gradient_pass, width)
        if key not in self._programs:
            self._programs[key] = self._sources[key[1:]]()
        return self._programs[key]


class CompiledExecutor(CohortExecutor):
    """C clients at once, U steps a call; the same mathematics as the cohort's, lifted into a graph.

    Args:
        replica: the slot's model, for what is not compiled: the first step of a method that looks at `first_step`.
        programs: the graphs.
        slot: whose copies it takes.
        gradient_pass: whether they are those of the gradient pass.
    """

    def __init__(self, replica: Replica, programs: Programs, slot: str, gradient_pass: bool) -> None:
        super().__init__(replica, programs.widths[-1])
        self._programs, self._slot, self._gradient_pass = programs, slot, gradient_pass
        self.unroll, self.block = programs.unroll, 16 * programs.unroll
        self.first_alone = programs.first_alone(gradient_pass)

    def width(self, active: int) -> int:
        """The narrowest width there is a graph for."""
        return narrowest(self._programs.widths, active)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook for each client; for few of them in turn, which is faster than to lift it."""
        clients: Clients = arguments[-1]
        count = len(clients.key)
        return one_by_one(function, count, arguments) if count <= _FEW else super().call(function, *arguments)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """U steps a call."""
        if block.first and self.first_alone:
            return super().steps(hooks, local, block)
        run, used = self._programs.program(self._slot, self._gradient_pass, block.mask.shape[1])
        count, state, losses = len(local), [entry.contiguous() for entry in local.values()], []
        fixed, stepped = constants(hooks, block.clients), _rows(block)
        kept = [i for i in used if i < count]
        constant = [fixed[i - count].contiguous() for i in used if count <= i < count + len(fixed)]
        rows = [stepped[i - count - len(fixed)] for i in used if i >= count + len(fixed)]
        chunks = (row.contiguous().view(-1, self.unroll, *row.shape[1:]).unbind() for row in rows)
        for chunk in zip(*chunks, strict=True):
            results = run([*(state[i] for i in kept), *constant, *chunk])
            state = results[:count]
            losses.append(results[count])
        return State(**dict(zip(local, state, strict=True))), torch.cat(losses)


def _rows(block: Block) -> list[Tensor]:
    """A graph's inputs that have a row for each step."""
    return [block.clients.key, block.mask, block.active, *block.batch]


def _flatten(hooks: Hooks, local: State, block: Block) -> list[Tensor]:
    inputs = (*local.values(), *constants(hooks, block.clients), *_rows(block))
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs]


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
            states = State(**{name: where_active(active[s], after[name], states[name]) for name in states})
            losses.append(loss)
        return [*states.values(), torch.stack(losses)]

    with torch.no_grad(), hooks.calling("on_local_step"):
        sums = {torch.ops.aten.bmm.default: _product}
        lifted = make_fx(steps, sums, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = lifted(*_flatten(hooks, local, block))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The products [C, M, N] of a [C, M, K] and b [C, K, N]; small ones as sums, which the compiler fuses with the rest."""
    if a[0].numel() * b.shape[2] > _SMALL:
        return NotImplemented  # type: ignore[no-any-return]  # make_fx then keeps the product as it is
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


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
    """What tells a graph and its constants apart from others."""
    digest = hashlib.sha256(graph.code.encode())
    for name, constant in sorted({**dict(graph.named_buffers()), **vars(graph)}.items()):
        if isinstance(constant, Tensor):
            digest.update(
                name.encode() + constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()
