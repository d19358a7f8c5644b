"""The names of partitions, read back."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedlightning._checked import checked
from fedlightning.data.partitioners import IID, Dirichlet, Partitioner, QuantitySkew, Shards
from fedlightning.errors import ConfigurationError


@checked()
def parse_partition(name: str) -> Partitioner:
    """The partitioner with this name.

    | name | partitioner |
    |---|---|
    | `A0d10C100` | `Dirichlet(alpha=0.1, num_clients=100)` |
    | `H0d10C100` | `Dirichlet(alpha=0.1, num_clients=100, form="client")` |
    | `Q0d50C100` | `QuantitySkew(alpha=0.5, num_clients=100)` |
    | `S2C100` | `Shards(num_clients=100, shards_per_client=2)` |
    | `IIDC100` | `IID(num_clients=100)` |

    The `d` is the decimal point. `M5` at the end of the first three is `min_size=5`.

    Raises:
        ConfigurationError: the name does not parse, or its numbers are outside their intervals.
    """
    for pattern, make in _NAMES.items():
        if found := re.fullmatch(pattern, name, re.ASCII):
            return make(found)
    raise ConfigurationError(
        "The name of a partition must be like 'A0d10C100' (Dirichlet with alpha 0.10, 100 clients), 'H0d10C100' (the "
        "same, client by client), 'Q0d50C100' (quantity skew), 'S2C100' (2 shards for each client) or 'IIDC100', but "
        f"is {name!r}; the 'd' stands for the decimal point, e.g. 'A0d01C100' for alpha 0.01."
    )


def _dirichlet(found: re.Match[str]) -> Partitioner:
    sizes = int(found["clients"]), int(found["minimum"] or 1)
    return Dirichlet(_alpha(found), *sizes, form="class" if found["form"] == "A" else "client")


def _quantity(found: re.Match[str]) -> Partitioner:
    return QuantitySkew(_alpha(found), int(found["clients"]), int(found["minimum"] or 1))


def _shards(found: re.Match[str]) -> Partitioner:
    return Shards(int(found["clients"]), int(found["shards"]))


def _iid(found: re.Match[str]) -> Partitioner:
    return IID(int(found["clients"]))


def _alpha(found: re.Match[str]) -> float:
    return float(found["alpha"].replace("d", "."))


_ALPHA, _CLIENTS, _MINIMUM = r"(?P<alpha>\d+d\d+)", r"C(?P<clients>\d{1,12})", r"(M(?P<minimum>\d{1,12}))?"
_NAMES: dict[str, Callable[[re.Match[str]], Partitioner]] = {
    rf"(?P<form>[AH]){_ALPHA}{_CLIENTS}{_MINIMUM}": _dirichlet,
    rf"Q{_ALPHA}{_CLIENTS}{_MINIMUM}": _quantity,
    rf"S(?P<shards>\d{{1,12}}){_CLIENTS}": _shards,
    rf"IID{_CLIENTS}": _iid,
}
