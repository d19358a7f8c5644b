"""The ways to divide a data set among clients.

Each partitioner is a frozen dataclass whose `split(labels, seed)` gives every example to exactly one client, and at
least one to every client. The result is a function of the labels, the seed and the fields. Its `name`, e.g.
`A0d10C100`, is the name of a folder and is read back by `parse_partition`.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import COUNT, check_fields, checked
from fedlightning.data._dealing import Ints, blocks, by_mixtures, by_shares
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError, require_within
from fedlightning.randomness import stream


@runtime_checkable
class Partitioner(Protocol):
    """A way to divide a data set among clients."""

    @property
    def name(self) -> str:
        """The name of this partition in folders; `parse_partition` reads it back."""

    def split(self, labels: Tensor, seed: int) -> Partition:
        """Divide the examples with these labels [n] among the clients.

        Raises:
            ConfigurationError: the data set has too few examples.
        """


@dataclass(frozen=True)
class Dirichlet:
    """Clients with different mixtures of classes; the smaller alpha, the fewer classes a client has.

    `form="class"` (Yurochkin et al., ICML 2019): the examples of each class are shared out among the N clients by
    p ~ Dir(α 1_N), cut at ⌊cumsum(p) n_c⌋. All shares are drawn anew until every client has `min_size` examples; where
    20 draws do not reach that (α = 0.01 with 1,000 clients never does), the largest clients give some of theirs.

    `form="client"` (Hsu, Qi and Brown, 2019): every client has n/N examples. Its class mixture is q ~ Dir(α p), p the
    class frequencies of the data; its examples are drawn without replacement, q renormalised when a class runs out.

    Args:
        alpha: concentration α.
        num_clients: N.
        min_size: fewest examples of a client.
        form: whether shares are drawn for each class or for each client.

    Raises:
        ConfigurationError: alpha is not positive, a number is below 1, or the form is unknown.
    """

    alpha: float
    num_clients: int
    min_size: int = 1
    form: Literal["class", "client"] = "class"

    def __post_init__(self) -> None:
        require_within(self.alpha, "(0, inf)", "`alpha` of Dirichlet", "0.1 is strongly, 100 hardly heterogeneous")
        check_fields(self, num_clients=COUNT, min_size=COUNT)

    @property
    def name(self) -> str:
        """`A0d10C100`; `H0d10C100` for the form "client"; `M2` is added for a `min_size` of 2."""
        return f"{'A' if self.form == 'class' else 'H'}{_decimal(self.alpha)}C{self.num_clients}{_minimum(self)}"

    @checked()
    def split(self, labels: Tensor, seed: int) -> Partition:
        """Divide the examples with these labels [n] among the clients."""
        classes = _members(labels, self.name)
        _require_examples(self, len(labels), self.num_clients, self.min_size, "min_size")
        if self.form == "class":
            owners = by_shares(classes, self.alpha, self.num_clients, self.min_size, seed)
        else:
            owners = by_mixtures(classes, self.alpha, self.num_clients, seed)
        return Partition.of_owners(torch.from_numpy(owners), self.num_clients)


@dataclass(frozen=True)
class IID:
    """Examples dealt at random; the clients' sizes differ by at most one.

    Args:
        num_clients: N.
    """

    num_clients: int

    def __post_init__(self) -> None:
        check_fields(self, num_clients=COUNT)

    @property
    def name(self) -> str:
        """`IIDC100`."""
        return f"IIDC{self.num_clients}"

    @checked()
    def split(self, labels: Tensor, seed: int) -> Partition:
        """Divide the examples with these labels [n] among the clients."""
        count = _count(labels, self.name)
        _require_examples(self, count, self.num_clients, 1, "num_clients")
        owners = stream(seed, "partition").permutation(blocks(len(labels), self.num_clients))
        return Partition.of_owners(torch.from_numpy(owners), self.num_clients)


@dataclass(frozen=True)
class Shards:
    """A few classes for each client (McMahan et al., AISTATS 2017).

    The examples are sorted by label and cut into `num_clients * shards_per_client` shards whose sizes differ by at most
    one; each client is dealt `shards_per_client` of them.

    Args:
        num_clients: N.
        shards_per_client: shards of a client; with 2 of them a client has hardly more than two classes.
    """

    num_clients: int
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        check_fields(self, num_clients=COUNT, shards_per_client=COUNT)

    @property
    def name(self) -> str:
        """`S2C100`."""
        return f"S{self.shards_per_client}C{self.num_clients}"

    @checked()
    def split(self, labels: Tensor, seed: int) -> Partition:
        """Divide the examples with these labels [n] among the clients."""
        in_order = np.concatenate(_members(labels, self.name))
        _require_examples(self, len(labels), self.num_clients, self.shards_per_client, "shards_per_client")
        shards = self.num_clients * self.shards_per_client
        dealt = stream(seed, "partition").permutation(np.arange(shards) // self.shards_per_client)
        owners = np.empty(len(labels), dtype=np.int64)
        owners[in_order] = dealt[blocks(len(labels), shards)]
        return Partition.of_owners(torch.from_numpy(owners), self.num_clients)


@dataclass(frozen=True)
class QuantitySkew:
    """Clients of different sizes with the same mixture of classes: sizes in the proportions p ~ Dir(α 1_N).

    Args:
        alpha: concentration α; the smaller, the more uneven the sizes.
        num_clients: N.
        min_size: fewest examples of a client, reached as by `Dirichlet`.
    """

    alpha: float
    num_clients: int
    min_size: int = 1

    def __post_init__(self) -> None:
        require_within(self.alpha, "(0, inf)", "`alpha` of QuantitySkew", "the smaller, the more uneven the sizes")
        check_fields(self, num_clients=COUNT, min_size=COUNT)

    @property
    def name(self) -> str:
        """`Q0d50C100`; `M2` is added for a `min_size` of 2."""
        return f"Q{_decimal(self.alpha)}C{self.num_clients}{_minimum(self)}"

    @checked()
    def split(self, labels: Tensor, seed: int) -> Partition:
        """Divide the examples with these labels [n] among the clients."""
        _require_examples(self, _count(labels, self.name), self.num_clients, self.min_size, "min_size")
        everything = [np.arange(len(labels))]
        owners = by_shares(everything, self.alpha, self.num_clients, self.min_size, seed)
        return Partition.of_owners(torch.from_numpy(owners), self.num_clients)


@dataclass(frozen=True, eq=False)
class Natural:
    """Clients as the data have them, e.g. writers or speakers.

    Args:
        owners: who owns each example [n] (integers). The owners in ascending order become the clients 0, 1, …
    """

    owners: Tensor

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """`naturalC30`. It cannot be read back, for the owners are in the data."""
        return f"naturalC{len(torch.unique(self.owners))}"

    @checked()
    def split(self, labels: Tensor, seed: int = 0) -> Partition:
        """Give the examples with these labels [n] to their owners; the seed does not matter."""
        whole = self.owners.dim() == 1 and not (self.owners.is_floating_point() or self.owners.is_complex())
        if not whole or self.owners.is_meta or len(self.owners) != _count(labels, "by owners"):
            raise ConfigurationError(
                f"`owners` of Natural must be {len(labels)} integers, one for each example, but is "
                f"{str(self.owners.dtype).removeprefix('torch.')}{list(self.owners.shape)}."
            )
        found, owners = torch.unique(self.owners, return_inverse=True)
        return Partition.of_owners(owners, len(found))


# -- what they share ---------------------------------------------------------------------------------------------------
def _members(labels: Tensor, name: str) -> list[Ints]:
    """The positions of each class that occurs."""
    if labels.dim() != 1 or labels.is_complex() or labels.is_meta:
        raise ConfigurationError(
            f"The partition {name} needs one label for each example, but the targets are {list(labels.shape)} of {labels.dtype}; "
            "use IID, QuantitySkew or Natural."
        )
    labels = labels.detach().cpu()
    _, counts = np.unique(labels.numpy(), return_counts=True)
    return np.split(labels.argsort(stable=True).numpy(), counts.cumsum()[:-1])


def _count(labels: Tensor, name: str) -> int:
    """How many examples have a label, or a target of any kind."""
    if not labels.dim():
        raise ConfigurationError(
            f"The partition {name} needs a label for each example, but the targets are one number, {labels.item()}."
        )
    return len(labels)


def _decimal(alpha: float) -> str:
    """0.1 as `0d10`: at least two decimals, and as many as the number has."""
    whole, _, decimals = format(Decimal(repr(float(alpha))), "f").partition(".")
    return f"{whole}d{decimals.rstrip('0'):0<2}"


def _minimum(partitioner: Dirichlet | QuantitySkew) -> str:
    return f"M{partitioner.min_size}" if partitioner.min_size > 1 else ""


def _require_examples(partitioner: Partitioner, num_examples: int, num_clients: int, each: int, field: str) -> None:
    if num_examples < num_clients * each:
        fewer = [f"at most {num_examples // each} clients"] if num_examples >= each else []
        less = (
            [f"a `{field}` of at most {num_examples // num_clients}"]
            if num_examples >= num_clients and each > 1
            else []
        )
        raise ConfigurationError(
            f"The partition {partitioner.name} needs {num_clients * each} examples, {each} for each of its {num_clients} "
            f"clients, but the data set has {num_examples}; use {' or '.join(fewer + less) or 'more data'}."
        )
