"""A cohort's local step as a plain graph, once it was taken often: vmap and grad cost more than a small step computes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils import _pytree

from fedlightning.execution.runners.compiled.trace import trace
from fedlightning.hooks.diagnose import Hooks

_OFTEN = 100
"""Steps of one shape that show that more will come: to trace one takes a tenth of a second, and saves half a millisecond."""

Step = Callable[..., Any]
"""From hooks and the tensors of C clients, and whether it is their `first`, to what a local step makes of them."""

Traced = Callable[..., Any]


class Traces:
    """The graphs of a run, by what they take; they give the step's own bits, so that it does not matter who takes which.

    Tracing changes modules for all threads, so slots only say what is worth it, and `grow` is called while none works.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, Traced] = {}
        self._seen: Counter[Any] = Counter()
        self._wanted: dict[Any, Callable[[], Traced]] = {}
        self._lock = threading.Lock()
        self._off = False

    def take(self, step: Step, hooks: Hooks, *arguments: Any, first: bool) -> Any:
        """A step on arguments that are tensors, or trees of them."""
        if self._off:
            return step(hooks, *arguments, first=first)
        given = (hooks.server, *arguments)
        tensors = _pytree.tree_leaves(given)
        key = (type(hooks), first, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors))
        if graph := self._graphs.get(key):
            return graph(tensors)
        with self._lock:
            self._seen[key] += 1
            if self._seen[key] == _OFTEN:
                self._wanted[key] = partial(_traced, step, hooks, given, first)
        return step(hooks, *arguments, first=first)

    def grow(self) -> None:
        """Trace what was often taken since the last call."""
        while self._wanted and not self._off:
            key, make = self._wanted.popitem()
            try:
                self._graphs[key] = make()
            except Exception as error:  # noqa: BLE001 - the same steps are taken without a graph
                self._off = True
                rank_zero_info(f"Cohorts take their steps under vmap, since these cannot be traced: {error}")


def _traced(step: Step, hooks: Hooks, given: tuple[Any, ...], first: bool) -> Traced:
    tensors, shape = _pytree.tree_flatten(given)
    results: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        server, *arguments = _pytree.tree_unflatten(tensors, shape)
        leaves, tree = _pytree.tree_flatten(step(hooks.at(server), *arguments, first=first))
        results.append(tree)
        return leaves

    with hooks.calling("on_local_step"):
        run = trace(flat, tensors).forward
    return lambda tensors: _pytree.tree_unflatten(run(*tensors), results[0])
