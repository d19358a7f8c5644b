"""A client's first and last hook as graphs over C clients, for any C: vmap costs several times what most of them compute."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

from fedlightning.engine.hooks import Hook, Hooks
from fedlightning.engine.tracing import trace
from fedlightning.state import State


class LiftedHook:
    """A hook that is lifted and traced once. What it gives is what vmap gives, bit for bit, for any clients and any server.

    Args:
        hooks: whose hook it is.
        hook: its name.
        arguments: what it is given, of one client at least, entries [C, …].
    """

    def __init__(self, hooks: Hooks, hook: Hook, *arguments: Any) -> None:
        given, shape = _pytree.tree_flatten((hooks.server, *arguments))
        sizes = {size for tensor in given for size in tensor.shape}
        # Sizes that are the same in the example are taken to be always the same, so C is a number that no other size is.
        several = next(number for number in itertools.count(2) if number not in sizes)

        def lifted(*tensors: Tensor) -> list[Tensor]:
            server, *own = _pytree.tree_unflatten(tensors, shape)
            one = getattr(hooks.at(server), hook)
            results, self._shape = _pytree.tree_flatten(vmap(one, randomness="error")(*own))
            return results

        shared, own = given[: len(hooks.server)], given[len(hooks.server) :]
        own = [tensor[:1].expand(several, *tensor.shape[1:]).clone() for tensor in own]
        self._run = trace(lifted, [*shared, *own], any_size=True).forward

    def __call__(self, server: State, *arguments: Any) -> Any:
        """Its results, entries [C, …]."""
        return _pytree.tree_unflatten(self._run(*_tensors((server, *arguments))), self._shape)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in states and tuples; in the same order `_pytree` takes several times as long."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from value.values() if isinstance(value, State) else _tensors(value)
