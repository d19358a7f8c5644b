"""What a run is between two rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.server.client_memory import ClientMemory
from fedlightning.state import State


@dataclass(frozen=True)
class RoundState:
    """Everything that a run is between two rounds; `FederatedTrainer.fit` takes one and returns one.

    Attributes:
        round: finished rounds.
        server: what the server remembers; `server.x` is the global model [P].
        memory: what the clients remember.
        buffers: the model's buffers, flat [Q] (float64); Q is 0 without running statistics.
        evaluated: the model that is evaluated [P], where the method evaluates another than `server.x`; else None.
        identity: whose state it is: method, layout, partition and the like, as plain JSON; empty if nobody says.
    """

    round: int
    server: State
    memory: ClientMemory = field(default_factory=ClientMemory)
    buffers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    evaluated: Tensor | None = None
    identity: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> Tensor:
        """The trained model [P]: the one that is evaluated. `task.with_state(state)` is the task that it belongs to."""
        return self.server.x if self.evaluated is None else self.evaluated


def check_model(state: RoundState, model: Mapping[str, Any], owner: str) -> None:
    """Check that a state's parameters and buffers are those of a model, as `identify_model` describes it.

    Raises:
        ConfigurationError: they are not; `owner`, which has the model, and both sides are named.
    """
    x, found = state.server.x, difference(state.identity, model, model) if state.identity else None
    if found:
        name, there, here = found
        raise ConfigurationError(
            f"A state must be one of the model that takes it up, but `{name}` is {there} in the state and {here} in the model "
            f"of {owner}; make the same model that was trained, with the same parts frozen."
        )
    size, entries = (sum(math.prod(shape) for _, shape in model[name]) for name in ("layout", "buffers"))
    if (str(x.dtype), list(x.shape), list(state.buffers.shape)) != (model["dtype"], [size], [entries]):
        raise ConfigurationError(
            f"A state must be one of the model that takes it up, but holds {list(x.shape)} parameters of {x.dtype} and "
            f"{list(state.buffers.shape)} entries of buffers, and the model of {owner} has [{size}] of {model['dtype']} and "
            f"[{entries}]; it belongs to another task."
        )


def difference(
    saved: Mapping[str, Any], current: Mapping[str, Any], names: Iterable[str]
) -> tuple[str, str, str] | None:
    """The first name whose values differ, and both; of lists and dictionaries the first entry that differs."""
    current = json.loads(json.dumps(dict(current)))  # tuples are lists on disk
    saved = json.loads(json.dumps(dict(saved)))
    for name in names:
        there, here = saved.get(name), current.get(name)
        if there == here:
            continue
        if isinstance(there, list) and isinstance(here, list):
            unequal = (k for k, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1])
            k = next(unequal, min(len(there), len(here)))
            shown = [repr(values[k]) if k < len(values) else "shorter" for values in (there, here)]
            return name, f"{shown[0]} (entry {k})", shown[1]
        if isinstance(there, dict) and isinstance(here, dict):
            key = next(key for key in [*here, *there] if there.get(key) != here.get(key))
            return key, repr(there.get(key)), repr(here.get(key))
        return name, repr(there), repr(here)
    return None
