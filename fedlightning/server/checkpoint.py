"""How a run is kept on disk: written whole or not at all, read whole or refused."""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from fedlightning._sealed import check_sealed, save_sealed
from fedlightning.errors import ConfigurationError
from fedlightning.server.client_memory import HOST_BYTES, ClientMemory, read_dump
from fedlightning.server.round_state import RoundState, difference
from fedlightning.state import State

_FORMAT = 4


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
    if found := difference(saved, current, dict.fromkeys([*current, *saved])):
        name, there, here = found
        raise ConfigurationError(
            f"A run goes on only as it began, but `{name}` is {there} in {path} and {here} now; use the same, or start a new "
            "run."
        )
