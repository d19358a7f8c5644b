"""Who owns which example."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

    @classmethod
    def of(cls, clients: Sequence[Tensor]) -> Partition:
        """A partition from each client's positions."""
        sizes = torch.tensor([0, *(len(indices) for indices in clients)])
        return cls(
            torch.cat([torch.empty(0, dtype=torch.int64), *(c.to(torch.int64) for c in clients)]), sizes.cumsum(0)
        )

    @classmethod
    def of_owners(cls, owners: Tensor, num_clients: int) -> Partition:
        """A partition from the client that owns each example [n] (int64); each client's positions ascend."""
        sizes = torch.bincount(owners, minlength=num_clients)
        return cls(owners.argsort(stable=True), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))

    @classmethod
    def of_sizes(cls, sizes: Tensor, indices: Tensor | None = None) -> Partition:
        """A partition from each client's number of examples [N] (int64), for any number of clients.

        Args:
            sizes: examples of each client.
            indices: positions, one client's after another's [n]; by default 0, 1, … in the order of the data set.
        """
        offsets = torch.cat([sizes.new_zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        return cls(torch.arange(int(offsets[-1])) if indices is None else indices, offsets)

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.offsets) - 1

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

    def histogram(self, labels: Tensor, classes: int) -> Tensor:
        """Examples of each class at each client [N, classes], from the labels of the whole data set."""
        cells = self.owners() * classes + labels[self.indices].to(torch.int64)
        return torch.bincount(cells, minlength=self.num_clients * classes).view(self.num_clients, classes)

    def mirror(self, labels: Tensor, other: Tensor) -> Partition:
        """A partition of another data set (its test set) in which each class is shared out in the same proportions.

        A class that this data set lacks is shared out in proportion to the clients' sizes. A client may get nothing.

        Args:
            labels: labels of the data set that this partition is of [n], any integers.
            other: labels of the other data set [m].
        """
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

    def check(self, num_examples: int) -> None:
        """Check that every client has an example and that the positions exist.

        Raises:
            ConfigurationError: there is no client, a client without an example, or a position outside the data; or
                `offsets` are not those of `indices`.
        """
        if len(self.offsets) and (int(self.offsets[0]), int(self.offsets[-1])) != (0, len(self.indices)):
            raise ConfigurationError(
                f"`offsets` of the partition must go from 0 to its {len(self.indices)} `indices`, but go from "
                f"{int(self.offsets[0])} to {int(self.offsets[-1])}."
            )
        empty = (self.sizes <= 0).nonzero().squeeze(1)
        if self.num_clients == 0 or len(empty):
            which = f"{len(empty)} of {self.num_clients} have none" if self.num_clients else "it has no client"
            which += f" (the first: client {int(empty[0])})" if len(empty) else ""
            raise ConfigurationError(
                f"Every client of the partition must own an example, but {which}; use fewer clients, a larger alpha, "
                "or `min_size=1`."
            )
        if int(self.indices.min()) < 0 or int(self.indices.max()) >= num_examples:
            raise ConfigurationError(
                f"Positions of the partition must be in 0…{num_examples - 1}, but are in "
                f"{int(self.indices.min())}…{int(self.indices.max())}; was it made for another data set?"
            )

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of who owns what, written to checkpoints."""
        content = hashlib.blake2b(digest_size=8)
        for array in (self.indices, self.offsets):
            content.update(array.contiguous().numpy().data)
        return content.hexdigest()
