"""How hooks and local steps are executed: one client at a time, or a cohort at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedlightning.engine.hooks import Hooks
from fedlightning.engine.job import Clients
from fedlightning.engine.replica import Replica
from fedlightning.method import Batch, ClientContext, FedMethod
from fedlightning.state import State


class Executor(Protocol):
    """Runs hooks over the tensors of C clients, entries [C, …]."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook once for each client, on arguments whose tensors have a leading [C]."""

    def step(
        self, hooks: Hooks, local: State, clients: Clients, batch: Batch, mask: Tensor, first: bool
    ) -> tuple[State, Tensor]:
        """One local step of each client: local states and losses [C], from batches [C, B, …] with masks [C, B]."""


class LoopExecutor:
    """One client, C = 1, on a native autograd module; serves any model. Made anew for each client and round."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._contexts: dict[bool, ClientContext] = {}

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the hook on the one client's tensors."""
        result = function(*map(_drop_dim, arguments))
        return tuple(map(_add_dim, result)) if isinstance(result, tuple) else _add_dim(result)

    def step(
        self, hooks: Hooks, local: State, clients: Clients, batch: Batch, mask: Tensor, first: bool
    ) -> tuple[State, Tensor]:
        """One local step; the batch has only filled places, since there is but one client."""
        if first not in self._contexts:
            self._contexts[first] = hooks.context(_drop_dim(clients), first)
        client = replace(self._contexts[first], key=clients.key[0])
        one = tuple(tensor[0] for tensor in batch)
        losses: list[Tensor] = []

        def grad(w: Tensor) -> Tensor:
            if type(hooks.method).objective is FedMethod.objective:
                gradient, loss = self._replica.gradient(w, one, client.key)
            else:
                leaf = w.detach().requires_grad_()
                with torch.enable_grad():
                    loss = hooks.method.objective(self._replica.at(client.key), leaf, one, client).mean()
                    (gradient,) = torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
            return gradient

        after = hooks.step(_drop_dim(local), grad, client, mask)
        return _add_dim(after), _first(losses, hooks).unsqueeze(0)


class CohortExecutor:
    """C clients at once under `torch.func.vmap`; serves models whose operations have batching rules."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the hook on all clients at once."""
        return vmap(function, randomness="error")(*arguments)

    def step(
        self, hooks: Hooks, local: State, clients: Clients, batch: Batch, mask: Tensor, first: bool
    ) -> tuple[State, Tensor]:
        """One local step of all clients; the mean loss is over the filled places of each batch."""

        def one(local: State, clients: Clients, mask: Tensor, *batch: Tensor) -> tuple[State, Tensor]:
            client = hooks.context(clients, first)
            model = self._replica.at(client.key)
            losses: list[Tensor] = []

            def mean(w: Tensor) -> Tensor:
                each = hooks.method.objective(model, w, batch, client) * mask
                return each.sum() / mask.sum().clamp(min=1)

            def grad(w: Tensor) -> Tensor:
                gradient: Tensor
                gradient, loss = grad_and_value(mean)(w)
                losses.append(loss)
                return gradient

            return hooks.step(local, grad, client, mask), _first(losses, hooks)

        result: tuple[State, Tensor] = vmap(one, randomness="error")(local, clients, mask, *batch)
        return result


def _first(losses: list[Tensor], hooks: Hooks) -> Tensor:
    """The loss at the first point that a step asked the gradient of."""
    return losses[0] if losses else torch.zeros((), dtype=hooks.server.x.dtype, device=hooks.server.x.device)


def _drop_dim(value: Any) -> Any:
    """The one client's tensors, without their leading [1]."""
    if isinstance(value, Clients):
        return Clients(*map(_drop_dim, value))
    return value[0] if isinstance(value, Tensor) else value.apply(_drop_dim)


def _add_dim(value: Any) -> Any:
    return value.unsqueeze(0) if isinstance(value, Tensor) else value.apply(_add_dim)
