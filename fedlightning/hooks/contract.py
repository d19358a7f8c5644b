"""What each hook of a method must give back, and how the method is told where one does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedlightning.errors import MethodError
from fedlightning.hooks.diagnose import where
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, visible
from fedlightning.state import State

_PASSES = ("none", "local", "mean")


class Contract:
    """Checks what hooks give back; each check returns it, or raises a `MethodError` that names hook, line and remedy.

    Args:
        method: whose hooks they are.
        layout: of the model.
    """

    def __init__(self, method: FedMethod, layout: Layout) -> None:
        self.method, self._size, self._dtype = method, layout.size, layout.dtype

    # -- numbers and words ------------------------------------------------------------------------------------------
    def lr(self, value: Any, round: int) -> float:
        """A learning rate."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            self._wrong("client_lr", "a number in [0, inf)", value, f"look at what it makes of round {round}")
        return float(value)

    def steps(self, value: Any, round: int) -> int | None:
        """A number of local steps, or None."""
        if value is None:
            return None
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            self._wrong(
                "local_steps", "a whole number from 1 on, or None", value, f"look at what it makes of round {round}"
            )
        return int(value)

    def gradient_pass(self, value: Any) -> str:
        """A word."""
        if value not in _PASSES:
            self._wrong("gradient_pass", " or ".join(map(repr, _PASSES)), value, "return one of them")
        word: str = value
        return word

    # -- vectors and states -----------------------------------------------------------------------------------------
    def vector(self, hook: str, value: Any, remedy: str) -> Tensor:
        """A vector like w."""
        if not self.is_vector(value):
            self._wrong(hook, f"a vector of {shown_kind(self._dtype, (self._size,))} like w", value, remedy)
        vector: Tensor = value
        return vector

    def state(self, hook: str, value: Any, entry: str = "") -> State:
        """A State, with an entry like w if one is named."""
        named = f" with `{entry}`" if entry else ""
        if not isinstance(value, State) or (entry and entry not in value):
            remedy = (
                "end it with a `return`" if value is None else "what `super()` gives has it; change that by `replace`"
            )
            self._wrong(hook, f"a State{named}", value, remedy)
        if entry and not self.is_vector(value[entry]):
            self._wrong(
                hook, f"`{entry}` as {shown_kind(self._dtype, (self._size,))}", value[entry], "keep its shape and dtype"
            )
        return value

    def server(self, hook: str, value: Any, before: State | None = None) -> State:
        """What the server remembers: `x`, and every entry that it remembered before."""
        after = self.state(hook, value, "x")
        if before is not None:
            if not set(before) <= set(after):
                remedy = "return `server.replace(…)`, which keeps the entries that it does not name"
                self._wrong(hook, f"a State with {', '.join(before)}", after, remedy)
            self._same_kinds(hook, visible(self.method, after), visible(self.method, before), "configure_server")
            self._unchanged(hook, after, before)
        return after

    def _unchanged(self, hook: str, after: State, before: State) -> None:
        """Check the entries that every client has from the beginning."""
        for name in self.method.preshared:
            if name in before and after[name] is not before[name] and not torch.equal(after[name], before[name]):
                raise MethodError(
                    f"{where(self.method, hook)} must leave `{name}` as it is, since `preshared` says that every client has it "
                    "from the beginning, but changes it; name it in `downlink` instead."
                )

    def local(self, hook: str, value: Any, before: State | None = None) -> State:
        """A local state: `w`, and the entries with which it began."""
        after = self.state(hook, value, "w")
        return after if before is None else self._same_kinds(hook, after, before, "on_client_start")

    def remembered(self, hook: str, value: Any, new: State) -> State:
        """What a client remembers: the entries with which it began."""
        return self._same_kinds(hook, self.state(hook, value), new, "configure_client")

    def ended(self, value: Any, new: State) -> tuple[State, State]:
        """What a client uploads, and what it remembers."""
        hook = "on_client_end"
        if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, State) for each in value)):
            remedy = "return `State(delta=…), client.state`"
            self._wrong(hook, "two States, what is uploaded and what the client remembers", value, remedy)
        upload, state = value
        if not len(upload):
            self._wrong(hook, "an upload of one entry at least", upload, "return `State(delta=…), client.state`")
        for name, tensor in upload.items():
            if tensor.is_complex() or tensor.layout is not torch.strided:
                kind = f"{str(tensor.layout).removeprefix('torch.')} {shown(tensor)}"
                self._wrong(
                    hook, f"`{name}` as a dense tensor of real numbers", kind, "use `torch.view_as_real` or `to_dense`"
                )
        return upload, self.remembered(hook, state, new)

    def _same_kinds(self, hook: str, after: State, before: State, began: str) -> State:
        """Check that entries are those of before, of the same shapes and dtypes, since graphs are made for one kind alone."""
        if set(after) != set(before):
            remedy = f"`{began}` says which entries there are, and all of them go on"
            self._wrong(hook, f"a State with {', '.join(before) or 'nothing'}", after, remedy)
        for name, tensor in before.items():
            if (after[name].dtype, after[name].shape) != (tensor.dtype, tensor.shape):
                remedy = f"`{began}` set it so; make them the same, e.g. by `client.x.new_zeros(())` there"
                self._wrong(hook, f"`{name}` as {shown(tensor)}", after[name], remedy)
        return after

    def is_vector(self, value: Any) -> bool:
        """Whether a value is a vector like w."""
        return isinstance(value, Tensor) and (value.dtype, tuple(value.shape)) == (self._dtype, (self._size,))

    def _wrong(self, hook: str, must: str, value: Any, remedy: str) -> NoReturn:
        raise MethodError(f"{where(self.method, hook)} must return {must}, but gave {shown(value)}; {remedy}.")


def shown(value: Any) -> str:
    """What a hook gave, shortly."""
    if isinstance(value, Tensor):
        return shown_kind(value.dtype, tuple(value.shape))
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, Mapping) and not isinstance(value, State):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    return f"{value!r:.120}"


def shown_kind(dtype: Any, shape: tuple[int, ...]) -> str:
    """E.g. "float32[3]"."""
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
