"""What a method's functions reach besides their arguments: globals, closures, defaults, and attributes of classes."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from fedlightning._declarations import function_of
from fedlightning._hashing import digest
from fedlightning.method import FedMethod

_DEEP = 5
"""Containers within containers that are looked at."""


class Surroundings:
    """The values of all that as they are when this is made, as far as a hook might remember something in it.

    Args:
        method: whose functions they are.
    """

    def __init__(self, method: FedMethod) -> None:
        self._method = method
        self._before = dict(self._look())

    def changed(self) -> str | None:
        """The first of them that has another value now, in words; None if none has."""
        now = dict(self._look())
        return next((name for name in {**self._before, **now} if self._before.get(name) != now.get(name)), None)

    def _look(self) -> Iterator[tuple[str, Any]]:
        own = [cls for cls in type(self._method).__mro__ if cls not in FedMethod.__mro__]
        homes = {cls.__module__ for cls in own}
        for name, value in vars(self._method).items():
            if not isinstance(inspect.getattr_static(type(self._method), name, None), cached_property):
                yield f"`self.{name}`", _content(value, homes)
        held = [(f"{cls.__name__}.{name}", value) for cls in own for name, value in vars(cls).items()]
        for name, value in held:
            if function_of(value) is None and not name.partition(".")[2].startswith("__"):
                yield f"the class attribute `{name}`", _content(value, homes)
        for name, value in _reached([(name, function_of(value)) for name, value in held], homes):
            yield name, _content(value, homes)


def _reached(functions: list[tuple[str, FunctionType | None]], homes: set[str]) -> Iterator[tuple[str, Any]]:
    """The globals, the closures and the defaults of functions, by name, and of those functions of these modules among them."""
    seen: set[FunctionType] = set()
    while functions:
        name, function = functions.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        for what, value in _reached_by(function, name):
            inner = function_of(value)
            if inner is not None and inner.__module__ in homes:
                functions.append((inner.__qualname__, inner))
            yield what, value


def _reached_by(function: FunctionType, name: str) -> Iterator[tuple[str, Any]]:
    for word in _names(function.__code__):
        if word in function.__globals__:
            yield f"the global `{word}`", function.__globals__[word]
    for word, value in inspect.getclosurevars(function).nonlocals.items():
        yield f"`{word}`, which `{name}` closes over,", value
    for word, value in _defaults(function).items():
        yield f"the default of `{word}` of `{name}`", value


def _names(code: CodeType) -> set[str]:
    """What a function and those within it look up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _defaults(function: FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _content(value: Any, homes: set[str], depth: int = _DEEP) -> Any:
    """A value to be compared with what it is later; None for what remembers nothing, or is another module's affair.

    Args:
        value: anything.
        homes: the modules of the method's classes, whose objects are looked into.
        depth: how deep.
    """
    if type(value) in (Tensor, Parameter) and value.layout is torch.strided:
        return value.dtype, value.shape, digest([value])
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
        return _drawn_from(value)
    return _contents(value, homes, depth - 1) if depth else None


def _drawn_from(generator: Any) -> Any:
    """The state of a random generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return repr(
        generator.get_state() if isinstance(generator, np.random.RandomState) else generator.bit_generator.state
    )


def _contents(value: Any, homes: set[str], depth: int) -> Any:
    """The same of what holds other values."""
    if isinstance(value, Mapping):
        return [(repr(key), _content(each, homes, depth)) for key, each in value.items()]
    if isinstance(value, Sequence | Set):
        return [_content(each, homes, depth) for each in value]
    own = isinstance(value, SimpleNamespace) or (value if isinstance(value, type) else type(value)).__module__ in homes
    if own and hasattr(value, "__dict__") and function_of(value) is None:
        return [(name, _content(each, homes, depth)) for name, each in vars(value).items() if not name.startswith("__")]
    return None
