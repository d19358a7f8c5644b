"""What its values must be."""

from __future__ import annotations

import math
from typing import Any

from fedlightning.errors import ConfigurationError


def require_positive(key: str, value: Any) -> float:
    """A positive number, also as text, which YAML takes 1e-2 for.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigurationError(f"`{key}` must be a positive number, but is {value!r}; write e.g. `{key}: 0.1`.")
    return number


def require_count(key: str, value: Any, least: int = 1) -> int:
    """A whole number from `least` on, also one such as 5.0.

    Raises:
        ConfigurationError: it is none.
    """
    number = _number(value)
    if not least <= number < math.inf or number % 1:
        raise ConfigurationError(
            f"`{key}` must be a whole number from {least} on, but is {value!r}; write e.g. `{key}: 10`."
        )
    return int(number)


def require_betas(key: str, value: Any) -> list[float]:
    """Two numbers in [0, 1).

    Raises:
        ConfigurationError: they are none.
    """
    numbers = [_number(part) for part in value] if isinstance(value, (list, tuple)) else []
    if len(numbers) != 2 or not all(0 <= number < 1 for number in numbers):
        raise ConfigurationError(
            f"`{key}` must be two numbers in [0, 1), but is {value!r}; write e.g. `{key}: [0.9, 0.999]`."
        )
    return numbers


def _number(value: Any) -> float:
    """The value, or a NaN for what is no number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
