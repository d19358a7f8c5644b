"""A cohort's local step as a plain graph, once it was taken often: vmap and grad cost more than a small step computes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from fedlightning.engine.hooks import Hooks

_OFTEN = 100
"""Steps of one shape that show that more will come: to trace one takes a tenth of a second, and saves half a millisecond."""

Step = Callable[..., Any]
"""From hooks, whether it is the clients' first, and the tensors of C clients to what a local step makes of them."""

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

    def take(self, step: Step, hooks: Hooks, first: bool, *arguments: Any) -> Any:
        """A step on arguments that are tensors, or trees of them."""
        given = (hooks.server, *arguments)
        tensors = _pytree.tree_leaves(given)
        key = (type(hooks), first, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if graph := self._graphs.get(key):
            return graph(tensors)
        if not self._off:
            with self._lock:
                self._seen[key] += 1
                if self._seen[key] == _OFTEN:
                    self._wanted[key] = partial(_trace, step, hooks, first, given)
        return step(hooks, first, *arguments)

    def grow(self) -> None:
        """Trace what was often taken since the last call."""
        while self._wanted and not self._off:
            key, trace = self._wanted.popitem()
            try:
                self._graphs[key] = trace()
            except Exception as error:  # noqa: BLE001 - the same steps are taken without a graph
                self._off = True
                rank_zero_info(f"Cohorts take their steps under vmap, since these cannot be traced: {error}")


def _trace(step: Step, hooks: Hooks, first: bool, given: tuple[Any, ...]) -> Traced:
    tensors, shape = _pytree.tree_flatten(given)
    results: list[Any] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        server, *arguments = _pytree.tree_unflatten(tensors, shape)
        inner = type(hooks)(hooks.method, server, hooks.layout)
        leaves, tree = _pytree.tree_flatten(step(inner, first, *arguments))
        results.append(tree)
        return leaves

    with torch.no_grad(), hooks.calling("on_local_step"):
        trace = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = trace(*(tensor.detach().clone() for tensor in tensors))  # two may be one tensor now, and not later
    graph.graph.eliminate_dead_code()
    graph.recompile()
    run, tree = graph.forward, results[0]
    return lambda tensors: _pytree.tree_unflatten(run(*tensors), tree)
