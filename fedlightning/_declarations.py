"""What a method's class declares: hooks by their names and arguments, tuples of names, and fields that JSON can hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import SequenceMatcher
from types import CodeType, FunctionType
from typing import Any

import numpy as np

_NEAR, _LIKE = 0.88, 0.75
"""How alike a name and a hook's are where one is taken for the other: whatever its arguments are, or with the hook's own."""


def function_of(value: Any) -> FunctionType | None:
    """The function in what a class holds, however it is wrapped; None if there is none."""
    inner = inspect.unwrap(getattr(value, "__func__", value))
    return inner if isinstance(inner, FunctionType) else None


def code_of(value: Any) -> CodeType | None:
    """Its code."""
    function = function_of(value)
    return None if function is None else function.__code__


def place_of(value: Any) -> str:
    """File and line where it is defined, as an editor finds them; "" if there is none."""
    code = code_of(value)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def fault_in(cls: type, hooks: Mapping[str, Callable[..., Any]], tuples: tuple[str, ...]) -> str:
    """What is wrong with what a class says itself, in words; "" if nothing is.

    Args:
        cls: the class.
        hooks: the hooks that there are, by name.
        tuples: the attributes that are tuples of names.
    """
    annotated = inspect.get_annotations(cls)
    own = {**{name: None for name in annotated if name not in vars(cls)}, **vars(cls)}
    faults = _faults(cls.__name__, own, hooks, tuples)
    return next(faults, "") or next(_attribute_faults(cls.__name__, own, annotated, (*tuples, "coupled")), "")


def _attribute_faults(
    owner: str, own: Mapping[str, Any], annotated: Collection[str], known: tuple[str, ...]
) -> Iterator[str]:
    """An attribute that is no hyperparameter, and whose name is nearly one that is looked at."""
    for name, value in own.items():
        if name in known or name in annotated or name.startswith("_") or code_of(value):
            continue
        for meant in known:
            if SequenceMatcher(None, name.lower(), meant).ratio() >= _NEAR or sorted(name.lower()) == sorted(meant):
                yield f"`{name}` of {owner} is never looked at; call it `{meant}` if that is meant, or annotate a hyperparameter."


def _faults(
    owner: str, own: Mapping[str, Any], hooks: Mapping[str, Callable[..., Any]], tuples: tuple[str, ...]
) -> Iterator[str]:
    for name, value in own.items():
        if name in hooks:
            yield from _hook_faults(f"`{owner}.{name}`", value, hooks[name])
        elif name in tuples:
            if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
                one = f"({value!r},)" if isinstance(value, str) else '("mu",)'
                yield f"`{name}` of {owner} must be a tuple of names, but is {value!r}; write `{name} = {one}`."
        elif code_of(value) and not name.startswith("_"):
            called = any(name in code.co_names for code in map(code_of, own.values()) if code)
            yield from _spelling_faults(f"`{owner}.{name}` ({place_of(value)})", name, value, hooks, called)


def _hook_faults(name: str, value: Any, hook: Callable[..., Any]) -> Iterator[str]:
    """A hook that is no function, or takes other arguments."""
    if not callable(value) and not isinstance(value, staticmethod | classmethod):
        yield f"{name} is a hook, and must be a function, but is {value!r:.80}; give the hyperparameter another name."
        return
    bound, wanted = isinstance(value, classmethod), list(inspect.signature(hook).parameters)
    if isinstance(value, staticmethod | classmethod):
        wanted = wanted[1:]
    try:
        inspect.signature(getattr(value, "__func__", value)).bind(*[None] * (len(wanted) + bound))
    except TypeError:
        found = inspect.signature(getattr(value, "__func__", value))
        yield f"{name} ({place_of(value)}) must take ({', '.join(wanted)}), but takes {found}."
    except ValueError:  # a function of C tells nothing of its arguments
        return


def _spelling_faults(
    where: str, name: str, value: Any, hooks: Mapping[str, Callable[..., Any]], called: bool
) -> Iterator[str]:
    """A function whose name is nearly a hook's, or begins like one, which would never be called."""
    arguments = list(inspect.signature(getattr(value, "__func__", value)).parameters)
    for hook, function in hooks.items():
        likeness = SequenceMatcher(None, name.lower(), hook).ratio()
        same = arguments == list(inspect.signature(function).parameters) and len(hook) > len("start")
        if likeness >= (_LIKE if same else _NEAR) or sorted(name.lower()) == sorted(hook):
            yield (
                f"{where} is no hook, and would never be called; call it `{hook}` if that is meant, or give a helper another "
                "name, e.g. one that begins with `_`."
            )
    if name.startswith("on_") and not called:
        yield f"{where} is no hook, and would never be called; the hooks are {', '.join(sorted(hooks))}."


def plain(value: Any) -> bool:
    """Whether a value is what JSON holds and gives back: numbers, words, None, and lists and dictionaries of them."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(plain, value.values()))
    return value is None or (isinstance(value, bool | int | float | str) and value == value)


def as_python(value: Any) -> Any:
    """A number of NumPy as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
