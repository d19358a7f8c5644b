"""How many examples are evaluated at once: as many as have room, by what an example takes and not by what the machine has.

Numbers change by rounding with how many are evaluated at once. So what an example takes is measured on a CPU whatever the
slots are, in bytes that follow from shapes alone, and the number is one of a few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 1000
"""Examples that are evaluated at once where they are small."""

ROOM = 256 * 2**20
"""Bytes that a slot may take for them."""


def examples_at_once(evaluate: Callable[[int], object]) -> int:
    """1000, 500, 250, 125, … examples: the most that a slot has room for.

    Args:
        evaluate: evaluates two examples, or three; on a CPU, and gives back all that is kept of them.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            two, three = (memory(evaluate, count) for count in (2, 3))  # one alone takes other operations
    except Exception:  # noqa: BLE001 - a real error comes again in the evaluation, with all that led to it
        return MOST
    each = max(map(int.__sub__, three, two)) if len(two) == len(three) else max(three)
    size = MOST
    while size > 1 and size * each > ROOM:
        size //= 2
    return size


def memory(evaluate: Callable[[int], object], count: int) -> list[int]:
    """The bytes in use after each operation."""
    live = _Live()
    with live:
        kept = evaluate(count)
    del kept
    return live.after


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, those that were there before as soon as something looks at them.

    They are told apart by how they grow with the examples: weights, masks and tables do not.

    Attributes:
        after: bytes after each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.after: list[int] = []
        self._bytes: dict[int, int] = {}
        self._all = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and look at what it gives."""
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.after.append(self._all + _inside(func, args))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self._bytes:
            self._bytes[place] = storage.nbytes()
            self._all += storage.nbytes()
            weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self._all -= self._bytes.pop(place)


_ATTENTION = {"aten::_transformer_encoder_layer_fwd": 2, "aten::_native_multi_head_attention": 4}
"""Layers that are one operation in evaluation, and where among their arguments the number of heads is."""


def _inside(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that an operation takes for itself: of attention in one piece the scores, twice, and what it projects."""
    name = func._schema.name
    if name not in _ATTENTION:
        return 0
    examples, length, width = args[0].shape
    return int(2 * examples * length * (args[_ATTENTION[name]] * length + 2 * width) * args[0].element_size())
