"""One local step of one client, as a pure function of tensors.

Every runner is made from `LocalStep`. The loop calls `take`, and so does what is captured on a GPU. vmap maps it over clients
(`side_by_side`). A graph is a trace of it: of `in_turn`, several steps of one client, which is then run from Python or compiled.
`FlatFunction` turns any of them into a function of a flat list of tensors, which tracing, compiling and capturing ask for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree

from fedlightning.execution.model import Replica, mean_loss
from fedlightning.execution.numerics import channels_last
from fedlightning.layout import Layout
from fedlightning.method import Batch, ClientContext, FedMethod, FlatModel, Grad
from fedlightning.state import State


class Clients(NamedTuple):
    """What the hooks of C clients look at, entries [C, …]; of one client, without [C], where a hook is called.

    Attributes:
        gradient: their ∇f_i(x), or nothing [C, 0].
        state: what the clients remember.
        numbers: `lr`, `num_steps`, `num_examples` and `round`, of w's dtype.
        key: their randomness in this step (int64).
        step: which of its steps a client takes, of w's dtype.
    """

    gradient: Tensor
    state: State
    numbers: State
    key: Tensor
    step: Tensor

    def some(self, which: Any) -> Clients:
        """The clients at an index or in a slice."""
        state, numbers = (states.apply(lambda tensor: tensor[which]) for states in (self.state, self.numbers))
        return Clients(self.gradient[which], state, numbers, self.key[which], self.step[which])


class Phase(ABC):
    """What clients do in a round with their batches: a start, steps, and an end.

    Attributes:
        name: keys what is kept for a phase, such as graphs.
        purpose: of its random numbers; a part of their address.
        whole: whether a client takes one pass over all its data instead of the local steps that were asked for.
    """

    name: ClassVar[str]
    purpose: ClassVar[str]
    whole: ClassVar[bool]

    @abstractmethod
    def start(self, method: FedMethod, client: ClientContext) -> State:
        """The local state before the first step."""

    @abstractmethod
    def step(self, method: FedMethod, local: State, grad: Grad, client: ClientContext, batch: Batch) -> State:
        """The local state after a step."""

    @abstractmethod
    def end(self, method: FedMethod, local: State, client: ClientContext) -> tuple[State, State]:
        """What a client uploads, and what it remembers."""


class _Local(Phase):
    """The method's own hooks."""

    name, purpose, whole = "local", "client", False

    def start(self, method: FedMethod, client: ClientContext) -> State:
        """Call `on_client_start`."""
        return method.on_client_start(client)

    def step(self, method: FedMethod, local: State, grad: Grad, client: ClientContext, batch: Batch) -> State:
        """Call `on_local_step`."""
        return method.on_local_step(local, grad, client)

    def end(self, method: FedMethod, local: State, client: ClientContext) -> tuple[State, State]:
        """Call `on_client_end`."""
        return method.on_client_end(local, client)


class _Gradient(Phase):
    """The pass before the local steps that a method asks for by `gradient_pass`: ∇f_i(x), the sum of its batches' shares."""

    name, purpose, whole = "gradient", "gradient", True

    def start(self, method: FedMethod, client: ClientContext) -> State:
        """Nothing is summed yet."""
        return State(gradient=torch.zeros_like(client.x))

    def step(self, method: FedMethod, local: State, grad: Grad, client: ClientContext, batch: Batch) -> State:
        """Add the mean gradient of a batch by its share of the client's examples; w stays at x."""
        share = batch.mask.sum() / client.num_examples
        return State(gradient=local.gradient + share * grad(client.x))

    def end(self, method: FedMethod, local: State, client: ClientContext) -> tuple[State, State]:
        """The gradient travels; nothing is remembered."""
        return local, State()


LOCAL: Phase = _Local()
GRADIENT: Phase = _Gradient()

Differentiate = Callable[["LocalStep", Tensor, ClientContext, Batch], tuple[Tensor, Tensor]]
"""From a step, w [P], its client and its batch to the gradient [P] of the mean loss, and that loss []."""


