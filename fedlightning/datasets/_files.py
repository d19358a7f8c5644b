"""Files that a data set needs: found and checked, and what is made of them, kept."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fedlightning._atomic import written
from fedlightning.errors import ConfigurationError

T = TypeVar("T")

# What reading a file of any content may raise.
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)


def require_file(
    path: Path,
    *,
    what: str,
    source: str,
    sizes: tuple[int, ...] | None = None,
    sha256: str | None = None,
    md5: str | None = None,
) -> Path:
    """Check that a file is there and whole, and return its path.

    Args:
        path: where it must lie.
        what: what it is, e.g. "The training images of MNIST".
        source: where it comes from, to be read after "it comes from", e.g. "yann.lecun.com".
        sizes: the sizes that it may have, in bytes; None for any but 0.
        sha256: what its SHA-256 must be, in hexadecimal digits; None for any.
        md5: what its MD5 must be; None for any.

    Raises:
        ConfigurationError: it is absent or empty, or its size or its hash is another.
    """
    remedy = f"it comes from {source}; put it there, or name another data folder (`root`, or `--data-dir`)"
    if not path.is_file():
        raise ConfigurationError(f"{what} must lie in {path.absolute()}, but there is no such file; {remedy}.")
    size = path.stat().st_size
    if size == 0 or (sizes is not None and size not in sizes):
        wanted = " or ".join(f"{wanted:,}" for wanted in sizes) if sizes is not None else "more than 0"
        state = "cut short" if sizes is None or size < min(sizes) else "another file"
        raise ConfigurationError(
            f"{what} must have {wanted} bytes, but {path.absolute()} has {size:,}: it is {state}; {remedy}."
        )
    for name, hash_wanted in (("sha256", sha256), ("md5", md5)):
        found = _hash(path, name) if hash_wanted is not None else None
        if hash_wanted is not None and found != hash_wanted.lower():
            raise ConfigurationError(
                f"{what} must have the {name} {hash_wanted}, but {path.absolute()} has {found}: it is damaged or of "
                f"another version; {remedy}."
            )
    return path


def _hash(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, by name; without hidden ones, such as the `._…` that macOS leaves."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def stamp(paths: Iterable[Path]) -> str:
    """A short hash of the files' names, sizes and times of change, for the key of `prepared`."""
    content = hashlib.blake2b(digest_size=8)
    for path in sorted(paths):
        status = path.stat()
        content.update(f"{path.name}/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return content.hexdigest()


class Progress(Protocol):
    """What `prepared` hands to the function that prepares: a way to show how far it is."""

    def track(self, items: Collection[T], description: str) -> Iterator[T]:
        """The items, one after another, under a bar with this description."""


class _Bars:
    """A bar in a terminal; elsewhere one line at its start. Both on the standard error."""

    def track(self, items: Collection[T], description: str) -> Iterator[T]:
        console = Console(stderr=True)
        if console.is_terminal:
            yield from track(items, description, console=console)
            return
        console.print(f"{description}: {len(items):,}, once", markup=False, highlight=False, soft_wrap=True)
        yield from items


def prepared(
    folder: Path, name: str, key: Mapping[str, object], build: Callable[[Progress], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `build` makes of raw files, made once and kept in `<folder>/prepared/<name>-<hash of key>.pt`.

    The file is written beside and renamed, so it is whole or absent, and several runs may begin at once. A file that is
    damaged is made again, with a warning. A folder that cannot be written gives a warning, too: then nothing is kept.

    Args:
        folder: the data set's folder.
        name: what is prepared, e.g. "femnist"; it begins the file's name.
        key: all that the tensors depend on, as JSON: the options, a number for the version of the code, and the
            `stamp` of the raw files.
        build: makes the tensors; it is given a `Progress`. What it raises comes through.

    Returns:
        The tensors by name, on the CPU.
    """
    written = json.dumps(dict(key), sort_keys=True)
    path = folder / "prepared" / f"{name}-{hashlib.blake2b(written.encode(), digest_size=8).hexdigest()}.pt"
    if path.is_file():
        try:
            return _read(path)
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"{path} is damaged ({reason}); it is made again.", stacklevel=2)
    tensors = build(_Bars())
    try:
        _write(path, tensors)
        rank_zero_info(f"What was prepared is kept in {path}, {path.stat().st_size / 2**20:,.1f} MiB.")
    except (OSError, RuntimeError) as error:  # torch wraps a full disk
        warnings.warn(f"{path} cannot be written ({error}), so {name} is prepared in every run.", stacklevel=2)
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    tensors: dict[str, Tensor] = content["tensors"]
    if {name: _checksum(tensor) for name, tensor in tensors.items()} != content["checksums"]:
        raise ValueError("its checksums differ")
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    content = {"tensors": tensors, "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()}}
    with written(path) as file:
        torch.save(content, file)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
