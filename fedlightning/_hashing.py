"""Hashes and descriptions of what a run is made of, by which a resumed run knows it again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_CHUNK = 16 * 2**20
"""Bytes that are hashed at once. The hash depends on this number, and not on how many threads there are."""


def digest(tensors: Iterable[Tensor]) -> str:
    """A short hash of tensors: their dtypes, shapes and all their bytes, by as many threads as there are cores.

    A core takes a gigabyte in a second. Nothing is copied but what is not contiguous or not on the host.
    """
    content, pieces = hashlib.blake2b(digest_size=8), list[memoryview]()
    for tensor in tensors:
        content.update(f"{tensor.dtype}{list(tensor.shape)};".encode())
        plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        pieces += [plain[start : start + _CHUNK] for start in range(0, len(plain), _CHUNK)]
    if sum(map(len, pieces)) <= _CHUNK:  # starting threads would take longer
        hashes = [_hash(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            hashes = list(threads.map(_hash, pieces))
    for each in hashes:
        content.update(each)
    return content.hexdigest()


def _hash(piece: memoryview) -> bytes:
    return hashlib.blake2b(piece, digest_size=32).digest()


def digest_text(text: str) -> str:
    """A short hash of a text, of which the addresses of objects are left out."""
    return hashlib.blake2b(_ADDRESS.sub("", text).encode(), digest_size=8).hexdigest()


def described(value: Any) -> str:
    """An object in words that are the same in another process: its class and fields, tensors by their hash.

    A `repr` tells the address of an object that has none of its own, and leaves out most of a large tensor.
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} {digest([value])}"
    if isinstance(value, np.ndarray) and value.dtype.hasobject is False:
        return f"{value.dtype}{list(value.shape)} {hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{described(key)}: {described(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(described, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, FunctionType):
        return f"{value.__qualname__} {hashlib.blake2b(value.__code__.co_code, digest_size=8).hexdigest()}"
    if _has_fields(value):
        fields = (f"{name}={described(each)}" for name, each in vars(value).items() if not name.startswith("_"))
        return f"{type(value).__qualname__}({', '.join(fields)})"
    return _ADDRESS.sub("", repr(value))


def _has_fields(value: Any) -> bool:
    """Whether an object is told by its fields: a dataclass, or one whose class gives no `repr`."""
    cls: Any = type(value)
    return hasattr(value, "__dict__") and (hasattr(cls, "__dataclass_fields__") or cls.__repr__ is object.__repr__)
