"""What is tried with each method, and which point of it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fedlightning.compare.names import assigned
from fedlightning.compare.table import Mode, Outcome
from fedlightning.errors import ConfigurationError, nearest, shown
from fedlightning.method import FedMethod, field_names

Grid = dict[str, tuple[Any, ...]]
Tune = Mapping[str, Sequence[Any] | Mapping[str, Sequence[Any]]]
"""Values by field, for all methods that have the field; or by a method's name, a dictionary of values by field."""


@dataclass(frozen=True)
class Candidate:
    """A point of a method's grid.

    Attributes:
        name: of the method, with the point's values.
        values: by field.
        method: with these values.
    """

    name: str
    values: Mapping[str, Any]
    method: FedMethod


def read_grids(methods: Mapping[str, FedMethod], tune: Tune) -> dict[str, Grid]:
    """The grid of each method: the general lists of the fields that it has, and its own lists, which come before those.

    Args:
        methods: by their names in the comparison.
        tune: what is tried; a method is named as in the comparison, or as its class in small letters, which stands for all of
            the class that are not named.

    Raises:
        ConfigurationError: there is no such method or field, or a list is no list of different values.
    """
    if not isinstance(tune, Mapping):
        raise ConfigurationError(
            f"`tune` of a comparison must be a dictionary of lists by field, such as {{'lr': (0.01, 0.1)}}, but is {shown(tune)}."
        )
    general = {key: few for key, few in tune.items() if not isinstance(few, Mapping)}
    own = {key: few for key, few in tune.items() if isinstance(few, Mapping)}
    known = {name: field_names(method) for name, method in methods.items()}
    classes = {name: type(method).__name__.lower() for name, method in methods.items()}
    _check_known(general, {field for fields in known.values() for field in fields}, "a field of a method")
    _check_known(own, {*methods, *classes.values()}, "a method")
    grids: dict[str, Grid] = {}
    for name in methods:
        chosen: dict[str, Any] = {key: few for key, few in general.items() if key in known[name]}
        owner = classes[name] if name not in own and classes[name] not in methods else name
        _check_known(own.get(owner, {}), known[name], f"a field of {owner}")
        chosen |= own.get(owner, {})
        grids[name] = {key: _values(key, few) for key, few in chosen.items()}
    return grids


def _check_known(given: Mapping[str, Any], known: Sequence[str] | set[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigurationError(
                f"`tune` of a comparison must name {what} that it has, but names {shown(key)}. {nearest(str(key), known)}"
            )


def _values(key: str, few: Any) -> tuple[Any, ...]:
    is_list = isinstance(few, Sequence) and not isinstance(few, str | bytes)
    if not is_list or not few or len(set(map(repr, few))) < len(few):
        raise ConfigurationError(
            f"`tune` of a comparison must hold different values for {key!r}, such as (0.01, 0.1), but holds {shown(few)}."
        )
    return tuple(few)


def candidates_of(name: str, method: FedMethod, grid: Grid) -> list[Candidate]:
    """The points of a method's grid, the last field fastest; without a grid the method as it is.

    Raises:
        ConfigurationError: a value is not what the method's field may be.
    """
    found = [dict(zip(grid, chosen, strict=True)) for chosen in product(*grid.values())]
    return [Candidate(" ".join([name, *assigned(values)]), values, replace(method, **values)) for values in found]


def best_first(points: Sequence[Candidate], outcomes: Sequence[Outcome], last: int, mode: Mode) -> list[Candidate]:
    """The points by the mean of their runs' last evaluations; those that diverged are left out, unless all did."""
    sign = 1 if mode == "max" else -1

    def score(run: Outcome) -> float:
        value = sign * run.final(last) if run.failure is None else -math.inf
        return -math.inf if math.isnan(value) else value

    scores = dict(zip((point.name for point in points), map(score, outcomes), strict=True))
    ranked = sorted(points, key=lambda point: scores[point.name], reverse=True)
    return [point for point in ranked if scores[point.name] > -math.inf] or ranked
