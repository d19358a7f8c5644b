"""Randomness with an address instead of a history.

Every random number of a run comes from `stream(seed, purpose, *where)` or from a key made the same way. Nothing depends
on what was drawn before, so a run gives the same bits for any number of slots, after a resume, and whether or not one
evaluates; a checkpoint needs no generator state.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from fedlightning.errors import ConfigurationError, MethodError, shown

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer: the step of SplitMix64
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685))  # its two shifts, each with the multiplier after it


def _hash(seed: int, purpose: str, where: tuple[int, ...], size: int) -> bytes:
    try:
        address = "/".join((f"{index(seed)}", purpose, *map(str, map(index, where))))
    except TypeError as error:
        raise ConfigurationError(
            f"A stream's address must be `seed`, a whole number, `purpose`, a word, and whole numbers, but is {shown(seed)}, "
            f"{shown(purpose)} and {shown(where)}."
        ) from error
    return hashlib.blake2b(address.encode(), digest_size=size).digest()


def _digest(seed: int, purpose: str, where: tuple[int, ...], size: int) -> int:
    return int.from_bytes(_hash(seed, purpose, where, size), "little")


def stream(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """The generator at an address, e.g. `stream(seed, "shuffle", round, client)`.

    The address is hashed (BLAKE2b) to the 128-bit key of a counter-based generator (Philox), so neighbouring seeds,
    rounds and clients give unrelated streams that never collide.

    Raises:
        ConfigurationError: a number is not whole, or `purpose` is no word.
    """
    if isinstance(seed, (bool, Tensor)):
        raise ConfigurationError(f"`seed` of `stream` must be a whole number, but is {shown(seed)}.")
    key: Any = _Key(_hash(seed, purpose, where, 16))  # NumPy's stubs know only its own `SeedSequence`
    return np.random.Generator(np.random.Philox(key))


class _Key(ISeedSequence):
    """A key as what NumPy asks for one: told `Philox(key=…)`, it would first ask the system for 128 bits and drop them."""

    def __init__(self, key: bytes) -> None:
        self._key = np.frombuffer(key, "<u8")

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        """The key, two words of 64 bits."""
        return self._key


class _Own(threading.local):
    """A thread's own generators, which are set anew: to make one takes three to five times as long."""

    def __init__(self) -> None:
        self.legacy = np.random.RandomState(0)
        self._bits = np.random.Philox(0)
        self._state: Any = self._bits.state  # that of no number drawn
        self._generator = np.random.Generator(self._bits)

    def at(self, key: bytes) -> np.random.Generator:
        """The generator at the begin of a key's stream, until it is asked for another."""
        self._state["state"]["key"] = np.frombuffer(key, "<u8")
        self._bits.state = self._state
        return self._generator


_OWN = _Own()


def permute(rows: NDArray[Any], seed: int, purpose: str, *where: int) -> None:
    """Permute each of the rows [R, n], in place, one after another by the `stream` at an address."""
    _OWN.at(_hash(seed, purpose, where, 16)).permuted(rows, axis=1, out=rows)


def legacy(seed: int) -> np.random.RandomState:
    """NumPy's legacy generator as `RandomState(seed)` makes it; the thread's own, until it asks for another."""
    _OWN.legacy.seed(seed)
    return _OWN.legacy


def torch_stream(seed: int, purpose: str, *where: int) -> torch.Generator:
    """The same as a `torch.Generator` on the CPU; use it for a handful of addresses, it has 32 bits of them."""
    return torch.Generator().manual_seed(_digest(seed, purpose, where, 7))


def keys(count: int, seed: int, purpose: str, *where: Sequence[int]) -> Tensor:
    """Keys [count, C] (int64) for `keyed_uniform`, one for each step of the clients at these C addresses."""
    base = np.array([_digest(seed, purpose, tuple(address), 8) - 2**63 for address in where])
    return torch.from_numpy(base + np.arange(1, count + 1)[:, np.newaxis] * _GOLDEN)


def keyed_uniform(key: Tensor, shape: Sequence[int], salt: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that are a pure function of `key`, for hooks and modules.

    Plain tensor arithmetic (SplitMix64), so the bits are the same one client at a time, under `vmap`, traced, and on
    every device.

    Args:
        key: one key [] (int64), as `keys` makes them.
        shape: the shape of the result.
        salt: tells several draws from the same key apart.

    Returns:
        float32 numbers of `shape`, multiples of 2⁻²⁴.

    Raises:
        MethodError: `key` is no key, or `shape` no shape.
    """
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim():
        raise MethodError(f"`key` of `keyed_uniform` must be a key [] (int64), e.g. `client.key`, but is {shown(key)}.")
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise MethodError(
            f"`shape` of `keyed_uniform` must be a tuple of whole numbers, at least 0, but is {shown(shape)}."
        )
    if not isinstance(salt, int) or isinstance(salt, bool):
        raise MethodError(f"`salt` of `keyed_uniform` must be a whole number, but is {shown(salt)}.")
    # The 0 is made of the key, or inductor takes the product below for an index, and finds it too large for one.
    count = torch.arange(1, math.prod(shape) + 1, device=key.device) + (key & 0)
    bits = _mix(_mix(key ^ _digest(salt, "salt", (), 7)) + count * _GOLDEN)
    return (_shift(bits, 40).to(torch.float32) * 2.0**-24).reshape(tuple(shape))


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    for shift, multiplier in _MIX:
        bits = (bits ^ _shift(bits, shift)) * multiplier
    return bits ^ _shift(bits, 31)
