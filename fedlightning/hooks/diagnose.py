"""Errors of a method's hooks, reworded: they name the method, the hook, the line and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from types import CodeType
from typing import NoReturn

from fedlightning._declarations import code_of, place_of
from fedlightning.errors import FedLightningError, MethodError, out_of_memory
from fedlightning.method import FedMethod
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
        "lets the program's path depend on a tensor's value; use `torch.where`, or say `runner='loop'`",
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


@contextmanager
def calling(method: FedMethod, hook: str, server: State) -> Iterator[None]:
    """Reword what a client's hook raises, and detect a write to what the clients share.

    Args:
        method: whose hook it is.
        hook: its name, for where no line of the method is found.
        server: what the server sent.

    Raises:
        MethodError: the hook failed, or wrote to the server's tensors.
    """
    versions = [tensor._version for tensor in server.values()]
    with naming(method):
        yield
    if [tensor._version for tensor in server.values()] != versions:
        raise MethodError(
            f"{where(method, hook)} writes in place to the server's tensors, which every client shares; return "
            "`state.replace(…)` with a new tensor."
        )


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
