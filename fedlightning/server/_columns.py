"""Growing columns of equal rows, in the host's memory or in sparse files that are mapped into it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

CHUNK = 4 * 2**20
"""Bytes of an entry's rows that are allocated together."""


class Column:
    """The rows of one entry, a few megabytes of them together.

    Args:
        name: of the entry, and of its file if that has a name.
        like: a row.
        place: where rows lie.
    """

    def __init__(self, name: str, like: Tensor, place: Place) -> None:
        self._name, self._place = name, place
        self._shape, self._dtype = like.shape, like.dtype
        self._row_bytes = like.numel() * like.element_size()
        self._together = max(1, min(place.chunk // max(1, self._row_bytes), place.num_clients or 256))
        self._chunks: list[Tensor] = []
        self._file: _File | None = None

    def row(self, slot: int) -> Tensor:
        """One row, to be read or written."""
        return self._chunks[slot // self._together][slot % self._together]

    def extend(self, slot: int) -> None:
        """Make room for a row, the first that was not there."""
        k, within = divmod(slot, self._together)
        if within == 0:
            self._chunks.append(self._chunk(k))
        if self._file is not None:
            self._file.reserve(slot * self._row_bytes, self._row_bytes)

    def parts(self, length: int) -> list[Tensor]:
        """The first rows, in parts [M, …] that share them, each of its own storage, as `torch.save` wants them."""
        counts = (min(self._together, length - k * self._together) for k in range(len(self._chunks)))
        return [_prefix(chunk, count) for chunk, count in zip(self._chunks, counts, strict=True)]

    def _chunk(self, k: int) -> Tensor:
        size = self._together * self._row_bytes
        if self._file is None:
            folder = self._place.folder(size)
            if folder is None:
                return torch.empty(self._together, *self._shape, dtype=self._dtype)
            name = None if self._place.host_bytes else f"{self._name}.bin"
            self._file = _File(folder, name, self._place.num_clients * self._row_bytes)
        content = torch.from_numpy(self._file.content[k * size : (k + 1) * size])
        return content.view(self._dtype).view(-1, *self._shape)


class Place:
    """Where rows lie: the host's memory, as long as there is room by the rule, then files.

    Args:
        directory: where files go; None keeps all rows in the host's memory.
        num_clients: N, rows that a file has room for.
        host_bytes: rows up to so many bytes lie in the host's memory nonetheless; files then have no name.
        chunk: see `CHUNK`.
    """

    def __init__(self, directory: Path | None, num_clients: int, host_bytes: int, chunk: int = CHUNK) -> None:
        self.directory, self.num_clients, self.host_bytes, self.chunk = directory, num_clients, host_bytes, chunk
        self._used = 0

    def anew(self) -> Place:
        """The same rule for another table."""
        return Place(self.directory, self.num_clients, self.host_bytes, self.chunk)

    def folder(self, size: int) -> Path | None:
        """Where so many bytes more lie: a folder, or None for the host's memory."""
        if self.directory is not None and self._used + size > self.host_bytes:
            return self.directory
        self._used += size
        return None


class _File:
    """A sparse file of so many bytes, mapped into memory; without a name it goes when nobody looks at it any more."""

    def __init__(self, folder: Path, name: str | None, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if name is None:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier memory that is still held goes on with the old file
            self._file = (folder / name).open("x+b")
        finalize(self, self._file.close)
        self._file.truncate(size)
        self.content: np.ndarray[Any, Any] = np.memmap(self._file, np.uint8, "r+", shape=(size,))

    def reserve(self, start: int, count: int) -> None:
        """Take the disk for a row: where there is none left this is an error, and the write would be a crash."""
        if count and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), start, count)


def _prefix(chunk: Tensor, count: int) -> Tensor:
    if not chunk.numel():
        return chunk[:count].clone()
    plain = chunk.reshape(-1).view(torch.uint8).numpy()
    plain = plain[: plain.size // len(chunk) * count]
    return torch.from_numpy(plain).view(chunk.dtype).view(count, *chunk.shape[1:])
