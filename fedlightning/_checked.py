"""Arguments that are checked against their annotations, before anything is made of them.

What a signature says of a value is what the value must be: `size: int | None` takes whole numbers and None, so neither
10.0 nor "10" nor True. Numbers of NumPy count as numbers and become Python's, so that they can be written to checkpoints.

    @checked(size="[1, inf)")
    def __init__(self, size: int | None = 32) -> None:

refuses 0 with "`size` of Images must be a whole number of at least 1 or None, but is 0."
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from fedlightning.errors import ConfigurationError, is_within, shown

P = ParamSpec("P")
R = TypeVar("R")

_MOST = 2**63
"""From where on whole numbers are no counts: tensors cannot hold them."""

COUNT = "[1, inf)"
"""The interval of what is counted, of clients, layers, rounds."""


class _Misfit:
    """What `fitted` gives for a value that is not of its type."""


MISFIT = _Misfit()


# -- who is checked ----------------------------------------------------------------------------------------------------
def checked(*others: str, **within: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check a function's arguments by their annotations, and those named here by an interval such as "[1, inf)", too.

    The decorated function raises `ConfigurationError` in one line that names the argument, its owner (the class whose
    constructor it is, else the function) and what was given.

    Args:
        others: arguments that the function checks itself, since it can say more.
        within: the intervals.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        rules: dict[str, _Rule] = {}
        names = tuple(inspect.signature(function).parameters)
        owner = _owner_of(function, names[:1])

        @functools.wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            if not rules:  # the first call finds the names that annotations use
                hints = {name: hint for name, hint in resolved(function).items() if name not in others}
                rules.update({name: _Rule.of(name, hint, within.get(name)) for name, hint in hints.items()})
            settled: list[Any] = list(arguments)
            for place, (name, value) in enumerate(zip(names, arguments, strict=False)):
                if name in rules and type(value) not in rules[name].plain:
                    settled[place] = rules[name].settle(value, owner(arguments))
            for name, value in options.items():
                if name in rules and type(value) not in rules[name].plain:
                    options[name] = rules[name].settle(value, owner(arguments))
            return function(*settled, **options)

        return call

    return decorate


class _Rule(NamedTuple):
    """What one argument must be.

    Attributes:
        name: of the argument.
        hint: its type.
        within: where it must lie.
        plain: types whose values need no look.
        whole: whether it may be an int.
    """

    name: str
    hint: Any
    within: str | None
    plain: frozenset[type]
    whole: bool

    @classmethod
    def of(cls, name: str, hint: Any, within: str | None) -> _Rule:
        """The rule of an argument."""
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        plain = {kind for kind in kinds if kind in (bool, types.NoneType) or (kind is int and not within)}
        return cls(name, hint, within, frozenset(plain), int in kinds)

    def settle(self, value: Any, owner: str) -> Any:
        """The value as its type has it; see `require`."""
        if self.whole and type(value) is int and value < _MOST and is_within(value, self.within or "(-inf, inf)"):
            return value  # as in each round, where the long way costs 8 µs
        return require(value, self.hint, self.name, owner, self.within)


def _owner_of(function: Callable[..., Any], first: tuple[str, ...]) -> Callable[[tuple[Any, ...]], str]:
    """Whose the arguments are: the class whose constructor it is, or the class and its function."""
    if first not in (("self",), ("cls",)):
        return lambda _: function.__qualname__.rpartition("<locals>.")[2]

    def owner(arguments: tuple[Any, ...]) -> str:
        cls = arguments[0] if isinstance(arguments[0], type) else type(arguments[0])
        return cls.__name__ if function.__name__ == "__init__" else f"{cls.__name__}.{function.__name__}"

    return owner


def check_fields(instance: Any, **within: str | tuple[str, ...]) -> None:
    """Check a dataclass's fields by their annotations, and those named here by an interval or words; for `__post_init__`.

    A field that is None by default may be None, whatever its annotation says.

    Raises:
        ConfigurationError: a field's value is of another type, or outside its interval.
    """
    hints = _FIELDS.get(type(instance))
    if hints is None:
        hints = _FIELDS[type(instance)] = fields_resolved(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.init and not (value is None and field.default is None):
            found = require(value, hints[field.name], field.name, type(instance).__name__, within.get(field.name))
            if found is not value:
                object.__setattr__(instance, field.name, found)


_FIELDS: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()


def require(value: Any, hint: Any, name: str, owner: str, within: str | tuple[str, ...] | None = None) -> Any:
    """The value as its type has it, e.g. a number of NumPy as Python's.

    Raises:
        ConfigurationError: it is of another type, a number outside the interval `within`, or none of its words.
    """
    if isinstance(within, tuple):
        hint, within = Literal[within], None
    elif within and hint is Any:
        hint = float
    found = fitted(value, hint)
    wanted = words(hint, within) if found is MISFIT else _wanted_number(found, hint, within)
    if wanted:
        raise ConfigurationError(f"`{name}` of {owner} must be {wanted}, but {_given(value, hint, wanted)}")
    return found


def _wanted_number(found: Any, hint: Any, within: str | None) -> str | None:
    """Where a number must lie, if it does not; None if it does, or is none."""
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    whole = fitted(1.5, hint) is MISFIT
    if within and whole and found >= _MOST and within.endswith("inf)"):
        return "below 2⁶³"
    if not math.isnan(found) and (not within or is_within(found, within)):
        return None
    if not within:
        return words(hint)
    least = within[1:].partition(",")[0]
    number = f"at least {least}" if whole and within[0] == "[" and within.endswith("inf)") else f"in {within}"
    return " or ".join(["'auto'"] * (fitted("auto", hint) is not MISFIT) + [number])


# -- what an annotation says -------------------------------------------------------------------------------------------
def resolved(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's arguments; `Any` for an annotation whose names are not there."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return {name: _evaluated(hint, function.__globals__, {}) for name, hint in annotations.items()}


def fields_resolved(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, each as the first class of the MRO that declares it has it."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        module = vars(sys.modules.get(base.__module__, types))
        try:
            declared = inspect.get_annotations(base)
        except NameError:  # from Python 3.14 on, of a name that only type checkers import
            continue
        hints |= {name: _evaluated(hint, module, dict(vars(base))) for name, hint in declared.items()}
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls)}


def _evaluated(hint: Any, module: dict[str, Any], names: dict[str, Any]) -> Any:
    try:
        return eval(hint, module, names) if isinstance(hint, str) else hint
    except (NameError, AttributeError, TypeError):  # a name of a function's own, or one that only type checkers import
        return Any


def fitted(value: Any, hint: Any) -> Any:
    """The value as its type has it, or `MISFIT`."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return fitted(value, hint.__bound__ or Any)
    if origin in (Union, types.UnionType):
        return next((found for each in inner if (found := fitted(value, each)) is not MISFIT), MISFIT)
    if origin is Literal:
        plain = str(value) if isinstance(value, str) else int(value) if isinstance(value, np.integer) else value
        return next((each for each in inner if type(each) is type(plain) and each == plain), MISFIT)
    fit = _FITS.get(origin or hint)
    if fit is not None:
        return fit(value, inner)
    return value if _is_instance(value, origin or hint) else MISFIT


