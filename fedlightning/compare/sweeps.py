"""The points of a sweep, and the grids of methods, as they are typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from fedlightning.compare.names import assigned
from fedlightning.compare.specs import Spec, Values, lists, number, real, typed
from fedlightning.data.partition_names import parse_partition
from fedlightning.errors import ConfigurationError, nearest
from fedlightning.method import field_names
from fedlightning.methods import method_named, method_names


def participation(text: str) -> int | float:
    """A number of clients, or with a decimal point a fraction of them."""
    return float(text) if "." in text else int(text)


SWEPT: dict[str, Callable[[str], Any]] = {
    "alpha": real, "batch_size": int, "clients_per_round": participation, "data_alpha": real, "data_beta": real,
    "local_epochs": int, "local_steps": int, "model": str, "partition": str, "rounds": int, "runner": str,
}  # fmt: skip
"""The flags that can be swept, with their types, and alpha, which is that of the partition; further every field of a method."""
TYPES = {int: "whole numbers", real: "numbers", participation: "whole numbers, or fractions with a decimal point"}


class Point(NamedTuple):
    """A point of a sweep.

    Attributes:
        swept: all that is swept, by name.
        values: of the flags.
        specs: the methods.
        place: the folder of the runs, for all points that share data and trainer.
    """

    swept: Values
    values: Values
    specs: list[Spec]
    place: str

    @property
    def name(self) -> str:
        """E.g. "lr=0.1_alpha=0.01"; empty if nothing is swept."""
        return "_".join(assigned(self.swept))


def points(sweeps: Sequence[str], values: Values, specs: Sequence[Spec]) -> list[Point]:
    """All points of a sweep, the last name fastest.

    Args:
        sweeps: the words of `--sweep`.
        values: of the flags.
        specs: the methods.

    Raises:
        ConfigurationError: there is nothing of a name, a value has not the flag's type or is given twice, or a method
            names a swept field itself.
    """
    grid: dict[str, list[Any]] = {}
    for name, texts in lists(sweeps, "--sweep"):
        key = name.replace("-", "_")
        _check_sweep(key, f"{name}={','.join(texts)}", specs, taken=grid)
        grid[key] = _distinct([_typed(key, text) for text in texts], "--sweep", name, texts)
    return [_point(dict(zip(grid, chosen, strict=True)), values, specs) for chosen in product(*grid.values())]


USUAL = "usual"
"""The word that stands for a data set's own grids."""


