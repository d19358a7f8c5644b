"""Files that are kept between runs: each is whole or made again, in a folder that nobody else may write to.

A file is written beside the others, sealed with a hash of what it holds, and then put in its place at once. So whoever looks
finds a whole file or none, however many make it at a time, and what a kill leaves behind is no file's. The seal is looked at
before a file is loaded: code that is damaged can end the process with a bus error, which nobody can catch.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

_SEAL = hashlib.sha256().digest_size
"""Bytes at the end of a file that are the hash of what comes before. Libraries and zip archives may have such an end."""

_BESIDE, _ABANDONED = ".making-", 3600.0
"""How the names of files begin that are being written, and the age in seconds from which nobody is writing them any more."""

_INSTEAD: dict[Path, Path] = {}
"""The folders that were passed over, and what this process has instead."""


def cache_folder() -> Path:
    """Where files are kept: `$FEDLIGHTNING_CACHE`, or fedlightning in the user's cache folder.

    A folder that cannot be written, or to which others may write, is passed over for a private one of this process, which is
    removed at its end: what lies there is loaded as code.
    """
    try:
        wished = _wished()
    except RuntimeError:  # this user has no home
        wished = Path("~/.cache/fedlightning/compiled")
        return _INSTEAD.get(wished) or _pass_over(wished, "cannot be found, since this user has no home")
    if wished not in _INSTEAD and (objection := _objection(wished)):
        _pass_over(wished, objection)
    return _INSTEAD.get(wished, wished)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The file of this name, made if it is not there or not as it was made.

    Args:
        name: tells it apart from others, and from what another version would make.
        make: is told where to write it, and may leave other files beside it.
    """
    folder = cache_folder()
    path = folder / name
    if _is_whole(path):
        return path
    if path.exists():
        rank_zero_info(f"{path} is damaged, so it is made again.")
    with tempfile.TemporaryDirectory(prefix="fedlightning-") as place:
        make(Path(place) / name)
        content = (Path(place) / name).read_bytes()
    try:
        return _put(folder, name, content)
    except OSError as error:
        return _put(_pass_over(folder, f"cannot be written ({error.strerror})"), name, content)


def _wished() -> Path:
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlightning"
    return Path(os.environ.get("FEDLIGHTNING_CACHE") or usual) / "compiled"


def _objection(folder: Path) -> str | None:
    """Why a folder is not used, if it is not; it is made if it is not there."""
    try:
        for place in (folder.parent, folder):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(place.stat()):
                return (
                    "is a folder that others may write to"
                    if place == folder
                    else f"lies in {place}, to which others may write"
                )
    except OSError as error:
        return f"cannot be made ({error.strerror})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def _is_ours(found: os.stat_result) -> bool:
    """Whether a folder or a file is this user's, and nobody else may write to it."""
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            ours, content = _is_ours(os.fstat(file.fileno())), file.read()
    except OSError:
        return False
    return ours and hashlib.sha256(content[:-_SEAL]).digest() == content[-_SEAL:]


def _put(folder: Path, name: str, content: bytes) -> Path:
    """Write a file and its seal, and put it in its place once it is whole."""
    for left in folder.glob(f"{_BESIDE}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    handle, beside = tempfile.mkstemp(prefix=_BESIDE, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
        return Path(beside).replace(folder / name)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _pass_over(folder: Path, why: str) -> Path:
    """Say so, once, and make a folder of this process's own."""
    rank_zero_info(
        f"{folder} {why}, so this run compiles for itself alone; let $FEDLIGHTNING_CACHE name a folder of your own to which "
        "nobody else may write."
    )
    _INSTEAD[folder] = private = Path(tempfile.mkdtemp(prefix="fedlightning-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private
