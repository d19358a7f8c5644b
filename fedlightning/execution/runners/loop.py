"""How hooks and local steps are executed: one client at a time, a cohort at once, or several steps as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedlightning.execution.grid import Padding
from fedlightning.execution.model import Replica
from fedlightning.execution.numerics import channels_last
from fedlightning.execution.plan import Clients
from fedlightning.execution.runners.vmap import Traces
from fedlightning.hooks.diagnose import Hook, Hooks
from fedlightning.method import Batch, ClientContext, FedMethod
from fedlightning.state import State


class Gathered(NamedTuple):
    """Batches that are made where they are used, and stay in the cache.

    Attributes:
        source: the examples [n, …].
        index: which of them [S, 1, B] (int64).
    """

    source: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of batches


class Block(NamedTuple):
    """S consecutive local steps of C clients.

    Attributes:
        clients: their tensors [C, …], but `key` [S, C].
        batch: inputs and targets [S, C, B, …]; nothing where the executor is to gather them itself.
        mask: the filled places of each batch [S, C, B].
        active: who takes each step [S, C]; the others have finished, and stand behind them.
        count: how many clients take the first of these steps.
        first: whether the first of these steps is the clients' first.
        lengths: empty; or the steps of each client, where they stand not side by side but one client after another, S being
            all of them and C = 1.
        gathered: the batches that the executor gathers itself.
        filled: places of the first client's batch in each step that are filled, the ones in front.
    """

    clients: Clients
    batch: tuple[Tensor, ...]
    mask: Tensor
    active: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a block
    first: bool
    lengths: tuple[int, ...] = ()
    gathered: tuple[Gathered, ...] = ()
    filled: Sequence[int] = ()

    def step(self, s: int) -> tuple[Clients, Batch]:
        """Clients and batches [C, B, …] of one step."""
        return self.clients._replace(key=self.clients.key[s]), Batch(*(t[s] for t in (*self.batch, self.mask)))


class Executor(Protocol):
    """Runs hooks over the tensors of C clients, entries [C, …]."""

    def padding(self, clients: int) -> Padding:
        """How a cohort of so many clients is to be laid out."""

    def block(self, width: int) -> int:
        """The most steps of a block of so many clients."""

    def width(self, active: int) -> int:
        """C for so many clients: the narrowest of a few fixed widths that holds them."""

    def call(self, hooks: Hooks, hook: Hook, *arguments: Any) -> Any:
        """Call a hook once for each client, on arguments whose tensors have a leading [C]."""

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """The local states after a block of steps, and the losses [S, C]."""


class LoopExecutor:
    """One client, C = 1, on a native autograd module; serves any model. Made anew for each client and round.

    Args:
        replica: the slot's model.
        functional: whether the model is taken as a function of w, which can be traced; to run, the module itself costs less.
    """

    def __init__(self, replica: Replica, functional: bool = False) -> None:
        self._replica, self._functional = replica, functional
        self._contexts: dict[bool, ClientContext] = {}

    def padding(self, clients: int) -> Padding:
        """None."""
        return Padding(1)

    def block(self, width: int) -> int:
        """8, for whose batches there is one gather."""
        return 8

    def width(self, active: int) -> int:
        """1."""
        return 1

    def call(self, hooks: Hooks, hook: Hook, *arguments: Any) -> Any:
        """Call the hook on the one client's tensors."""
        return _stack(getattr(hooks, hook)(*map(_only, arguments)))

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """The block's steps; each batch has only filled places, since there is but one client."""
        state, losses = _only(local), []
        # One call takes a tensor of the block apart: a view made anew for each step costs what a small layer costs.
        keys, *batches = (t.select(1, 0).unbind() for t in (block.clients.key, *block.batch, block.mask))
        for s, (key, size, *parts) in enumerate(zip(keys, block.filled, *batches, strict=True)):
            first = block.first and s == 0
            if first not in self._contexts:
                self._contexts[first] = hooks.context(_only(block.clients._replace(key=key.unsqueeze(0))), first)
            batch = Batch(*(parts if size == len(parts[0]) else (tensor[:size] for tensor in parts)))
            state, loss = self._step(hooks, state, replace(self._contexts[first], key=key), batch, padded=False)
            losses.append(loss)
        return state.apply(lambda tensor: tensor.unsqueeze(0)), torch.stack(losses).unsqueeze(1)

    def step(self, hooks: Hooks, local: State, clients: Clients, batch: Batch, first: bool) -> tuple[State, Tensor]:
        """The local state [1, …] and the loss [1] after a step on a batch [1, B, …] of which some places may be empty."""
        client, one = hooks.context(_only(clients), first), Batch(*map(_only, batch))
        after, loss = self._step(hooks, _only(local), client, one, padded=True)
        return after.apply(lambda tensor: tensor.unsqueeze(0)), loss.unsqueeze(0)

    def _step(
        self, hooks: Hooks, local: State, client: ClientContext, batch: Batch, padded: bool
    ) -> tuple[State, Tensor]:
        losses: list[Tensor] = []

        def grad(w: Tensor) -> Tensor:
            if type(hooks.method).objective is FedMethod.objective and not self._functional:
                gradient, loss = self._replica.gradient(w, batch, client.key, padded)
            else:
                leaf = w.detach().requires_grad_()
                with torch.enable_grad():
                    images = Batch(*map(channels_last, batch))
                    loss = hooks.mean_objective(self._replica.at(client.key), leaf, images, client, padded)
                    (gradient,) = torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
            return gradient

        self._replica.begin_step()
        return hooks.step(local, grad, client, batch.mask), _first(losses, hooks)


