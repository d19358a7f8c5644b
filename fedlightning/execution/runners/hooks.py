"""A client's first and last hook as graphs over C clients, for any C: vmap costs several times what most of them compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

from fedlightning.execution.plan import Clients
from fedlightning.execution.runners.compiled.trace import trace
from fedlightning.hooks.diagnose import Hook, Hooks
from fedlightning.state import State

_TRIED = (1, 3)
"""Numbers of clients at which a graph is compared with vmap; it is traced at another one."""

Lifted = Callable[..., list[Tensor]]
"""From the server's tensors and those of C clients to what the hook gives, flat."""


class LiftedHook:
    """A hook that is lifted and traced once. What it gives is what vmap gives, bit for bit, for any clients and any server.

    The batching rules of some operations (scatter, index_add, quantile, a convolution) write the number of clients that they
    see while they are traced into the graph as a constant. So the graph is tried at other numbers, and where it gives
    anything but vmap's bits, the hook is taken under vmap.

    Args:
        hooks: whose hook it is.
        hook: its name.
        arguments: what it is given, of one client at least, entries [C, …].

    Raises:
        RuntimeError: vmap cannot take the hook.
    """

    def __init__(self, hooks: Hooks, hook: Hook, *arguments: Any) -> None:
        given, shape = _pytree.tree_flatten((hooks.server, *arguments))
        sizes = {size for tensor in given for size in tensor.shape}
        # Sizes that are the same in the example are taken to be always the same, so C is a number that no other size is.
        several = next(number for number in itertools.count(2) if number not in sizes and number not in _TRIED)
        unbound = hooks.at(State())  # the first round's server is not held

        def lifted(*tensors: Tensor) -> list[Tensor]:
            server, *rows = _pytree.tree_unflatten(tensors, shape)
            one = getattr(unbound.at(server), hook)
            results, self._shape = _pytree.tree_flatten(vmap(one, randomness="error")(*rows))
            return results

        self._run: Lifted = lifted
        examples = [list(_tensors((hooks.server, *_among(count, arguments)))) for count in _TRIED]
        wanted = [lifted(*tensors) for tensors in examples]
        graph = _graph(lifted, list(_tensors((hooks.server, *_among(several, arguments)))))
        if graph and all(map(partial(_gives, graph), examples, wanted)):
            self._run = graph

    def __call__(self, server: State, *arguments: Any) -> Any:
        """Its results, entries [C, …]."""
        return _pytree.tree_unflatten(self._run(*_tensors((server, *arguments))), self._shape)


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


def _graph(lifted: Lifted, tensors: list[Tensor]) -> Lifted | None:
    """The lifted hook as a graph, for any number of clients; None where it cannot be traced so."""
    try:
        run: Lifted = trace(lifted, tensors, any_size=True).forward
    except Exception:  # noqa: BLE001 - vmap has just taken the same hook, and will take it again
        return None
    return run


def _gives(run: Lifted, tensors: list[Tensor], wanted: list[Tensor]) -> bool:
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


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in states and tuples; in the same order `_pytree` takes several times as long."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from value.values() if isinstance(value, State) else _tensors(value)
