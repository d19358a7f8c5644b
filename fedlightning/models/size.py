"""How large a model of this package may be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from fedlightning.errors import ConfigurationError, shown

MOST_PARAMETERS = 10**9
"""Of a model of this package; one with more is a mistake, such as a size in the place of a seed, that fills the memory."""


def require_size(model: str, parameters: int, **arguments: Any) -> None:
    """Check that a model is of a size that can be, before its parameters are made.

    Args:
        model: its name.
        parameters: how many it will have, about.
        arguments: that make it so large, for the message.

    Raises:
        ConfigurationError: it is too large.
    """
    if parameters > MOST_PARAMETERS:
        given = ", ".join(f"`{name}` {shown(value)}" for name, value in arguments.items())
        raise ConfigurationError(
            f"{model} must have at most {MOST_PARAMETERS:,} parameters, but would have {parameters:.3g} with {given}; use "
            "smaller numbers."
        )


def dense(widths: Iterable[int]) -> int:
    """The weights of linear layers between these widths."""
    return sum(a * b for a, b in itertools.pairwise(widths))