def _is_instance(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return True  # a type variable, or a word that says nothing at run time
    if _is_protocol(kind):  # a tensor has an attribute of nearly every name
        return not isinstance(value, (type, Tensor)) and isinstance(value, kind)
    return isinstance(value, kind)


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def _whole(value: Any, _: Any) -> Any:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else MISFIT


def _number(value: Any, _: Any) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool):
        return MISFIT
    if isinstance(value, Integral) and abs(int(value)) < 2**63:
        return int(value)
    try:
        found = float(value)
    except OverflowError:
        return MISFIT
    return found


def _truth(value: Any, _: Any) -> Any:
    return bool(value) if isinstance(value, (bool, np.bool_)) else MISFIT


def _text(value: Any, _: Any) -> Any:
    return str(value) if isinstance(value, str) and "\0" not in value else MISFIT


def _path(value: Any, _: Any) -> Any:
    return Path(value) if isinstance(value, os.PathLike) else MISFIT


def _tuple(value: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list)):
        return MISFIT
    if inner and inner[-1] is not Ellipsis:
        each: Sequence[Any] = [MISFIT]
        if len(value) == len(inner):
            each = [fitted(*pair) for pair in zip(value, inner, strict=True)]
    else:
        each = _each(value, inner[0] if inner else Any)
    return MISFIT if _has_misfit(each) else tuple(each)


