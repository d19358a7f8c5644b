"""What can be swept, and the points of a sweep."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from comparison.settings import Spec, Values, assigned, number, real

from fedlightning import ConfigurationError
from fedlightning.data.partition_names import parse_partition
from fedlightning.errors import nearest
from fedlightning.method import field_names
from fedlightning.methods import method_named, method_names


def participation(text: str) -> int | float:
    """A number of clients, or with a decimal point a fraction of them."""
    return float(text) if "." in text else int(text)


SWEPT: dict[str, Callable[[str], Any]] = {
    "alpha": real, "batch_size": int, "clients_per_round": participation, "data_alpha": real, "data_beta": real,
    "local_epochs": int, "local_steps": int, "model": str, "partition": str, "rounds": int,
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
    """All points of the grid, the last name fastest.

    Args:
        sweeps: each "name=value,value".
        values: of the flags.
        specs: the methods.

    Raises:
        ConfigurationError: there is nothing of a name, a value has not the flag's type or is given twice, or a method
            names a swept field itself.
    """
    grid: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, several = sweep.partition("=")
        key = name.replace("-", "_")
        _check_sweep(key, sweep, specs, taken=grid)
        grid[key] = [_typed(key, value) for value in several.split(",") if value]
        if not grid[key] or len(set(map(repr, grid[key]))) < len(grid[key]):
            raise ConfigurationError(f"`--sweep` must be like lr=0.01,0.1, each value once, but is {sweep!r}.")
    return [_point(dict(zip(grid, chosen, strict=True)), values, specs) for chosen in product(*grid.values())]


def _typed(key: str, text: str) -> Any:
    """A value that is swept: what the flag of that name would make of it, or a method's field."""
    kind = SWEPT.get(key, number)
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(
            f"`--sweep {key}=…` must hold {TYPES[kind]}, but has {text!r}; give such a value, or leave it out."
        ) from None


def _check_sweep(key: str, sweep: str, specs: Sequence[Spec], taken: Values) -> None:
    fields = {name for spec in specs for name in field_names(method_named(spec.method))}
    if key not in {*SWEPT, *fields}:
        everywhere = {name for method in method_names() for name in field_names(method_named(method))}
        why = "no chosen method has that field" if key in everywhere else "there is none"
        raise ConfigurationError(
            f"`--sweep` must name a flag or a field of a chosen method, but is {sweep!r}: {why}. "
            f"{nearest(key, {*SWEPT, *fields})}"
        )
    fixed = [spec.text for spec in specs if key in spec.fields and key not in SWEPT]
    if fixed or key in taken:
        where = f"`--methods` has {fixed[0]!r}" if fixed else "it is swept twice"
        raise ConfigurationError(f"`--sweep {sweep}` must be the only one to set {key}, but {where}; leave one out.")


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
