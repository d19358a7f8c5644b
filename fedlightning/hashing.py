"""Hashes of what tensors hold, by which a run knows its data and its frozen parameters again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

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
