"""The statistics of a federated data set, as papers print them."""

from __future__ import annotations

from dataclasses import dataclass

from fedlightning._checked import checked
from fedlightning.data.partition import Partition


@dataclass(frozen=True)
class Statistics:
    """How many examples there are, and how unequally they lie.

    Attributes:
        devices: N, the clients.
        samples: examples of all devices together, for training and for testing.
        mean: examples per device.
        std: their standard deviation over the devices, with the divisor N.
    """

    devices: int
    samples: int
    mean: float
    std: float

    @classmethod
    def of(cls, clients: Partition, test_clients: Partition) -> Statistics:
        """The statistics of the training and the test part together; client k is the same device in both."""
        sizes = (clients.sizes + test_clients.sizes).double()
        return cls(len(sizes), int(sizes.sum()), float(sizes.mean()), float(sizes.std(correction=0)))


@checked()
def statistics_table(name: str, clients: Partition, test_clients: Partition) -> str:
    """The row of a data set in the FedProx paper's table of statistics (Li et al., MLSys 2020), under its headings.

    Args:
        name: of the data set.
        clients: who owns the training examples.
        test_clients: who owns the test examples; they count too.
    """
    found = Statistics.of(clients, test_clients)
    headings = ("Dataset", "Devices", "Samples", "Samples/device mean", "stdev")
    row = (name, f"{found.devices:,}", f"{found.samples:,}", f"{found.mean:,.1f}", f"{found.std:,.1f}")
    widths = [max(map(len, column)) for column in zip(headings, row, strict=True)]
    return "\n".join(_line(cells, widths) for cells in (headings, row))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])
