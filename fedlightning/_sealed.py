"""Files that are written whole or not at all, and known to be whole when they are read."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from fedlightning._atomic import written
from fedlightning.errors import SaveError

_MARK = b"fedlightning blake2b "
_DIGEST = 32
_SEAL = len(_MARK) + 2 * _DIGEST
_END = 22
"""Bytes of a zip archive's last record where it has no comment."""

_BLOCK = 16 * 2**20


def save_sealed(path: Path, content: Any) -> None:
    """Write what `torch.load` reads beside `path`, flush it, and rename it; a crash leaves the old file or the new one, whole.

    The file ends with a hash of all that is before it, as the comment of the zip archive that it is. The archive's own
    checksums do not cover its directory, and `torch.load` looks at none of them.

    Raises:
        SaveError: the disk is full, or the folder cannot be written; the old file is as it was.
    """
    file: _Hashed | None = None
    try:
        with written(path) as plain:
            file = _Hashed(plain)
            torch.save(content, cast(Any, file))
            file.seal()
    except BaseException as error:
        failure = error if isinstance(error, OSError) else file and file.error
        if failure:
            raise _unsaved(path, failure) from None  # torch words the disk's error as one of its own
        raise


def check_sealed(path: Path) -> None:
    """Check that a file is as `save_sealed` wrote it; one that others wrote, without a hash, by the archive's checksums.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is not, or cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _SEAL, 0))
        seal = file.read()
        if not seal.startswith(_MARK):
            if not (seal[-_END:].startswith(b"PK\5\6") and seal.endswith(bytes(2))):
                raise ValueError("its end is cut off or changed")
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of its entry {damaged} does not fit")
            return
        content = hashlib.blake2b(digest_size=_DIGEST)
        for block in _blocks(file, size - _SEAL - 2):
            content.update(block)
        content.update(bytes(2))  # the length of a comment, which there was not when it was hashed
        if seal != _MARK + content.hexdigest().encode():
            raise ValueError("it does not have the hash that was written to it")


class _Hashed:
    """A file for `torch.save` that hashes what passes, and keeps the disk's error.

    Attributes:
        error: what the disk said when it took no more.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.blake2b(digest_size=_DIGEST)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        return count

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Write the hash as the archive's comment, whose length is in the two bytes before it."""
        self._file.seek(-2, os.SEEK_END)
        self._file.write(_SEAL.to_bytes(2, "little") + _MARK + self._hash.hexdigest().encode())


def _blocks(file: BinaryIO, count: int) -> Iterator[bytes]:
    file.seek(0)
    while count > 0 and (block := file.read(min(_BLOCK, count))):
        count -= len(block)
        yield block


def _unsaved(path: Path, failure: OSError) -> SaveError:
    return SaveError(
        f"A checkpoint must be written, but {path} cannot be ({failure.strerror or failure}). Those that were there before are "
        "whole: make room, or change the folder's permissions, and go on from the last one (`--resume last`, or `ckpt_path`)."
    )