def _sequence(value: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        return MISFIT
    each = _each(value, inner[0] if inner else Any)
    return MISFIT if _has_misfit(each) else value if each is value else list(each)


def _each(values: Sequence[Any], hint: Any) -> Sequence[Any]:
    """The values as their type has them; a long row of plain numbers costs little."""
    if hint is Any or (hint in (int, float, str) and all(type(value) is hint for value in values)):
        return values
    found = [fitted(value, hint) for value in values]
    return values if all(map(operator.is_, found, values)) else found


def _has_misfit(values: Sequence[Any]) -> bool:
    return any(value is MISFIT for value in values)


def _mapping(value: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, Mapping):
        return MISFIT
    keys, values = inner or (Any, Any)
    misfits = (fitted(k, keys) is MISFIT or fitted(v, values) is MISFIT for k, v in value.items())
    return MISFIT if any(misfits) else value


def _function(value: Any, _: Any) -> Any:
    return value if callable(value) else MISFIT


def _none(value: Any, _: Any) -> Any:
    return MISFIT if value is not None else None


def _anything(value: Any, _: Any) -> Any:
    return value


_FITS: dict[Any, Callable[[Any, Any], Any]] = {
    int: _whole,
    float: _number,
    bool: _truth,
    str: _text,
    Path: _path,
    tuple: _tuple,
    Sequence: _sequence,
    list: _sequence,
    Mapping: _mapping,
    dict: _mapping,
    Callable: _function,
    None: _none,
    types.NoneType: _none,
    Any: _anything,
    object: _anything,
}


# -- in words ----------------------------------------------------------------------------------------------------------
def words(hint: Any, within: str | None = None) -> str:
    """What a value must be, e.g. "a whole number of at least 1 or None"."""
    *others, last = _alternatives(hint, within)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(hint: Any, within: str | None = None) -> list[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [each for each in inner if not (each is str and Path in inner)]
        return [words for each in kinds for words in _alternatives(each, within)]
    if hint is bool or origin is Literal:
        return list(map(repr, inner or (True, False)))
    if hint in (int, float):
        return [_WORDS[hint] + (f" {_range(hint, within)}" if within else "")]
    if origin in (Mapping, dict):
        return [f"a dictionary from {_plural(inner[0])} to {_plural(inner[1])}"]
    if origin in (tuple, list, Sequence):
        return [f"a sequence of {_entries(inner) if origin is tuple else _plural(inner[0])}"]
    kind = origin or hint
    return [_WORDS.get(kind) or _with_article(getattr(kind, "__name__", str(kind)))]


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a string", Path: "a path", None: "None",
    types.NoneType: "None", Tensor: "a tensor", nn.Module: "an nn.Module", Mapping: "a dictionary", dict: "a dictionary",
    Callable: "a function", tuple: "a sequence", Sequence: "a sequence", list: "a sequence",
}  # fmt: skip


def _range(hint: Any, within: str) -> str:
    """E.g. "of at least 1" for whole numbers in [1, inf), and "in [0, 1)" for others."""
    least, _, most = within[1:-1].partition(",")
    return f"of at least {least}" if hint is int and within[0] == "[" and most.strip() == "inf" else f"in {within}"


def _entries(inner: tuple[Any, ...]) -> str:
    """The entries of a tuple: as many as there are of one type, or one of each."""
    if inner[-1] is Ellipsis:
        return _plural(inner[0])
    if len(set(inner)) == 1:
        return f"{len(inner)} {_plural(inner[0])}"
    return f"({', '.join(map(words, inner))})"


def _plural(hint: Any) -> str:
    """E.g. "whole numbers"; "sequences of whole numbers"; words as they are."""
    if get_origin(hint) is Literal:
        return words(hint)
    first, _, rest = words(hint).partition(" of ")
    _, _, noun = first.rpartition("a ") if first.startswith("a ") else ("", "", first.removeprefix("an "))
    return f"{noun}s" + (f" of {rest}" if rest else "")


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _given(value: Any, hint: Any, wanted: str) -> str:
    """What there is in the place of what was wanted, and what to do; of what holds others, one that does not fit."""
    if isinstance(value, Mapping):
        kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) in (Mapping, dict)]
        strange = [pair for kind in kinds for pair in value.items() if fitted(pair, tuple[get_args(kind)]) is MISFIT]  # type: ignore[misc]
        return f"holds {shown(strange[0][0])}: {shown(strange[0][1])}." if strange else f"is {shown(value)}."
    for kind in (hint, *get_args(hint)):
        each = set(get_args(kind)) - {Ellipsis} if get_origin(kind) in (tuple, list, Sequence) else set()
        if isinstance(value, (tuple, list)) and len(each) == 1:
            (entry_hint,) = each
            strange = [entry for entry in value if fitted(entry, entry_hint) is MISFIT]
            if strange:
                return f"holds {_told_apart(strange[0], wanted)}{_remedy(strange[0], entry_hint)}"
    return f"is {_told_apart(value, wanted)}{_remedy(value, hint)}"


