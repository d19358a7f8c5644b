"""Who owns which example."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import check_fields, checked
from fedlightning.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Partition:
    """The examples of each client: client c owns `indices[offsets[c]:offsets[c + 1]]`.

    Two arrays, whatever the number of clients, so a million clients cost no more than their examples.

    Attributes:
        indices: positions in the data set [n] (int64).
        offsets: [N + 1] (int64), from 0 to n.
    """

    indices: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    @checked()
    def of(cls, clients: Sequence[Tensor]) -> Partition:
        """A partition from each client's positions.

        Raises:
            ConfigurationError: they are no whole numbers.
        """
        for client, indices in enumerate(clients):
            _require_whole(indices, f"The positions of client {client} in `Partition.of`")
        sizes = torch.tensor([0, *(len(indices) for indices in clients)])
        return cls(
            torch.cat([torch.empty(0, dtype=torch.int64), *(c.to(torch.int64) for c in clients)]), sizes.cumsum(0)
        )

    @classmethod
    @checked(num_clients="[1, 100000000]")
    def of_owners(cls, owners: Tensor, num_clients: int) -> Partition:
        """A partition from the client that owns each example [n] (int64); each client's positions ascend.

        Raises:
            ConfigurationError: an owner is not in 0 … `num_clients` − 1.
        """
        _require_whole(owners, "`owners` of `Partition.of_owners`", num_clients - 1)
        sizes = torch.bincount(owners.to(torch.int64), minlength=num_clients)
        return cls(owners.argsort(stable=True), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))

    @classmethod
    @checked()
    def of_sizes(cls, sizes: Tensor, indices: Tensor | None = None) -> Partition:
        """A partition from each client's number of examples [N] (int64), for any number of clients.

        Args:
            sizes: examples of each client.
            indices: positions, one client's after another's [n]; by default 0, 1, … in the order of the data set.

        Raises:
            ConfigurationError: a size is negative.
        """
        _require_whole(sizes, "`sizes` of `Partition.of_sizes`", math.inf)
        offsets = torch.cat([sizes.new_zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        return cls(torch.arange(int(offsets[-1])) if indices is None else indices, offsets)

    @property
    def num_clients(self) -> int:
        """N."""
        return self.offsets.numel() - 1

    @property
    def sizes(self) -> Tensor:
        """Examples of each client [N]."""
        return self.offsets.diff()

    @cached_property
    def largest(self) -> int:
        """Examples of the largest client."""
        return int(self.sizes.max())

    def size(self, client: int) -> int:
        """Examples of one client."""
        start, end = self._bounds(client)
        return end - start

    def sizes_of(self, clients: Sequence[int]) -> np.ndarray[Any, Any]:
        """Examples of some clients [C], for NumPy."""
        which = np.array(clients, dtype=np.int64)
        sizes: np.ndarray[Any, Any] = self._offsets[which + 1] - self._offsets[which]
        return sizes

    def client(self, client: int) -> Tensor:
        """The positions that a client owns."""
        return torch.from_numpy(self.positions(client))

    def positions(self, client: int) -> np.ndarray[Any, Any]:
        """The same as `client`, for NumPy."""
        start, end = self._bounds(client)
        return self._indices[start:end]

    @cached_property
    def _offsets(self) -> np.ndarray[Any, Any]:
        """The same memory, which is read faster number by number."""
        return self.offsets.numpy()

    @cached_property
    def _indices(self) -> np.ndarray[Any, Any]:
        return self.indices.numpy()

    def _bounds(self, client: int) -> tuple[int, int]:
        return int(self._offsets.item(client)), int(self._offsets.item(client + 1))

    def owners(self) -> Tensor:
        """The client that owns each entry of `indices` [n]."""
        return torch.repeat_interleave(torch.arange(self.num_clients), self.sizes)

    @checked(classes="[1, 16777216]")
    def histogram(self, labels: Tensor, classes: int) -> Tensor:
        """Examples of each class at each client [N, classes], from the labels of the whole data set."""
        _require_whole(labels, "`labels` of `Partition.histogram`", classes - 1)
        self._require_one_each(labels, "`labels` of `Partition.histogram`")
        cells = self.owners() * classes + labels[self.indices].to(torch.int64)
        return torch.bincount(cells, minlength=self.num_clients * classes).view(self.num_clients, classes)

    @checked()
    def mirror(self, labels: Tensor, other: Tensor) -> Partition:
        """A partition of another data set (its test set) in which each class is shared out in the same proportions.

        A class that this data set lacks is shared out in proportion to the clients' sizes. A client may get nothing.

        Args:
            labels: labels of the data set that this partition is of [n], any integers.
            other: labels of the other data set [m].
        """
        _require_whole(labels, "`labels` of `Partition.mirror`")
        _require_whole(other, "`other` of `Partition.mirror`")
        self._require_one_each(labels, "`labels` of `Partition.mirror`")
        found, ids = torch.unique(torch.cat([labels, other]), return_inverse=True)
        mine, wanted = ids[: len(labels)][self.indices], ids[len(labels) :]
        holders = self.owners()[mine.argsort(stable=True)].split(torch.bincount(mine, minlength=len(found)).tolist())
        owners = torch.empty(len(other), dtype=torch.int64)
        for c, members in enumerate(wanted.argsort(stable=True).split(wanted.bincount(minlength=len(found)).tolist())):
            # One class at a time: all classes of a million clients would not fit into memory.
            counts = holders[c].bincount(minlength=self.num_clients) if len(holders[c]) else self.sizes
            shares = counts.to(torch.float64).cumsum(0) / counts.sum()
            cuts = (shares * len(members)).round().to(torch.int64)
            owners[members] = torch.bucketize(torch.arange(len(members)), cuts, right=True)
        return Partition.of_owners(owners, self.num_clients)

    @checked(num_examples="[0, inf)")
    def check(self, num_examples: int, shared: bool = False) -> None:
        """Check that clients can train on these examples: each has one at least, and none belongs to two of them.

        Examples that belong to nobody are left out of the training. Takes O(n) time, and a byte for each example.

        Args:
            num_examples: of the training set.
            shared: whether an example may belong to several clients, or to one several times, and count each time.

        Raises:
            ConfigurationError: an array is not one-dimensional and int64, or `offsets` are not those of `indices`; there is
                no client, or a client without an example; a position is outside the data, or is there twice.
        """
        self._check_arrays("the partition")
        empty = (self.sizes == 0).nonzero().squeeze(1)
        if self.num_clients == 0 or len(empty):
            which = f"{len(empty)} of {self.num_clients} have none" if self.num_clients else "it has no client"
            which += f" (the first: client {int(empty[0])})" if len(empty) else ""
            raise ConfigurationError(
                f"Every client of the partition must own an example, but {which}; use fewer clients, a larger alpha, "
                "or `min_size=1`."
            )
        self._owned("the partition", num_examples, shared)

    def check_held_out(self, num_examples: int, num_clients: int | None, split: str) -> None:
        """Check that a split of so many examples is shared out: each of them belongs to one client. A client may have none.

        Args:
            num_examples: of the split.
            num_clients: those that train, who must be those of the split; None if these are others.
            split: its name in messages, "test" or "validation".

        Raises:
            ConfigurationError: an array is not one-dimensional and int64, or `offsets` are not those of `indices`; the
                number of clients is another; a position is outside the split, is there twice, or is missing.
        """
        self._check_arrays(f"the {split} partition")
        if num_clients is not None and self.num_clients != num_clients:
            raise ConfigurationError(
                f"The {split} partition must be of the {num_clients} clients that train, but is of {self.num_clients}; give a "
                f"client without {split} examples an empty part, or set the data module's `other_test_clients = True` where the "
                f"{split} set is that of other people."
            )
        missing = self._owned(f"the {split} partition", num_examples).logical_not().nonzero().squeeze(1)
        if len(missing):
            raise ConfigurationError(
                f"Each example of the {split} set must belong to a client, but {len(missing)} of {num_examples} belong to nobody "
                f"(the first: position {int(missing[0])}); leave them out of the {split} set, or give them to a client."
            )

    def _require_one_each(self, labels: Tensor, name: str) -> None:
        if len(self.indices) and int(self.indices.max()) >= len(labels):
            raise ConfigurationError(
                f"{name} must be one for each example, but there are {len(labels)} for positions up to "
                f"{int(self.indices.max())}; was the partition made for another data set?"
            )

    def _check_arrays(self, name: str) -> None:
        for field, array in (("indices", self.indices), ("offsets", self.offsets)):
            if (
                not isinstance(array, Tensor)
                or array.dim() != 1
                or array.dtype != torch.int64
                or array.device.type != "cpu"
            ):
                is_tensor = isinstance(array, Tensor)
                what = f"{array.dtype}{list(array.shape)} on {array.device}" if is_tensor else type(array).__name__
                raise ConfigurationError(
                    f"`{field}` of {name} must be a one-dimensional int64 tensor on the CPU, but is {what}; convert it, or use "
                    "`Partition.of`, `of_owners` or `of_sizes`."
                )
        ends = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else (0, 0)
        if ends != (0, len(self.indices)):
            raise ConfigurationError(
                f"`offsets` of {name} must go from 0 to its {len(self.indices)} `indices`, but go from {ends[0]} to {ends[1]}."
            )
        falls = (self.sizes < 0).nonzero().squeeze(1)
        if len(falls):
            client = int(falls[0])
            raise ConfigurationError(
                f"`offsets` of {name} must not fall, but go from {int(self.offsets[client])} to {int(self.offsets[client + 1])} "
                f"at client {client}; `Partition.of_sizes` makes them from the clients' sizes."
            )

    def _owned(self, name: str, num_examples: int, shared: bool = False) -> Tensor:
        """Whether each example belongs to a client [n] (bool)."""
        owned = torch.zeros(num_examples, dtype=torch.bool)
        if len(self.indices) and (int(self.indices.min()) < 0 or int(self.indices.max()) >= num_examples):
            raise ConfigurationError(
                f"Positions of {name} must be in 0…{num_examples - 1}, but are in "
                f"{int(self.indices.min())}…{int(self.indices.max())}; was it made for another data set?"
            )
        owned[self.indices] = True
        again = len(self.indices) - int(owned.count_nonzero())
        if again and not shared:
            position, owners = self._first_repeated()
            raise ConfigurationError(
                f"An example must belong to one client of {name}, but {again} of its {len(self.indices)} positions are there "
                f"again (the first: {position}, at {owners}); name each once, or set the data module's `shared_examples = True` "
                "where that is meant."
            )
        return owned

    def _first_repeated(self) -> tuple[int, str]:
        """The smallest position that is there twice, and the clients that hold it."""
        found, order = self.indices.sort(stable=True)
        place = int((found[1:] == found[:-1]).nonzero()[0])
        one, other = (int(self.owners()[order[at]]) for at in (place, place + 1))
        return int(found[place]), f"client {one} twice" if one == other else f"clients {one} and {other}"

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of who owns what, written to checkpoints."""
        content = hashlib.blake2b(digest_size=8)
        for array in (self.indices, self.offsets):
            content.update(array.contiguous().numpy().data)
        return content.hexdigest()


def _require_whole(values: Any, name: str, most: float | None = None) -> None:
    """Check that values are a one-dimensional tensor of whole numbers, from 0 to `most` if there is one."""
    flat = isinstance(values, Tensor) and values.dim() == 1 and values.dtype != torch.bool
    flat = flat and not values.is_complex() and values.device.type == "cpu"
    if not flat or not bool((values == values.to(torch.int64)).all()):
        what = f"{values.dtype}{list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigurationError(
            f"{name} must be a one-dimensional tensor of whole numbers, but is {what}; use `torch.tensor([…])`, or "
            "`mask.nonzero().squeeze(1)` of a mask."
        )
    if most is not None and len(values) and not (int(values.min()) >= 0 and int(values.max()) <= most):
        interval = f"in 0…{most}" if math.isfinite(most) else "at least 0"
        raise ConfigurationError(
            f"{name} must be {interval}, but are in {int(values.min())}…{int(values.max())}; clients are numbered from 0."
        )
