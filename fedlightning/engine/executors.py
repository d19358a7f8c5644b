"""How hooks and local steps are executed: one client at a time, a cohort at once, or a cohort's steps as one graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedlightning.engine.hooks import Hooks
from fedlightning.engine.job import Clients
from fedlightning.engine.replica import Replica, mean_loss
from fedlightning.method import Batch, ClientContext, FedMethod
from fedlightning.state import State


class Block(NamedTuple):
    """S consecutive local steps of C clients.

    Attributes:
        clients: their tensors [C, …], but `key` [S, C].
        batch: tensors [S, C, B, …].
        mask: the filled places of each batch [S, C, B].
        active: who takes each step [S, C]; the others have finished, and stand behind them.
        count: how many clients take the first of these steps.
        first: whether the first of these steps is the clients' first.
    """

    clients: Clients
    batch: Batch
    mask: Tensor
    active: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a block
    first: bool

    def step(self, s: int) -> tuple[Clients, Batch, Tensor]:
        """Clients, batches [C, B, …] and mask [C, B] of one step."""
        return self.clients._replace(key=self.clients.key[s]), tuple(t[s] for t in self.batch), self.mask[s]


class Executor(Protocol):
    """Runs hooks over the tensors of C clients, entries [C, …].

    Attributes:
        unroll: U, the steps of a block are a multiple of it.
        block: the most steps of a block.
        first_alone: whether the first step makes a block of its own.
    """

    unroll: int
    block: int
    first_alone: bool

    def width(self, active: int) -> int:
        """C for so many clients: the narrowest of a few fixed widths that holds them."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook once for each client, on arguments whose tensors have a leading [C]."""

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """The local states after a block of steps, and the losses [S, C]."""


class LoopExecutor:
    """One client, C = 1, on a native autograd module; serves any model. Made anew for each client and round."""

    unroll, block, first_alone = 1, 1, False

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._contexts: dict[bool, ClientContext] = {}

    def width(self, active: int) -> int:
        """1."""
        return 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the hook on the one client's tensors."""
        return one_by_one(function, 1, arguments)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """One local step; the batch has only filled places, since there is but one client."""
        clients, batch, mask = block.step(0)
        if block.first not in self._contexts:
            self._contexts[block.first] = hooks.context(_of(clients, 0), block.first)
        client = replace(self._contexts[block.first], key=clients.key[0])
        after, loss = self._step(hooks, local, client, batch, mask, padded=False)
        return after, loss.unsqueeze(0)

    def step(
        self, hooks: Hooks, local: State, clients: Clients, batch: Batch, mask: Tensor, first: bool
    ) -> tuple[State, Tensor]:
        """The local state [1, …] and the loss [1] after a step on a batch [1, B, …] of which some places may be empty."""
        return self._step(hooks, local, hooks.context(_of(clients, 0), first), batch, mask, padded=True)

    def _step(
        self, hooks: Hooks, local: State, client: ClientContext, batch: Batch, mask: Tensor, padded: bool
    ) -> tuple[State, Tensor]:
        one, filled = tuple(tensor[0] for tensor in batch), mask[0] if padded else None
        losses: list[Tensor] = []

        def grad(w: Tensor) -> Tensor:
            if type(hooks.method).objective is FedMethod.objective:
                gradient, loss = self._replica.gradient(w, one, client.key, filled)
            else:
                leaf = w.detach().requires_grad_()
                with torch.enable_grad():
                    each = hooks.method.objective(self._replica.at(client.key), leaf, one, client)
                    loss = mean_loss(each, filled)
                    (gradient,) = torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
            return gradient

        after = hooks.step(_of(local, 0), grad, client, mask)
        return after.apply(lambda tensor: tensor.unsqueeze(0)), _first(losses, hooks).unsqueeze(0)


class CohortExecutor:
    """C clients at once under `torch.func.vmap`; serves models whose operations have batching rules."""

    unroll, block, first_alone = 1, 1, False

    def __init__(self, replica: Replica, size: int) -> None:
        self._replica, self._size = replica, size

    def width(self, active: int) -> int:
        """The cohort's size or a power of two."""
        return min(self._size, 1 << (active - 1).bit_length())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the hook on all clients at once."""
        return vmap(function, randomness="error")(*arguments)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """One local step of all clients."""
        after, loss = self.step(hooks, local, *block.step(0), block.first)
        after = after if block.count == len(loss) else _keep_finished(after, local, block.count)
        return after, loss.unsqueeze(0)

    def step(
        self, hooks: Hooks, local: State, clients: Clients, batch: Batch, mask: Tensor, first: bool
    ) -> tuple[State, Tensor]:
        """One local step from batches [C, B, …]: local states and losses [C], each the mean over a batch's filled places."""

        def one(local: State, clients: Clients, mask: Tensor, *batch: Tensor) -> tuple[State, Tensor]:
            client = hooks.context(clients, first)
            model = self._replica.at(client.key)
            losses: list[Tensor] = []

            def mean(w: Tensor) -> Tensor:
                return mean_loss(hooks.method.objective(model, w, batch, client), mask)

            def grad(w: Tensor) -> Tensor:
                gradient: Tensor
                gradient, loss = grad_and_value(mean)(w)
                losses.append(loss)
                return gradient

            return hooks.step(local, grad, client, mask), _first(losses, hooks)

        result: tuple[State, Tensor] = vmap(one, randomness="error")(local, clients, mask, *batch)
        return result


def few_widths(cohort_size: int) -> tuple[int, ...]:
    """The widths that graphs are made for: 1, the cohort's size, and one between."""
    return tuple(sorted({1, round(cohort_size**0.5), cohort_size}))


def narrowest(widths: tuple[int, ...], active: int) -> int:
    """The narrowest of rising widths that holds so many clients."""
    return next(width for width in widths if width >= active)


def constants(hooks: Hooks, clients: Clients) -> list[Tensor]:
    """What a graph is given besides the local state that stays the same in all of its steps."""
    return [*hooks.server.values(), clients.gradient, *clients.state.values(), *clients.numbers.values()]


def where_active(active: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """Entries [C, …] after a step for those clients that take it [C], before it for the others."""
    return torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)


def _first(losses: list[Tensor], hooks: Hooks) -> Tensor:
    """The loss at the first point that a step asked the gradient of."""
    return losses[0] if losses else torch.zeros((), dtype=hooks.server.x.dtype, device=hooks.server.x.device)


def _keep_finished(after: State, before: State, active: int) -> State:
    """The new states of the first `active` clients, the old ones of those that had finished."""
    return State(**{name: torch.cat([after[name][:active], before[name][active:]]) for name in after})


def one_by_one(function: Callable[..., Any], count: int, arguments: tuple[Any, ...]) -> Any:
    """Call a hook for each of `count` clients in turn, on its part of the arguments, and stack what it gives."""
    return _stack([function(*(_of(argument, c) for argument in arguments)) for c in range(count)])


def _of(value: Any, c: int) -> Any:
    """One client's part of tensors that have a leading [C]."""
    if isinstance(value, Tensor):
        return value[c]
    return Clients(*(_of(part, c) for part in value)) if isinstance(value, Clients) else value.apply(lambda t: t[c])


def _stack(results: list[Any]) -> Any:
    """Several clients' results, with a leading [C]."""
    one = results[0]
    if isinstance(one, tuple):
        return tuple(map(_stack, map(list, zip(*results, strict=True))))
    if isinstance(one, Tensor):
        return one.unsqueeze(0) if len(results) == 1 else torch.stack(results)
    return State(**{name: _stack([result[name] for result in results]) for name in one})
