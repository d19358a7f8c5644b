"""Who owns which example."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

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

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Tensor:
        """Examples of each client [N]."""
        return self.offsets.diff()

    def size(self, client: int) -> int:
        """Examples of one client."""
        start, end = self.offsets[client : client + 2].tolist()
        return int(end - start)

    def client(self, client: int) -> Tensor:
        """The positions that a client owns."""
        return self.indices[int(self.offsets[client]) : int(self.offsets[client + 1])]

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
        counts = self.histogram(ids[: len(labels)], len(found))
        counts = torch.where(counts.sum(0) > 0, counts, self.sizes[:, None]).to(torch.float64)
        shares = counts.cumsum(0) / counts.sum(0)
        owners = torch.empty(len(other), dtype=torch.int64)
        for c in range(len(found)):
            members = (ids[len(labels) :] == c).nonzero().squeeze(1)
            cuts = (shares[:, c] * len(members)).round().to(torch.int64)
            owners[members] = torch.bucketize(torch.arange(len(members)), cuts, right=True)
        return Partition.of_owners(owners, self.num_clients)

    def check(self, num_examples: int) -> None:
        """Check that every client has an example and that the positions exist.

        Raises:
            ConfigurationError: there is no client, a client without an example, or a position outside the data.
        """
        empty = (self.sizes == 0).nonzero().squeeze(1)
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

    @property
    def fingerprint(self) -> str:
        """A short hash of who owns what, written to checkpoints."""
        content = hashlib.blake2b(digest_size=8)
        for array in (self.indices, self.offsets):
            content.update(array.contiguous().numpy().tobytes())
        return content.hexdigest()
