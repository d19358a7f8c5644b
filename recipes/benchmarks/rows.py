"""What is measured: the rows of each workload's table, and the bounds that ours must keep."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

PACKAGES = {
    "plain": ("torch", "torch"),
    "ours": ("fedlightning", "fedlightning"),
    "pfl": ("pfl", "pfl"),
    "fedlab": ("fedlab", "fedlab"),
    "fluke": ("fluke-fl", "fluke"),
    "flower": ("flwr", "flwr"),
    "blazefl": ("blazefl", "blazefl"),
    "fedjax": ("fedjax", "fedjax"),
}
"""The distribution and the module that each adapter needs."""

Cache = Literal["shared", "empty", "filled"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        workload: its name.
        adapter: the module in this folder that measures it.
        mode: which of the adapter's ways.
        free: whether it runs on a free-threaded Python without the GIL.
        sizes: other sizes of the workload.
        cache: the folder of compiled graphs: "shared" by all rows of a sitting, "empty", or as the last "empty" row left it.
    """

    workload: str
    adapter: str
    mode: str = ""
    free: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    cache: Cache = "shared"

    @property
    def compiled(self) -> bool:
        """Whether it runs compiled graphs by request."""
        return self.mode.startswith("compiled")

    @property
    def name(self) -> str:
        """The framework's."""
        known = {
            "plain": "plain loop",
            "flower": "Flower",
            "fedlab": "FedLab",
            "blazefl": "BlazeFL",
            "fedjax": "FedJAX",
        }
        return known.get(self.adapter, self.adapter)

    @property
    def label(self) -> str:
        """What the row is called, e.g. "ours, auto (no GIL)"."""
        parts = [self.name, self.mode, *(f"{value:,} {key}" for key, value in self.sizes)]
        parts += [f"{self.cache} cache"] * (self.cache != "shared")
        return ", ".join(filter(None, parts)) + " (no GIL)" * self.free


class Bound(NamedTuple):
    """A ratio that ours may reach at most.

    Attributes:
        ours: the row.
        against: the rows whose best it is compared with.
        measure: "wall" seconds a round, "step" microseconds of a client's step, "total" seconds of the run, or "peak" memory.
        at_most: the bound.
    """

    ours: Row
    against: tuple[Row, ...]
    measure: str
    at_most: float


def _pair(workload: str, adapter: str, mode: str = "") -> list[Row]:
    """With the GIL and without."""
    return [Row(workload, adapter, mode), Row(workload, adapter, mode, free=True)]


def _run(free: bool) -> list[Row]:
    empty = Row("fedprox_run", "ours", "auto", free, cache="empty")
    return [Row("fedprox_run", "plain", free=free), empty, replace(empty, cache="filled")]


_BLAZEFL = ("single", "threads")
_ONE_SLOT = ("one slot", "looped", "compiled")

ROWS = [
    *_pair("cnn", "plain"),
    *_pair("cnn", "ours", "one slot"),
    *_pair("cnn", "ours", "auto"),
    Row("cnn", "ours", "compiled"),
    *_pair("cnn", "ours", "compiled, two slots"),
    *(Row("cnn", adapter) for adapter in ("pfl", "fedlab", "fluke", "flower", "fedjax")),
    *(Row("cnn", "blazefl", mode, free=True) for mode in _BLAZEFL),
    *_pair("fedprox", "plain"),
    Row("fedprox", "ours", "looped"),
    *_pair("fedprox", "ours", "compiled"),
    *_pair("fedprox", "ours", "compiled, two slots"),
    Row("fedprox", "fedjax"),
    *_run(free=False),
    *_run(free=True),
    *_pair("crop", "plain"),
    *_pair("crop", "ours", "one slot"),
    *_pair("crop", "ours", "auto"),
    *_pair("crop", "ours", "compiled, two slots"),
    *_pair("regression", "plain"),
    *_pair("regression", "ours", "auto"),
    Row("regression", "ours", "looped"),
    Row("regression", "ours", "compiled"),
    Row("regression", "ours", "compiled, two slots", free=True),
    Row("regression", "fedjax"),
    *(Row("scale", "ours", "one slot", sizes=(("clients", count),)) for count in (100, 10_000, 1_000_000)),
]


def reference(row: Row) -> Row:
    """The row that another's ratios are to: the plain loop in the same kind of Python, or the fewest registered clients."""
    if row.workload == "scale":
        return next(other for other in ROWS if other.workload == "scale")
    return Row(row.workload, "plain", free=row.free)


def _to_plain(row: Row, measure: str, at_most: float) -> Bound:
    return Bound(row, (reference(row),), measure, at_most)


def _cnn() -> list[Bound]:
    blazefl = tuple(Row("cnn", "blazefl", mode, free=True) for mode in _BLAZEFL)
    rivals = (blazefl, 0.75), ((Row("cnn", "pfl"),), 0.45), ((Row("cnn", "flower"),), 0.20)
    bounds = []
    for mode in ("auto", "compiled, two slots"):
        ours = Row("cnn", "ours", mode, free=True)
        bounds += [_to_plain(ours, "wall", 0.50), *(Bound(ours, against, "wall", most) for against, most in rivals)]
        bounds.append(_to_plain(replace(ours, free=False), "wall", 0.95))
    return bounds


def _fedprox() -> list[Bound]:
    one, two = Row("fedprox", "ours", "compiled"), Row("fedprox", "ours", "compiled, two slots", free=True)
    against = Bound(one, (Row("fedprox", "fedjax"),), "step", 0.28)
    return [_to_plain(one, "step", 0.030), against, _to_plain(two, "wall", 0.018)]


def _others() -> list[Bound]:
    limits = {("fedprox_run", "empty"): ("total", 0.40), ("fedprox_run", "filled"): ("total", 0.05)}
    limits |= {("crop", "shared"): ("wall", 0.15), ("regression", "shared"): ("wall", 0.08)}
    rows = [row for row in ROWS if row.adapter == "ours" and (row.mode == "auto" or row.compiled)]
    rows = [row for row in rows if (row.workload, row.cache) in limits]
    return [_to_plain(row, *limits[row.workload, row.cache]) for row in rows]


def _memory() -> list[Bound]:
    """Of every row with one slot; without the GIL "auto" takes more."""
    rows = [row for row in ROWS if row.adapter == "ours" and row.workload not in ("scale", "fedprox_run")]
    one = [row for row in rows if row.mode in _ONE_SLOT or row == Row("regression", "ours", "auto")]
    return [_to_plain(row, "peak", 1.3) for row in one]


BOUNDS = [*_fedprox(), *_cnn(), *_others(), *_memory()]
