"""Where the steps of a cohort's clients lie: side by side, or one client after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Padding(NamedTuple):
    """How an executor asks a cohort to be laid out.

    Attributes:
        width: C, at least the number of clients; the last one stands in the places left, and takes no step there.
        unroll: U, of which the steps of a client are padded to a multiple where clients follow one another; 0 where they
            stand side by side.
        lead: the first step is taken alone, by all clients side by side, and is none of the steps that are padded.
    """

    width: int
    unroll: int = 0
    lead: bool = False

    def lengths(self, num_steps: Sequence[int]) -> tuple[int, ...]:
        """Rows of each client where they follow one another, without the first; else none."""
        return tuple(-(-(steps - self.lead) // self.unroll) * self.unroll for steps in num_steps) if self.unroll else ()


class Grid(NamedTuple):
    """Where the steps of each client, one client's after another's [ΣK], lie in what `Steps` describes.

    Attributes:
        size: of the first two dimensions.
        client, step: of each [ΣK].
        places: rows and columns, or None where all rows are taken in this order.
    """

    size: tuple[int, int]
    client: NDArray[np.int64]
    step: NDArray[np.int64]
    places: tuple[Any, Any] | None

    @classmethod
    def of(cls, num_steps: Sequence[int], padding: Padding) -> Grid:
        """The grid of clients that take so many steps."""
        if padding == (1, 0, False):  # nothing to lay out, and as cheap as it can be
            return cls((num_steps[0], 1), np.zeros(num_steps[0], np.int64), np.arange(num_steps[0]), None)
        count, taken = len(num_steps), np.array(num_steps)
        client, total = np.repeat(np.arange(count), taken), int(taken.sum())
        step = np.arange(total) - np.repeat(np.cumsum(taken) - taken, taken)
        if not padding.unroll:
            return cls((int(taken.max()), padding.width), client, step, (step, client))
        lengths = np.array(padding.lengths(num_steps))
        ends = np.cumsum(lengths) + count * padding.lead
        size = (int(ends[-1]), 1)
        if size[0] == total and not padding.lead:
            return cls(size, client, step, None)
        rows = (ends - lengths)[client] + step - padding.lead
        return cls(size, client, step, (np.where(step, rows, client) if padding.lead else rows, 0))

    def laid_out(self, tensors: Sequence[Tensor], value: int, batch: int = 0) -> NDArray[np.int64]:
        """What the steps of each client have [K_i, B_i, …], of several sizes, in its places.

        B is at least `batch`; what is left is filled up with `value`.
        """
        arrays = [tensor.numpy() for tensor in tensors]
        inner = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
        inner[:1] = [max(size, batch) for size in inner[:1]]
        arrays = [_widened(array, inner, value) for array in arrays]
        return self._spread(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), value)

    def picked(self, table: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries [k, i] of a table in the places of step k of client i; 0 in the places left."""
        return self._spread(table[self.step, self.client], 0)

    def by_step(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of the places [size], by step and client [K, C]; 0 where a client takes no such step."""
        alone = self.places is None and self.client[-1] == 0
        if alone or (self.places is not None and self.places[1] is self.client):  # they lie so already
            return entries
        table = np.zeros((int(self.step.max()) + 1, int(self.client[-1]) + 1), dtype=np.int64)
        table[self.step, self.client] = (entries if self.places is None else entries[self.places]).reshape(-1)
        return table

    def _spread(self, entries: NDArray[np.int64], value: int) -> NDArray[np.int64]:
        if self.places is None:
            return entries.reshape(*self.size, *entries.shape[1:])
        laid = np.full((*self.size, *entries.shape[1:]), value)
        laid[self.places] = entries
        return laid


def _widened(array: NDArray[np.int64], inner: Sequence[int], value: int) -> NDArray[np.int64]:
    """An array [K, …] of larger steps, filled up at their ends."""
    if array.shape[1:] == tuple(inner):
        return array
    return np.pad(
        array,
        [(0, 0), *((0, size - had) for size, had in zip(inner, array.shape[1:], strict=True))],
        constant_values=value,
    )
