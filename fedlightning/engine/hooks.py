"""Calling a method's hooks: the contexts they get, and errors that name the method, the hook, the line and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NoReturn

import torch
from torch import Tensor

from fedlightning.engine.job import Clients
from fedlightning.engine.replica import mean_loss
from fedlightning.errors import FedLightningError, MethodError
from fedlightning.method import Batch, ClientContext, FedMethod, FlatModel, Grad
from fedlightning.state import State
from fedlightning.vector import Layout

_REMEDIES = (
    (
        (
            "data-dependent control flow",
            "data-dependent expression",
            "vmap: It looks like you're calling .item()",
            "aten::_local_scalar_dense",
            "stream is capturing",
        ),
        "lets the program's path depend on a tensor's value; use `torch.where`, or say `cohort_size=1` and `compile=False`",
    ),
    (
        ("random operation", "randomness"),
        "draws global random numbers; use `keyed_uniform(client.key, shape)`, which are the client's own",
    ),
    (
        ("inplace arithmetic", "in-place", "more than one element of the written-to tensor"),
        "writes in place to a tensor that the clients share; return `state.replace(…)` with a new tensor",
    ),
)


Hook = Literal["start", "end"]
"""What a client does once in a round."""


class Hooks:
    """The hooks of one method in one round, over the tensors of one client (or, lifted by vmap, of a cohort).

    Args:
        method: whose hooks they are.
        server: what the server sent; shared by all clients.
        layout: where each layer lies in w.
    """

    def __init__(self, method: FedMethod, server: State, layout: Layout) -> None:
        self.method, self.server, self.layout = method, server, layout
        self._versions = [tensor._version for tensor in server.values()]

    def context(self, client: Clients, first: bool) -> ClientContext:
        """What the hooks may know of a client."""
        return ClientContext(
            self.server.x,
            self.server,
            client.state,
            **client.numbers,
            key=client.key,
            first_step=first,
            layout=self.layout,
            gradient=client.gradient,
        )

    def at(self, server: State) -> Hooks:
        """The same hooks, for another server."""
        return type(self)(self.method, server, self.layout)

    def start(self, client: Clients) -> State:
        """The local state before the first step."""
        return self.method.on_client_start(self.context(client, True))

    def step(self, local: State, grad: Grad, client: ClientContext, mask: Tensor) -> State:
        """The local state after a step on a batch whose places are filled as `mask` says."""
        return self.method.on_local_step(local, grad, client)

    def end(self, local: State, client: Clients) -> tuple[State, State]:
        """The upload, and what the client remembers."""
        return self.method.on_client_end(local, self.context(client, False))

    def mean_objective(self, model: FlatModel, w: Tensor, batch: Batch, client: ClientContext, padded: bool) -> Tensor:
        """What `grad` differentiates: the mean [] of the objective over the batch's filled places.

        Args:
            model: the task's model as a function of w.
            w: its parameters [P].
            batch: the step's examples.
            client: whose step it is.
            padded: whether a place of the batch may be empty.
        """
        losses = self.method.objective(model, w, batch, client)
        return mean_loss(losses, batch.mask, padded, f"`objective` of {type(self.method).__name__}")

    @contextmanager
    def calling(self, hook: str) -> Iterator[None]:
        """Reword what a hook raises, and detect a write to what the clients share."""
        try:
            yield
        except FedLightningError:
            raise
        except (RuntimeError, TypeError, AttributeError, NameError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._explain(error)
        if [tensor._version for tensor in self.server.values()] != self._versions:
            raise MethodError(
                f"`{type(self.method).__name__}.{hook}` writes in place to the server's tensors, which every client shares; "
                "return `state.replace(…)` with a new tensor."
            )

    def _explain(self, error: Exception) -> NoReturn:
        found = _place_in(error, self.method)
        if found is None:
            raise error
        where, text = f"`{type(self.method).__name__}.{found[0]}` ({found[1]})", str(error)
        for signs, remedy in _REMEDIES:
            if any(sign in text for sign in signs):
                raise MethodError(f"{where} {remedy}. ({text.splitlines()[0][:200]})") from error
        raise MethodError(f"{where} failed: {type(error).__name__}: {text}") from error


class GradientPass(Hooks):
    """What runs in the place of the hooks in the gradient pass: ∇f_i(x) as the sum of its batches' shares."""

    def start(self, client: Clients) -> State:
        """Nothing is summed yet."""
        return State(gradient=torch.zeros_like(self.server.x))

    def step(self, local: State, grad: Grad, client: ClientContext, mask: Tensor) -> State:
        """Add the mean gradient of a batch by its share of the client's examples; w stays at x."""
        share = mask.sum() / client.num_examples
        return State(gradient=local.gradient + share * grad(client.x))

    def end(self, local: State, client: Clients) -> tuple[State, State]:
        """The gradient; nothing is remembered."""
        return local, State()


def _place_in(error: Exception, method: FedMethod) -> tuple[str, str] | None:
    """The innermost of the method's own functions in the traceback, and its line; None if the model or data raised it."""
    codes = {
        value.__code__
        for cls in type(method).__mro__
        if cls not in FedMethod.__mro__
        for value in vars(cls).values()
        if hasattr(value, "__code__")
    }
    frames = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    own = [i for i, (code, _) in enumerate(frames) if code in codes]
    if not own or any(code.co_name == "grad" for code, _ in frames[own[-1] + 1 :]):
        return None
    code, number = frames[own[-1]]
    return code.co_name, f"{code.co_filename}:{number}"
