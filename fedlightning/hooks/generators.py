"""The random generators of which the process has but one: torch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedlightning.errors import MethodError


class Generators:
    """How they stood when this was made.

    Args:
        device: of which torch has another generator, besides that of the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._before = self._read()

    def moved(self) -> bool:
        """Whether one of them has drawn since."""
        (torch_before, numpy_before, *before), (torch_now, numpy_now, *now) = self._before, self._read()
        same = all(map(torch.equal, torch_before, torch_now)) and (numpy_before[1] == numpy_now[1]).all()
        return not (same and numpy_before[2:] == numpy_now[2:] and before == now)

    def restore(self) -> None:
        """Put them back."""
        of_torch, of_numpy, of_python = self._before
        torch.set_rng_state(of_torch[0])
        if self._device is not None:
            torch.cuda.set_rng_state(of_torch[1], self._device)
        np.random.set_state(of_numpy)
        random.setstate(of_python)

    def _read(self) -> tuple[list[torch.Tensor], Any, Any]:
        of_torch = [torch.get_rng_state()]
        if self._device is not None:
            of_torch.append(torch.cuda.get_rng_state(self._device))
        return of_torch, np.random.get_state(), random.getstate()


@contextmanager
def no_draws(hook: str, device: torch.device, models: bool = False) -> Iterator[None]:
    """Check that a hook, named for the message, draws no global random numbers; where it does, they are put back.

    Args:
        hook: its name.
        device: where it computes.
        models: whether a model may run inside, whose own random numbers are left alone; else operations that draw are found
            even where the generator is put back afterwards.

    Raises:
        MethodError: it does.
    """
    generators = Generators(device)
    try:
        with nullcontext() if models else _NoDraws(hook):
            yield
    finally:
        moved = generators.moved()
        if moved:
            generators.restore()
    if moved:
        raise _drew(hook)


class _NoDraws(TorchDispatchMode):
    """Raises where an operation draws from torch's own generator."""

    def __init__(self, hook: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hook = hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, or refuse it."""
        if (kwargs or {}).get("generator") is None and draws(func, args, kwargs or {}):
            raise _drew(self._hook)
        return func(*args, **(kwargs or {}))


def _drew(hook: str) -> MethodError:
    return MethodError(
        f"{hook} drew global random numbers, which depend on what ran before; use `keyed_uniform(client.key, shape)` of "
        "fedlightning.randomness, which is the client's own, or `stream(seed, purpose, round)` on the server."
    )


class NoGlobalNumbers(TorchDispatchMode):
    """Raises where random numbers are drawn of which the process has but one sequence: a graph would not repeat them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, or refuse it."""
        if draws(func, args, kwargs or {}):
            raise RuntimeError(f"{func} is a random operation")
        return func(*args, **(kwargs or {}))


def draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers; attention does so only for its own dropout."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            rate: float = kwargs.get("dropout_p", args[i] if i < len(args) else argument.default_value)
            return rate > 0
    return True
