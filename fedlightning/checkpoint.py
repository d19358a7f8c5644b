"""What a run is between two rounds, and how it is kept on disk."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.memory import HOST_BYTES, ClientMemory, read_dump
from fedlightning.state import State

_FORMAT = 2


@dataclass(frozen=True)
class RoundState:
    """Everything that a run is between two rounds; `FederatedTrainer.fit` takes one and returns one.

    Attributes:
        round: finished rounds.
        server: what the server remembers; `server.x` is the global model [P].
        memory: what the clients remember.
        buffers: the model's buffers, flat [Q] (float64); Q is 0 without running statistics.
    """

    round: int
    server: State
    memory: ClientMemory = field(default_factory=ClientMemory)
    buffers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))


def save_checkpoint(path: Path, state: RoundState, identity: Mapping[str, Any], callbacks: Mapping[str, Any]) -> None:
    """Write a checkpoint beside `path`, flush it, and rename it; a crash leaves the old file or the new one, whole.

    Args:
        path: where to.
        state: the run.
        identity: what must be the same to go on: method, hyperparameters, layout, seed, partition. Plain JSON.
        callbacks: what the callbacks remember, by `state_key`. Plain JSON.
    """
    meta = {
        "format": _FORMAT,
        "round": state.round,
        "identity": dict(identity),
        "callbacks": dict(callbacks),
        "versions": _versions(),
    }
    clients, memory = state.memory.dump()
    content = {
        "meta": json.dumps(meta),
        "server": {name: tensor.cpu() for name, tensor in state.server.items()},
        "clients": clients,
        "memory": memory,
        "buffers": state.buffers.cpu(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("fedlightning", "torch", "lightning")}


def load_checkpoint(path: Path, memory: ClientMemory | None = None) -> tuple[RoundState, dict[str, Any]]:
    """Read a checkpoint: the run, and its `identity`, `callbacks` and `versions`.

    Args:
        path: which file.
        memory: an empty client memory that the rows are put into, e.g. one in memory-mapped files.

    Raises:
        ConfigurationError: the file is not there, damaged, or no checkpoint of ours.
    """
    if not path.is_file():
        raise ConfigurationError(f"`ckpt_path` must name a checkpoint, but there is no file {path}.")
    try:
        # What would not fit into the host's memory is read from the file as it is needed; its checksums are not looked at.
        large = path.stat().st_size > HOST_BYTES
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=large)
        meta: dict[str, Any] = json.loads(content["meta"])
        server, buffers = State(**content["server"]).apply(torch.clone), content["buffers"].clone()
        rows = read_dump(content["clients"], content["memory"])
    except (RuntimeError, ValueError, TypeError, LookupError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ConfigurationError(
            f"`ckpt_path` must name a whole checkpoint of fedlightning, but {path} cannot be read "
            f"({type(error).__name__}: {str(error)[:150]}); use another, e.g. one named `round=…`."
        ) from error
    return RoundState(meta["round"], server, (memory or ClientMemory()).updated(rows), buffers), meta


def check_identity(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to the run that goes on from it.

    Raises:
        ConfigurationError: it does not; both sides are named.
    """
    current = json.loads(json.dumps(current))  # tuples are lists on disk
    for name in sorted(set(saved) | set(current)):
        if saved.get(name) != current.get(name):
            raise ConfigurationError(
                f"A run goes on only as it began, but `{name}` is {saved.get(name)!r} in {path} and "
                f"{current.get(name)!r} now; use the same, or start a new run."
            )
