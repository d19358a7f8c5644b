"""`State`: immutable named tensors, the only thing that methods, clients and servers exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree

from fedlightning.errors import MethodError


class StateError(MethodError):
    """A `State` was misused; `hooks.diagnose` adds by whom."""


class State(Mapping[str, Tensor]):
    """Named tensors that cannot be changed, only replaced: `state.replace(w=state.w - client.lr * g)`.

    Read an entry as an attribute (`state.w`) or as an item (`state["w"]`). A `State` is a pytree, so it passes through
    `torch.func.vmap` and tracing; a cohort of clients is one `State` whose entries have a leading dimension [C].

    Args:
        **tensors: the entries. Names of `State`'s own attributes are refused.

    Raises:
        MethodError: an entry is no tensor, has a name of `State`'s own, or is assigned to.
        AttributeError, KeyError: an entry that does not exist is read.
    """

    __slots__ = ("_tensors",)
    _tensors: dict[str, Tensor]

    def __init__(self, **tensors: Tensor) -> None:
        _check(tensors)
        object.__setattr__(self, "_tensors", tensors)

    def replace(self, **tensors: Tensor) -> State:
        """A new `State` with these entries added or exchanged; the others are shared, not copied."""
        _check(tensors)
        return _rebuild({**self._tensors, **tensors})

    def apply(self, function: Callable[[Tensor], Tensor]) -> State:
        """A new `State` with `function` applied to each entry."""
        return _rebuild({name: function(tensor) for name, tensor in self._tensors.items()})

    def select(self, *names: str) -> State:
        """A new `State` of these entries alone."""
        return State(**{name: self[name] for name in names})

    @property
    def nbytes(self) -> int:
        """Bytes of all entries together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            held = ", ".join(self._tensors) or "nothing"
            raise AttributeError(f"This State has no entry {name!r}; it holds {held}.", name=name, obj=self) from None

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise StateError(
            f"A State cannot be changed, but {name!r} was assigned to; return `state.replace({name}=…)` instead."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._tensors,)

    def __repr__(self) -> str:
        entries = (f"{name}: {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in self.items())
        return f"State({', '.join(entries)})"


def stack(states: list[State]) -> State:
    """States of single clients as one `State` of a cohort, entries [C, …]."""
    return State(**{name: torch.stack([state[name] for state in states]) for name in states[0]})


_TAKEN = frozenset(dir(State))


def _check(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name in _TAKEN:
            raise StateError(f"A State entry must not be called {name!r}: it is an attribute of State. Rename it.")
        if not isinstance(tensor, Tensor):
            raise StateError(
                f"A State holds tensors, but {name!r} is {tensor!r:.80}, a {type(tensor).__name__}; make it one, e.g. by "
                "`client.x.new_tensor(…)`."
            )


def _rebuild(tensors: dict[str, Tensor]) -> State:
    """A `State` of entries whose names were checked before."""
    state = State.__new__(State)
    object.__setattr__(state, "_tensors", tensors)
    return state


_pytree.register_pytree_node(
    State,
    lambda state: (list(state.values()), tuple(state)),
    lambda tensors, names: _rebuild(dict(zip(names, tensors, strict=True))),
    serialized_type_name="fedlightning.State",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)
