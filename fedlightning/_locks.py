"""One run at a time in a folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from fedlightning.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[
    str, tuple[int, int, int]
] = {}  # by the folder's real path: a descriptor, the thread whose it is, how often
_guard = threading.Lock()
_without: set[str] = set()  # folders whose file system has no locks, told once


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While this is open, no other run writes to a folder; the thread that has it locked may lock it again.

    The lock is the kernel's, `flock`, so a process that is killed leaves none. It is on the folder itself, in which nothing is
    left; where the file system locks files alone (NFS), on `.lock` in it. One that has no locks is told by a warning, once.

    Raises:
        ConfigurationError: another run has it locked.
    """
    path, me = os.path.realpath(folder), threading.get_ident()
    with _guard:
        descriptor, owner, times = _held.get(path, (-1, me, 0))
        if owner != me:
            raise _in_use(folder)
        _held[path] = (descriptor if times else _acquire(folder), me, times + 1)
    try:
        yield
    finally:
        with _guard:
            descriptor, owner, times = _held.pop(path)
            if times > 1:
                _held[path] = (descriptor, owner, times - 1)
            elif descriptor >= 0:
                os.close(descriptor)


def _acquire(folder: Path) -> int:
    """The descriptor of what is locked; −1 where there are no locks."""
    try:
        return _lock(folder, folder, os.O_RDONLY)
    except OSError:
        pass
    try:
        return _lock(folder, folder / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if str(folder) not in _without:
            _without.add(str(folder))
            rank_zero_warn(
                f"A run's folder is locked while the run writes to it, but the file system of {folder} has no locks "
                f"({error.strerror or error}); see to it yourself that no other run writes there."
            )
        return -1


def _lock(folder: Path, what: Path, how: int) -> int:
    descriptor = os.open(what, how, 0o666)
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _in_use(folder) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _in_use(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"A folder must be one run's at a time, but another run writes to {folder}; wait until it has ended, or choose another "
        "name."
    )