class CohortExecutor:
    """C clients at once under `torch.func.vmap`; serves models whose operations have batching rules.

    Args:
        replica: the slot's model.
        size: the most clients at once.
        traces: graphs of steps that are often taken; None takes all steps under vmap.
    """

    def __init__(self, replica: Replica, size: int, traces: Traces | None = None) -> None:
        self._replica, self._size, self._traces = replica, size, traces

    def padding(self, clients: int) -> Padding:
        """To the width that holds them."""
        return Padding(self.width(clients))

    def block(self, width: int) -> int:
        """1."""
        return 1

    def width(self, active: int) -> int:
        """The cohort's size or a power of two."""
        return min(self._size, 1 << (active - 1).bit_length())

    def call(self, hooks: Hooks, hook: Hook, *arguments: Any) -> Any:
        """Call the hook on all clients at once."""
        return vmap(getattr(hooks, hook), randomness="error")(*arguments)

    def steps(self, hooks: Hooks, local: State, block: Block) -> tuple[State, Tensor]:
        """One local step of all clients."""
        given, first = (hooks, local, *block.step(0)), block.first
        after, loss = self._traces.take(self.step, *given, first=first) if self._traces else self.step(*given, first)
        after = after if block.count == len(loss) else _keep_finished(after, local, block.count)
        return after, loss.unsqueeze(0)

    def step(self, hooks: Hooks, local: State, clients: Clients, batch: Batch, first: bool) -> tuple[State, Tensor]:
        """One local step from batches [C, B, …]: local states and losses [C], each the mean over a batch's filled places."""

        def one(local: State, clients: Clients, batch: Batch) -> tuple[State, Tensor]:
            client = hooks.context(clients, first)
            model = self._replica.at(client.key)
            losses: list[Tensor] = []

            def mean(w: Tensor) -> Tensor:
                return hooks.mean_objective(model, w, batch, client, padded=True)

            def grad(w: Tensor) -> Tensor:
                gradient: Tensor
                gradient, loss = grad_and_value(mean)(w)
                losses.append(loss)
                return gradient

            return hooks.step(local, grad, client, batch.mask), _first(losses, hooks)

        result: tuple[State, Tensor] = vmap(one, randomness="error")(local, clients, batch)
        return result


class InTurnExecutor(CohortExecutor):
    """Takes the steps of one client after another, but for a first step that is taken alone; serves what a cohort does."""

    def prepare(self, hooks: Hooks, local: State, block: Block) -> Callable[[], tuple[State, Tensor]]:
        """What takes a block's steps once it is called, and gives the local states and the losses [ΣS, 1]."""
        raise NotImplementedError


def of_clients(clients: Clients) -> list[Tensor]:
    """What a client has of its own that stays the same in all of its steps [C, …]."""
    return [clients.gradient, *clients.state.values(), *clients.numbers.values()]


def where_active(active: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """Entries [C, …] after a step for those clients that take it [C], before it for the others."""
    return torch.where(active.view(-1, *[1] * (after.dim() - 1)), after, before)


def _first(losses: list[Tensor], hooks: Hooks) -> Tensor:
    """The loss at the first point that a step asked the gradient of."""
    return losses[0] if losses else torch.zeros((), dtype=hooks.server.x.dtype, device=hooks.server.x.device)


def _keep_finished(after: State, before: State, active: int) -> State:
    """The new states of the first `active` clients, the old ones of those that had finished."""
    return State(**{name: torch.cat([after[name][:active], before[name][active:]]) for name in after})


def _only(value: Any) -> Any:
    """The one client's part of tensors that have a leading [1]."""
    if isinstance(value, Tensor):
        return value[0]
    return Clients(*map(_only, value)) if isinstance(value, Clients) else value.apply(_only)


def _stack(result: Any) -> Any:
    """One client's result, with a leading [1]."""
    if isinstance(result, Tensor):
        return result.unsqueeze(0)
    return tuple(map(_stack, result)) if isinstance(result, tuple) else result.apply(_stack)
