"""From a function of tensors to the graph of what it does to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def trace(
    function: Callable[..., Any],
    tensors: Sequence[Tensor],
    *,
    any_size: bool = False,
    rules: Mapping[Any, Callable[..., Any]] | None = None,
) -> GraphModule:
    """The operations of a function that gives a list of tensors, and of its backward passes; none is carried out.

    Modules are changed for all threads meanwhile, so none may use one.

    Args:
        function: of the tensors.
        tensors: of the shapes and strides that it will be given.
        any_size: their sizes may be others then; those that are the same here must be the same there.
        rules: what is put in the place of an operation.
    """
    with torch.no_grad():
        mode: Literal["symbolic", "fake"] = "symbolic" if any_size else "fake"
        traced = make_fx(function, dict(rules or {}), tracing_mode=mode, _allow_non_fake_inputs=True)
        graph = traced(*(tensor.detach() for tensor in tensors))  # two may be one tensor now, and not later
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def used_inputs(graph: GraphModule) -> tuple[int, ...]:
    """The positions of the inputs that a graph looks at."""
    inputs = graph.graph.find_nodes(op="placeholder")
    return tuple(i for i, node in enumerate(inputs) if node.users)


def without_unused(graph: GraphModule, used: tuple[int, ...]) -> GraphModule:
    """Take the other inputs out of the graph."""
    for i, node in enumerate(graph.graph.find_nodes(op="placeholder")):
        if i not in used:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def digest(graph: GraphModule) -> str:
    """What tells a graph and its constants, such as frozen layers, apart from others."""
    content = hashlib.sha256(graph.code.encode())
    for name, constant in sorted(
        {**dict(graph.named_parameters()), **dict(graph.named_buffers()), **vars(graph)}.items()
    ):
        if isinstance(constant, Tensor):
            flat = constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            content.update(name.encode() + flat.numpy().tobytes())
    return content.hexdigest()