def _told_apart(value: Any, wanted: str) -> str:
    """What a value is; with its module, where its class has the name of the one that is wanted."""
    kind = type(value)
    return (
        f"a {kind.__module__}.{kind.__qualname__}"
        if kind.__name__ in wanted.replace("s ", " ").split()
        else shown(value)
    )


def _can_be_made_of(kind: type, value: Any) -> bool:
    """Whether one of our classes takes the value as its first argument, and needs no other."""
    make: Any = kind.__init__  # type: ignore[misc]
    if not kind.__module__.startswith("fedlightning.") or not inspect.isfunction(make):
        return False
    _, first, *others = inspect.signature(make).parameters.values()
    needed = [other for other in others if other.default is other.empty and other.kind is not other.VAR_KEYWORD]
    fits = fitted(value, resolved(make).get(first.name, Any)) is not MISFIT
    return fits and not needed and not isinstance(value, (nn.Module, Tensor))


def _remedy(value: Any, hint: Any) -> str:
    """What to do, where it can be told from what was given."""
    kinds = [*get_args(hint), hint] if get_origin(hint) in (Union, types.UnionType) else [hint]
    classes = tuple(kind for kind in kinds if isinstance(kind, type) and not _is_protocol(kind))
    if isinstance(value, np.ndarray) and Tensor in classes:
        return "; use `torch.from_numpy`."
    if isinstance(value, type) and classes and issubclass(value, classes):
        return f"; give an instance of it, `{value.__name__}(…)`."
    if pair := next((kind for kind in classes if hasattr(kind, "_fields")), None):
        return f"; give `{pair.__name__}({', '.join(pair._fields)})`."
    if maker := next((kind for kind in classes if _can_be_made_of(kind, value)), None):
        return f"; use `{maker.__name__}({shown(value)})`."
    for kind in kinds:
        if get_origin(kind) in (tuple, list, Sequence) and fitted([value], list[get_args(kind)[0]]) is not MISFIT:  # type: ignore[misc]
            return f"; put it into a list, `[{shown(value) if isinstance(value, (int, float, str)) else '…'}]`."
    known = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind) if isinstance(word, str)]
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5) if isinstance(value, str) else []
    return f". Did you mean {near[0]!r}?" if near else "."
