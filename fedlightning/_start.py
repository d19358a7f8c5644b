"""Where a run begins: at a checkpoint, at a state that a `fit` returned, or at the task as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlightning._identity import check_state
from fedlightning.callbacks.base import Callback
from fedlightning.errors import ConfigurationError
from fedlightning.layout import Layout, flatten_buffers, identify_model, persistent_buffers
from fedlightning.method import FedMethod
from fedlightning.server.client_memory import ClientMemory
from fedlightning.server.round_state import RoundState, check_model
from fedlightning.server.server import Server
from fedlightning.task import FederatedTask


def checkpoint_named(wish: str | Path | None, folder: Path, callbacks: Sequence[Callback]) -> Path | None:
    """The checkpoint that `ckpt_path` asks for; None where it asks for none.

    Args:
        wish: a path; or "last" or "best", a checkpoint of the run's own.
        folder: of the run.
        callbacks: of the run, one of which may know the best checkpoint.

    Raises:
        ConfigurationError: the run has no such checkpoint.
    """
    if wish not in ("last", "best"):
        return None if wish is None else Path(wish)
    best = [found for callback in callbacks if (found := getattr(callback, "best_model_path", ""))]
    path = Path(best[0]) if wish == "best" and best else folder / "checkpoints" / f"{wish}.ckpt"
    if not path.is_file():
        raise ConfigurationError(
            f'`ckpt_path="{wish}"` must be that of a run\'s own folder, but there is no file {path}; name the folder by '
            '`logger=run_loggers("logs", "name")` of fedlightning.loggers, or give the checkpoint\'s path.'
        )
    return path


def first_state(
    server: Server,
    task: FederatedTask,
    method: FedMethod,
    saved: RoundState | None,
    given: RoundState | None,
    memory: ClientMemory,
    identity: Mapping[str, Any],
) -> RoundState:
    """The state that a run begins at.

    Args:
        server: of the run.
        task: the start model.
        method: the method.
        saved: a checkpoint's state, of this very run.
        given: the state that `fit` was given, whose run may have been another in part.
        memory: an empty client memory.
        identity: of the run.

    Raises:
        ConfigurationError: the state is another model's, or the run cannot go on from it.
    """
    state, x = saved or given, Layout.of(task).read(task)
    if state is None:
        return server.begin(x, flatten_buffers(persistent_buffers(task).values(), x.device), memory)
    check_model(state, identify_model(task), f"`{type(task).__name__}`")
    if saved is None:
        begun = server.begin(x, state.buffers, ClientMemory())
        check_state(state, identity, begun.server, method.configure_client(x), server.num_clients)
    return server.take_up(state)