def grids(words: Sequence[str], specs: Sequence[Spec], usual: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """The grid of each method, by field.

    A list of all methods comes before a usual one, and a method's own list before one of all; a field that a method's own text
    sets is not tried.

    Args:
        words: of `--tune`: "usual", "lr=0.01" and the further values of this list, "fedadam:server_lr=0.01" …
        specs: the methods.
        usual: the data set's own grids, as `Comparison` takes them.

    Raises:
        ConfigurationError: there is no such method or field, or a value cannot be.
    """
    general, own = dict[str, list[Any]](), dict[str, dict[str, list[Any]]]()
    for name, texts in lists([word for word in words if word != USUAL], "--tune"):
        owner, _, dashed = name.rpartition(":")
        field = dashed.replace("-", "_")
        _check_tuned(owner, field, f"{name}={','.join(texts)}", specs)
        values = _distinct([number(text) for text in texts], "--tune", name, texts)
        (own.setdefault(owner, {}) if owner else general)[field] = values
    return [_grid(spec, general, own, usual if USUAL in words else {}) for spec in specs]


def _grid(spec: Spec, general: Values, own: Mapping[str, Values], usual: Mapping[str, Any]) -> dict[str, list[Any]]:
    common = {field: few for field, few in usual.items() if not isinstance(few, Mapping)}
    merged = {**common, **usual.get(spec.method, {}), **general, **own.get(spec.method, {})}
    wanted = {field: few for field, few in merged.items() if field in spec.names and field not in spec.fields}
    cls = method_named(spec.method)
    return {field: [typed(cls, {field: value})[field] for value in few] for field, few in wanted.items()}


def _check_tuned(owner: str, field: str, given: str, specs: Sequence[Spec]) -> None:
    """Check that a chosen method has a field, and leaves it open."""
    chosen = [spec for spec in specs if owner in ("", spec.method)]
    if not chosen:
        names = {spec.method for spec in specs}
        raise ConfigurationError(
            f"`--tune {given}` must name one of `--methods`, but has {owner!r}. {nearest(owner, names)}"
        )
    _check_field(field, "--tune", given, chosen, ())
    if all(field in spec.fields for spec in chosen if field in spec.names):
        where = next(spec.text for spec in chosen if field in spec.fields)
        raise ConfigurationError(
            f"`--tune {given}` must be the only one to set {field}, but `--methods` or `--sweep` makes it {where!r}; leave one "
            "out."
        )


def _distinct(values: list[Any], flag: str, name: str, texts: Sequence[str]) -> list[Any]:
    if len(set(map(repr, values))) < len(values):
        raise ConfigurationError(
            f"`{flag}` must be like lr=0.01,0.1, each value once, but is '{name}={','.join(texts)}'."
        )
    return values


def _typed(key: str, text: str) -> Any:
    """A value that is swept: what the flag of that name would make of it, or a method's field."""
    kind = SWEPT.get(key, number)
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(
            f"`--sweep {key}=…` must hold {TYPES[kind]}, but has {text!r}; give such a value, or leave it out."
        ) from None


def _check_sweep(key: str, given: str, specs: Sequence[Spec], taken: Values) -> None:
    _check_field(key, "--sweep", given, specs, SWEPT)
    fixed = [spec.text for spec in specs if key in spec.fields and key not in SWEPT]
    if fixed or key in taken:
        where = f"`--methods` has {fixed[0]!r}" if fixed else "it is swept twice"
        raise ConfigurationError(f"`--sweep {given}` must be the only one to set {key}, but {where}; leave one out.")


def _check_field(key: str, flag: str, given: str, specs: Sequence[Spec], others: Iterable[str]) -> None:
    """Check that a name is a field of a method, or one of others that there are."""
    known = {*others, *(name for spec in specs for name in spec.names)}
    if key in known:
        return
    everywhere = {name for method in method_names() for name in field_names(method_named(method))}
    what = "a flag or a field of a chosen method" if others else "a field of a chosen method"
    why = "no chosen method has that field" if key in everywhere else "there is none"
    raise ConfigurationError(f"`{flag}` must name {what}, but is {given!r}: {why}. {nearest(key, known)}")


def _point(swept: Values, values: Values, specs: Sequence[Spec]) -> Point:
    flags = {key: value for key, value in swept.items() if key in SWEPT}
    changed = {key: value for key, value in flags.items() if key != "alpha"}
    if {"local_steps", "local_epochs"} & set(changed):
        changed = {"local_steps": None, "local_epochs": None, **changed}
    merged = {**values, **changed}
    if "alpha" in flags:
        merged["partition"] = with_alpha(merged["partition"], flags["alpha"])
    own = {key: value for key, value in swept.items() if key not in SWEPT}
    return Point(swept, merged, [spec.swept(own) for spec in specs], "_".join(assigned(flags)))


def with_alpha(partition: str | None, alpha: float) -> str:
    """The name of the same partition with another alpha.

    Raises:
        ConfigurationError: it has no alpha.
    """
    parsed: Any = parse_partition(partition) if partition else None
    if not hasattr(parsed, "alpha"):
        given = f"the partition is {partition!r}" if partition else "this data set comes with its clients"
        raise ConfigurationError(
            f"`--sweep alpha=…` needs a partition with an alpha, such as A0d10C100, but {given}; choose such a "
            "`--partition`, or sweep data_beta with `--dataset synthetic`."
        )
    return str(replace(parsed, alpha=alpha).name)
