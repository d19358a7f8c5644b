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


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what processes that were killed had begun to write: names that end with the number of one, or a link's."""
    for path in folder.glob(pattern):
        number = path.suffix[1:]
        if number == "link" or (number.isdecimal() and not _lives(int(number))):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether there is another process of a number."""
    if process == os.getpid():
        return False  # an earlier one had our number; what we write ourselves is not there yet
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is someone else's
    return True
