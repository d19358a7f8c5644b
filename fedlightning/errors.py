"""The exceptions, and the few helpers that word them.

    FedLightningError
    ├── ConfigurationError   what was asked for cannot be; raised before the first round (also a ValueError)
    ├── MethodError          a hook of a method broke the contract: it mutates, draws global random numbers, branches
    ├── ClientError          a client failed during a round: its id, the round, the slot and the hook are named
    └── SaveError            what a run leaves could not be written; what was there before is whole (also an OSError)

Each message says what must hold, what was given, who gave it and what to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class FedLightningError(Exception):
    """Base of everything that fedlightning raises on purpose."""


class ConfigurationError(FedLightningError, ValueError):
    """What was asked for cannot be. Raised before the first round."""


class MethodError(FedLightningError):
    """A hook of a `FedMethod` broke its contract."""


class ClientError(FedLightningError):
    """A client failed during a round."""


class SaveError(FedLightningError, OSError):
    """What a run leaves could not be written: the disk is full, or the folder must not be written to."""


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
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    number = math.nan if value is None else value
    inside = isinstance(number, (int, float)) and not math.isnan(number)
    inside = inside and (number > low or (interval[0] == "[" and number == low))
    inside = inside and (number < high or (interval[-1] == "]" and number == high))
    if not inside:
        raise ConfigurationError(f"{name} must be in {interval}, but is {value!r}{'; ' + remedy if remedy else ''}.")
