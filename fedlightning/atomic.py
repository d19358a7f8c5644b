"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def written(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write to; once all is written it takes the place of `path` at once. A crash leaves the old file or the new one.

    It lies beside `path`, since a file can be renamed on one file system alone, and is on the disk before it is renamed.

    Args:
        path: where it will be; its folder is made.
        mode: as for `open`.
        **options: as for `open`.

    Raises:
        OSError: it cannot be written. The old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
