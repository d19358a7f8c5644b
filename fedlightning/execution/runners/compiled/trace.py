"""From a function of tensors to the graph of what it does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode


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


class NoGlobalNumbers(TorchDispatchMode):
    """Raises where random numbers are drawn of which the process has but one sequence: a graph would not repeat them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, or refuse it."""
        if draws(func, args, kwargs or {}):
            raise RuntimeError(f"{func} is a random operation")
        return func(*args, **(kwargs or {}))


def draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers; attention does so only for its own dropout."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            rate: float = kwargs.get("dropout_p", args[i] if i < len(args) else argument.default_value)
            return rate > 0
    return True