class LocalStep:
    """A local step: a pure function of what the server sent, the local state, the client's tensors and a batch.

    Args:
        method: whose hooks are called.
        model: the slot's copy of the task.
        layout: where each layer lies in w.
        phase: what the steps are for.
    """

    def __init__(self, method: FedMethod, model: Replica, layout: Layout, phase: Phase = LOCAL) -> None:
        self.method, self.model, self.layout, self.phase = method, model, layout, phase

    def context(self, server: State, client: Clients) -> ClientContext:
        """What the hooks may know of one client."""
        return ClientContext(
            server.x,
            server,
            client.state,
            **client.numbers,
            key=client.key,
            step=client.step,
            layout=self.layout,
            gradient=client.gradient,
        )

    def start(self, server: State, client: Clients) -> State:
        """The local state of one client before its first step."""
        return self.phase.start(self.method, self.context(server, client))

    def end(self, server: State, local: State, client: Clients) -> tuple[State, State]:
        """What one client uploads after its last step, and what it remembers."""
        return self.phase.end(self.method, local, self.context(server, client))

    def take(
        self, local: State, client: ClientContext, batch: Batch, differentiate: Differentiate
    ) -> tuple[State, Tensor]:
        """One step of one client: the next local state, and the loss [] at the first point whose gradient was asked for."""
        losses: list[Tensor] = []

        def grad(w: Tensor) -> Tensor:
            gradient, loss = differentiate(self, w, client, batch)
            losses.append(loss)
            return gradient

        after = self.phase.step(self.method, local, grad, client, batch)
        return after, losses[0] if losses else client.x.new_zeros(())

    def in_turn(
        self, server: State, local: State, client: Clients, batches: Batch, active: Tensor
    ) -> tuple[State, Tensor]:
        """Several steps of one client as one function, which can be traced.

        Args:
            server: what the server sent.
            local: the client's local state.
            client: its tensors, but `key` and `step` [S].
            batches: of S steps [S, B, …]; places may be empty.
            active: which steps are taken [S]; the others leave everything as it is.

        Returns:
            The local state, and the losses [S], 0 where no step is taken.
        """
        losses = []
        for s in range(len(active)):
            now = self.context(server, client._replace(key=client.key[s], step=client.step[s]))
            after, loss = self.take(local, now, Batch(*(tensor[s] for tensor in batches)), by_autograd)
            local = State(**{name: torch.where(active[s], after[name], local[name]) for name in local})
            losses.append(torch.where(active[s], loss, 0).to(server.x.dtype))
        return local, torch.stack(losses)

    def side_by_side(self, server: State, local: State, clients: Clients, batch: Batch) -> tuple[State, Tensor]:
        """One step of C clients at once, entries [C, …]: their local states, and their losses [C]."""

        def one(local: State, client: Clients, batch: Batch) -> tuple[State, Tensor]:
            return self.take(local, self.context(server, client), batch, by_transform)

        result: tuple[State, Tensor] = vmap(one, randomness="error")(local, clients, batch)
        return result

    def starts(self, server: State, clients: Clients) -> State:
        """The local states [C, …] of C clients before their first steps."""
        states: State = vmap(lambda client: self.start(server, client), randomness="error")(clients)
        return states

    def ends(self, server: State, local: State, clients: Clients) -> tuple[State, State]:
        """What C clients upload after their last steps, and what they remember, entries [C, …]."""
        ends: tuple[State, State] = vmap(lambda *one: self.end(server, *one), randomness="error")(local, clients)
        return ends

    def mean_objective(self, model: FlatModel, w: Tensor, client: ClientContext, batch: Batch, padded: bool) -> Tensor:
        """What a gradient is of: the mean [] of the method's objective over the places that are filled.

        Args:
            model: the task's model as a function of w.
            w: its parameters [P].
            client: whose step it is.
            batch: the step's examples.
            padded: whether a place of the batch may be empty.
        """
        losses = self.method.objective(model, w, batch, client)
        return mean_loss(losses, batch.mask, padded, f"`objective` of {type(self.method).__name__}")


def by_module(
    step: LocalStep, w: Tensor, client: ClientContext, batch: Batch, padded: bool = False
) -> tuple[Tensor, Tensor]:
    """By plain backward through the module itself, the cheapest way for one client; `padded` says if places may be empty."""
    if "objective" in step.method.own_hooks:
        return _functional(step, w, client, batch, padded)
    return step.model.gradient(w, batch, client.key, padded)


def by_autograd(step: LocalStep, w: Tensor, client: ClientContext, batch: Batch) -> tuple[Tensor, Tensor]:
    """By autograd through the model as a function of w, which can be traced; places may be empty."""
    return _functional(step, w, client, batch, padded=True)


def by_transform(step: LocalStep, w: Tensor, client: ClientContext, batch: Batch) -> tuple[Tensor, Tensor]:
    """By `torch.func`, which vmap can lift; places may be empty."""
    model = step.model.at(client.key)
    gradient, loss = grad_and_value(lambda v: step.mean_objective(model, v, client, batch, padded=True))(w)
    return gradient, loss


def _functional(step: LocalStep, w: Tensor, client: ClientContext, batch: Batch, padded: bool) -> tuple[Tensor, Tensor]:
    leaf = w.detach().requires_grad_()
    with torch.enable_grad():
        images = Batch(*map(channels_last, batch))
        loss = step.mean_objective(step.model.at(client.key), leaf, client, images, padded)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, loss.detach()


class FlatFunction:
    """A function of trees of tensors as one of a flat list of them.

    Args:
        function: what it computes.
        example: arguments of the structure that all arguments will have.
    """

    def __init__(self, function: Callable[..., Any], *example: Any) -> None:
        self._function = function
        self._given = _pytree.tree_structure(example)
        self._result: Any = None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The results, flat."""
        results, self._result = _pytree.tree_flatten(self._function(*_pytree.tree_unflatten(tensors, self._given)))
        return results

    def unflat(self, results: Sequence[Tensor]) -> Any:
        """Results of the structure that the function gave when it was called last."""
        return _pytree.tree_unflatten(results, self._result)


def flat(*trees: Any) -> list[Tensor]:
    """The tensors of states, batches and tuples in their order; `_pytree` takes several times as long for the same."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found.append(tree)
        else:
            found.extend(flat(*(tree.values() if isinstance(tree, State) else tree)))
    return found
