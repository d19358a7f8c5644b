"""The names of the methods in a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fedlightning.errors import ConfigurationError, shown
from fedlightning.method import FedMethod

Methods = Mapping[str, FedMethod] | Sequence[FedMethod | tuple[str, FedMethod]]


def name_methods(methods: Methods) -> dict[str, FedMethod]:
    """The methods by distinct names; see `Comparison`.

    Raises:
        ConfigurationError: there is none, or one of them is no method.
    """
    if isinstance(methods, str | bytes) or not isinstance(methods, Mapping | Sequence):
        raise ConfigurationError(
            "`methods` of a comparison must be a list of instances such as FedAvg(lr=0.1), or a dictionary of them by name, "
            f"but is {shown(methods)}."
        )
    pairs: Iterable[Any] = methods.items() if isinstance(methods, Mapping) else methods
    named: dict[str, FedMethod] = {}
    for pair in pairs:
        wish, method = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, pair)
        if not isinstance(method, FedMethod) or not isinstance(wish, str | None):
            raise ConfigurationError(
                f"`methods` of a comparison must hold instances such as FedAvg(lr=0.1), but holds {shown(pair)}."
            )
        wish = name = wish or _describe(method)
        taken, count = {slug(known).lower() for known in named}, 1
        while slug(name).lower() in taken:
            count += 1
            name = f"{wish} #{count}"
        named[name] = method
    if not named:
        raise ConfigurationError("`methods` must hold at least one method, but is empty.")
    return named


def _describe(method: FedMethod) -> str:
    changed = {f.name: value for f in fields(method) if (value := getattr(method, f.name)) != f.default}
    return " ".join([type(method).__name__.lower(), *assigned(changed)])


def assigned(values: Mapping[str, Any]) -> list[str]:
    """Each as "name=value"."""
    return [f"{key}={value}" for key, value in values.items()]


def slug(name: str) -> str:
    """The name of a folder."""
    return re.sub(r"[^\w.=+,-]+", "_", name)
