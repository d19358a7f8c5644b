"""What a run is between two rounds, and how it is kept on disk."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlightning._sealed import check_sealed, save_sealed
from fedlightning.errors import ConfigurationError
from fedlightning.server.client_memory import HOST_BYTES, ClientMemory, read_dump
from fedlightning.state import State

_FORMAT = 4


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


def save_checkpoint(
    path: Path,
    state: RoundState,
    identity: Mapping[str, Any],
    callbacks: Mapping[str, Any],
    row: Mapping[str, float] | None = None,
    execution: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint beside `path`, flush it, and rename it; a crash leaves the old file or the new one, whole.

    Args:
        path: where to.
        state: the run.
        identity: what must be the same to go on: method, hyperparameters, layout, seed, partition. Plain JSON.
        callbacks: what the callbacks remember, by `state_key`. Plain JSON.
        row: what was logged for the round.
        execution: how local steps are taken, which a run that goes on keeps. Plain JSON.

    Raises:
        SaveError: the disk is full, or the folder cannot be written.
    """
    clients, memory = state.memory.dump()
    content = {
        "server": {name: tensor.cpu() for name, tensor in state.server.items()},
        "clients": clients,
        "memory": memory,
        "buffers": state.buffers.cpu(),
    }
    if state.evaluated is not None:
        content["evaluated"] = state.evaluated.cpu()
    meta = {
        "format": _FORMAT,
        "round": state.round,
        "identity": dict(identity),
        "callbacks": dict(callbacks),
        "row": dict(row or {}),
        "execution": dict(execution or {}),
        "versions": _versions(),
        "tensors": _inventory(content),
    }
    save_sealed(path, {"meta": json.dumps(meta), **content})


def _inventory(content: Mapping[str, Any]) -> list[list[Any]]:
    """What a checkpoint holds: name, dtype and shape of each entry; clients' rows are counted together."""
    found = [[f"server.{name}", tensor] for name, tensor in content["server"].items()]
    found += [[name, content[name]] for name in ("clients", "buffers", "evaluated") if name in content]
    found = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in found]
    for name, parts in content["memory"]["entries"].items():
        kinds = {(str(part.dtype), part.shape[1:]) for part in parts}
        found += [[f"memory.{name}", str(dtype), list(shape)] for dtype, shape in sorted(kinds)]
    return sorted(found)


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("fedlightning", "torch", "lightning")}


def is_checkpoint(path: str | PathLike[str]) -> bool:
    """Whether a file is to be read as a checkpoint of a federated run: all but those of Lightning, and addresses of others."""
    if "://" in str(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return not any(b"pytorch-lightning_version" in archive.read(name) for name in pickled)
    except (OSError, zipfile.BadZipFile):
        return True


def load_checkpoint(
    path: str | PathLike[str], memory: ClientMemory | None = None, num_clients: int | None = None
) -> tuple[RoundState, dict[str, Any]]:
    """Read a checkpoint: the run, and its `identity`, `callbacks`, `execution` and `versions`.

    Args:
        path: which file.
        memory: an empty client memory that the rows are put into, e.g. one in memory-mapped files.
        num_clients: N of the run that takes it up; None for any.

    Raises:
        ConfigurationError: the file is not there, damaged, or no checkpoint of ours; or it holds what cannot be.
    """
    path, meta = Path(path), dict[str, Any]()
    if not path.is_file():
        raise ConfigurationError(f"`ckpt_path` must name a checkpoint, but there is no file {path}.")
    try:
        check_sealed(path)
        # What would not fit into the host's memory is read from the file as it is needed.
        large = path.stat().st_size > HOST_BYTES
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=large)
        meta = json.loads(content["meta"])
        fault = _fault(meta, content)
        rows = {} if fault else read_dump(content["clients"], content["memory"])
    except _UNREADABLE as error:
        fault = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
    if fault := fault or _unknown_client(rows, num_clients):
        raise ConfigurationError(
            f"`ckpt_path` must name a whole checkpoint of fedlightning, but {path} {fault}; use another, e.g. one named "
            "`round=…`."
        )
    memory = (memory or ClientMemory()).updated(rows)
    server, buffers = State(**content["server"]).apply(torch.clone), content["buffers"].clone()
    evaluated = content["evaluated"].clone() if "evaluated" in content else None
    return RoundState(meta["round"], server, memory, buffers, evaluated, meta["identity"]), meta


_UNREADABLE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, pickle.UnpicklingError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _fault(meta: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """What is wrong with a checkpoint, as what it does; nothing where it is as it was written."""
    if meta.get("format") != _FORMAT:
        return f"is of `format` {meta.get('format')!r} in place of {_FORMAT}: another version of fedlightning wrote it"
    round = meta.get("round")
    if type(round) is not int or round < 0:
        return f"has {round!r} as `round`, which is no number of finished rounds"
    for name in ("identity", "callbacks", "row", "execution"):
        if not isinstance(meta.get(name), dict):
            return f"has no dictionary as `{name}`"
    if missing := sorted({"server", "clients", "memory", "buffers"} - set(content)):
        return f"lacks `{missing[0]}`"
    written, found = ({name: kind for name, *kind in entries} for entries in (meta["tensors"], _inventory(content)))
    for name in sorted({*written, *found}):
        if written.get(name) != found.get(name):
            here, there = (" ".join(map(str, kinds.get(name, ["nothing"]))) for kinds in (found, written))
            return f"has {here} as `{name}`, where {there} was written"
    return ""


def _unknown_client(rows: Iterable[int], num_clients: int | None) -> str:
    """What a checkpoint does that has rows of clients that there are not in a run of N; nothing where it has none."""
    unknown = [client for client in rows if client < 0 or (num_clients is not None and client >= num_clients)]
    return f"has a row of client {max(unknown)}, where there are {num_clients} clients now" if unknown else ""


def check_identity(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to the run that goes on from it.

    Raises:
        ConfigurationError: it does not; both sides are named.
    """
    if found := _difference(saved, current, dict.fromkeys([*current, *saved])):
        name, there, here = found
        raise ConfigurationError(
            f"A run goes on only as it began, but `{name}` is {there} in {path} and {here} now; use the same, or start a new "
            "run."
        )


def check_model(state: RoundState, model: Mapping[str, Any], owner: str) -> None:
    """Check that a state's parameters and buffers are those of a model, as `identify_model` describes it.

    Raises:
        ConfigurationError: they are not; `owner`, which has the model, and both sides are named.
    """
    x, found = state.server.x, _difference(state.identity, model, model) if state.identity else None
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


def _difference(
    saved: Mapping[str, Any], current: Mapping[str, Any], names: Iterable[str]
) -> tuple[str, str, str] | None:
    """The first name whose values differ, and both, shortly; lists are told by their first entry that differs."""
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
        return name, repr(there), repr(here)
    return None
