"""Calling a method's hooks: the contexts they get, and errors that name the method, the hook, the line and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from types import CodeType
from typing import Literal, NoReturn

import torch
from torch import Tensor

from fedlightning._declarations import code_of, place_of
from fedlightning.errors import FedLightningError, MethodError
from fedlightning.execution.model import mean_loss
from fedlightning.execution.plan import Clients
from fedlightning.execution.slots import out_of_memory
from fedlightning.layout import Layout
from fedlightning.method import Batch, ClientContext, FedMethod, FlatModel, Grad
from fedlightning.state import State, StateError

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
        with naming(self.method):
            yield
        if [tensor._version for tensor in self.server.values()] != self._versions:
            raise MethodError(
                f"{where(self.method, hook)} writes in place to the server's tensors, which every client shares; return "
                "`state.replace(…)` with a new tensor."
            )


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


def where(method: FedMethod, hook: str) -> str:
    """A hook's name, with file and line where it is defined unless `FedMethod` does."""
    owner = next(cls for cls in type(method).__mro__ if hook in vars(cls))
    place = "" if owner in FedMethod.__mro__ else place_of(vars(owner)[hook])
    return f"`{type(method).__name__}.{hook}`{f' ({place})' if place else ''}"


@contextmanager
def naming(method: FedMethod, hook: str | None = None) -> Iterator[None]:
    """Add the method, the hook and the line to what a hook raises, and the remedy where one is known.

    Args:
        method: whose hooks are called.
        hook: which one, where nothing else runs; None where a model runs, too, whose errors are not the method's.
    """
    try:
        yield
    except StateError as error:
        _explain(error, method, hook)
    except FedLightningError:
        raise
    except Exception as error:
        if out_of_memory(error):  # which is no fault of the hook
            raise
        _explain(error, method, hook)


def _explain(error: Exception, method: FedMethod, hook: str | None) -> NoReturn:
    place, text = _place_in(error, method) or (hook and where(method, hook)), str(error)
    if place is None:
        raise error
    if isinstance(error, StateError):
        raise MethodError(f"{place}: {text}") from error
    if isinstance(error, FrozenInstanceError):
        raise MethodError(
            f"{place} must keep nothing on itself, but assigns to it ({text}); return it in a State."
        ) from error
    for signs, remedy in _REMEDIES:
        if any(sign in text for sign in signs):
            raise MethodError(f"{place} {remedy}. ({text.splitlines()[0][:200]})") from error
    missing = isinstance(error, AttributeError) and isinstance(error.obj, State)
    raise MethodError(f"{place} failed: {type(error).__name__}: {text}{_ENTRIES if missing else ''}") from error


_ENTRIES = (
    " (`configure_server` sets the server's entries, of which clients see those in `downlink`; `configure_client` those of "
    "`client.state`, `on_client_start` those of `local`, and the uploads of `on_client_end` those of `mean`.)"
)


def _place_in(error: Exception, method: FedMethod) -> str | None:
    """The innermost of the method's own functions in the traceback, and its line; None if the model or data raised it."""
    frames = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    own = innermost(frames, method)
    if own is None or any(code.co_name == "grad" for code, _ in frames[own[0] + 1 :]):
        return None
    return own[1]


def innermost(frames: Sequence[tuple[CodeType, int]], method: FedMethod) -> tuple[int, str] | None:
    """Which of these frames is the last that runs a function of the method's own classes, and that function with its line."""
    own = [cls for cls in type(method).__mro__ if cls not in FedMethod.__mro__]
    names = {code_of(value): name for cls in own for name, value in vars(cls).items() if not name.startswith("__")}
    for i, (code, line) in reversed(list(enumerate(frames))):
        if code in names:
            return i, f"`{type(method).__name__}.{names[code]}` ({code.co_filename}:{line})"
    return None
