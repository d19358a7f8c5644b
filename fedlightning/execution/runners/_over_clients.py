"""A client's first and last hook as graphs over C clients, for any C: vmap costs several times what most of them compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from fedlightning.execution.runners._trace import trace
from fedlightning.execution.step import Clients, FlatFunction, flat
from fedlightning.state import State

_TRIED = (1, 3)
"""Numbers of clients at which a graph is compared with vmap; it is traced at another one."""

Flat = Callable[..., list[Tensor]]
"""From the server's tensors and those of C clients to what a hook gives, flat."""


def traced_over_clients(hook: Callable[..., Any], server: State, *arguments: Any) -> Callable[..., Any]:
    """A hook of C clients, traced once: `hook(server, *arguments)`, for any clients and any server.

    It gives vmap's bits. The batching rules of some operations (scatter, index_add, quantile, a convolution) write the number
    of clients that they see while they are traced into the graph as a constant. So the graph is tried at other numbers, and
    where it gives anything but vmap's bits, the hook is taken under vmap.

    Args:
        hook: such as `LocalStep.starts`.
        server: what the server sent.
        arguments: what the hook is given besides, entries [C, …] of one client at least.

    Raises:
        RuntimeError: vmap cannot take the hook.
    """
    lifted = FlatFunction(hook, server, *arguments)
    sizes = {size for tensor in flat(server, *arguments) for size in tensor.shape}
    # Sizes that are the same in the example are taken to be always the same, so C is a number that no other size is.
    several = next(number for number in itertools.count(2) if number not in sizes and number not in _TRIED)
    examples = [flat(server, *_among(count, arguments)) for count in _TRIED]
    wanted = [lifted(*tensors) for tensors in examples]
    graph, run = _graph(lifted, flat(server, *_among(several, arguments))), lifted.__call__
    if graph and all(map(partial(_gives, graph), examples, wanted)):
        run = graph

    def call(server: State, *arguments: Any) -> Any:
        return lifted.unflat(run(*flat(server, *arguments)))

    return call


def _among(count: int, arguments: Iterable[Any]) -> Iterator[Any]:
    """The first client's arguments as those of so many clients, no two of them alike."""
    for argument in arguments:
        rows = _pytree.tree_map(partial(_rows, count), argument)
        if isinstance(rows, Clients):
            rows = rows._replace(key=rows.key + torch.arange(count, device=rows.key.device))
        yield rows


def _rows(count: int, tensor: Tensor) -> Tensor:
    """So many rows [count, …] around the first one; those of whole numbers are like it, as they may be positions."""
    rows = tensor[:1].expand(count, *tensor.shape[1:]).clone()
    steps = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
    return rows + steps.sin().to(rows.dtype) if rows.is_floating_point() else rows


def _graph(lifted: Flat, tensors: list[Tensor]) -> Flat | None:
    """The lifted hook as a graph, for any number of clients; None where it cannot be traced so."""
    try:
        run: Flat = trace(lifted, tensors, any_size=True).forward
    except Exception:  # noqa: BLE001 - vmap has just taken the same hook, and will take it again
        return None
    return run


def _gives(run: Flat, tensors: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether a graph gives these results, NaNs where they are."""
    try:
        found = run(*tensors)
    except Exception:  # noqa: BLE001 - a constant of another number of clients does not fit these
        return False
    return all(map(_same, found, wanted))


def _same(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
