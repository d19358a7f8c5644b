"""The exceptions, and the few helpers that word them.

    FedLightningError
    ├── ConfigurationError   what was asked for cannot be; raised before the first round (also a ValueError)
    ├── MethodError          a hook of a method broke the contract: it mutates, draws global random numbers, branches
    ├── ClientError          a client failed during a round: its id, the round, the slot and the hook are named
    │   └── DivergedError    a loss or an upload is not finite
    └── SaveError            what a run leaves could not be written; what was there before is whole (also an OSError)

Each message says what must hold, what was given, who gave it and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from numbers import Real
from typing import Any


class FedLightningError(Exception):
    """Base of everything that fedlightning raises on purpose."""


class ConfigurationError(FedLightningError, ValueError):
    """What was asked for cannot be. Raised before the first round."""


class MethodError(FedLightningError):
    """A hook of a `FedMethod` broke its contract."""


class ClientError(FedLightningError):
    """A client failed during a round."""


class DivergedError(ClientError):
    """A number of a client is not finite."""


class SaveError(FedLightningError, OSError):
    """What a run leaves could not be written: the disk is full, or the folder must not be written to."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`"Did you mean 'fedprox'? Known: …"` for a name that is not among `known`."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


def no_such_method(name: str, known: Iterable[str]) -> ConfigurationError:
    """What to say of a method that there is not."""
    return ConfigurationError(
        f"`method` must be the name of a method, or package.module:Class for one of your own, but is {name!r}. "
        f"{nearest(name, known)}"
    )


def require_within(value: float | None, interval: str, name: str, remedy: str = "", *, optional: bool = True) -> None:
    """Check a number against an interval in the notation of papers, e.g. `"[0, 1)"` or `"(0, inf)"`.

    Args:
        value: the number.
        interval: where it must lie.
        name: of what it is, for the message.
        remedy: what to do, for the message.
        optional: whether None passes, which switches a field off.

    Raises:
        ConfigurationError: `value` is a NaN, not a number or outside `interval`, or None where that is not `optional`.
    """
    if value is None and optional:
        return
    if not isinstance(value, Real) or isinstance(value, bool) or not is_within(value, interval):
        raise ConfigurationError(
            f"{name} must be in {interval}, but is {shown(value)}{'; ' + remedy if remedy else ''}."
        )


def check_interval(interval: str) -> None:
    """Check the notation of an interval.

    Raises:
        ConfigurationError: it is no interval, or an empty one.
    """
    found = re.fullmatch(r"[\[(]([^,]+),([^,]+)[\])]", interval)
    try:
        right = found is not None and float(found[1]) <= float(found[2])
    except ValueError:
        right = False
    if not right:
        raise ConfigurationError(
            f"`within` of `hyper` must be an interval such as '[0, 1)' or '(0, inf)', but is {interval!r}."
        )


def is_within(number: Any, interval: str) -> bool:
    """Whether a number lies in an interval such as `"[0, 1)"`; a NaN lies in none."""
    low, high = _bounds(interval)
    above = number >= low if interval[0] == "[" else number > low
    return bool(above and (number <= high if interval[-1] == "]" else number < high))


@cache
def _bounds(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def shown(value: Any) -> str:
    """What was given, in one short line: numbers, words and short lists as they are written, other things by what they are."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if _is_plain(value) and not isinstance(value, (tuple, list, type)):
        text = repr(value)
        return text if len(text) < 80 else f"{text[:76]}…{text[-1]}"
    shape, kind = getattr(value, "shape", None), type(value).__name__
    if isinstance(value, (tuple, list)) and len(value) < 10 and all(map(_is_plain, value)):
        inner = ", ".join(map(shown, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(shape, tuple):
        return f"a {kind} of {str(value.dtype).removeprefix('torch.')}{list(shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _is_plain(value: Any) -> bool:
    """Whether a value can be written as it is; Python refuses to write numbers of thousands of digits."""
    if isinstance(value, (tuple, list)):
        return len(value) < 10 and all(map(_is_plain, value))
    if isinstance(value, int):
        return value.bit_length() < 10_000
    return isinstance(value, (str, bytes, Real, complex, type, type(None)))


_NO_MEMORY = (
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
)
"""How memory runs out elsewhere than in torch's own allocator for a GPU."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that it rewords, says that memory ran out."""
    from torch import OutOfMemoryError  # importing it takes seconds, and a command line is refused before

    while error is not None:
        if isinstance(error, OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first error, if any, with the others as its notes."""
    if failures:
        add_notes(failures[0], failures[1:])
        raise failures[0]


def add_notes(error: BaseException, others: Sequence[Exception]) -> None:
    """Tell of other errors in notes of one, but for those that say the same."""
    for other in others:
        if other is not error and str(other) != str(error):
            error.add_note(f"Besides, {type(other).__name__}: {other}")
