"""What `FederatedTrainer` and its `fit` are given: arguments of the wrong kind, and those of Lightning's trainer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, nearest, shown
from fedlightning.method import FedMethod
from fedlightning.server.round_state import RoundState
from fedlightning.state import State
from fedlightning.task import FederatedTask

_ROUNDS = "a run is counted in rounds, `max_rounds`, and a client's work in `epochs` or `steps` of the data module"
_WHERE = 'where clients are trained is said by `strategy=SlotStrategy("cuda:0/0,cuda:1/0")`'
_EVALUATIONS = "evaluations are `evaluate_every` rounds apart"
_CALLBACKS = "`callbacks` names all that looks on; `callbacks=[]` is nothing"
_FOLDER = '`logger=run_loggers("folder")` of fedlightning.loggers names the folder'
_CLIPPING = "clipping is the method's, e.g. `FedAvg(clip_norm=10.0)`"
_TRIAL = "a short run is `max_rounds=2, clients_per_round=2`"
_REPEATS = "a run repeats to the same bits anyhow; leave it out"

LIGHTNING = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"), _ROUNDS),
    **dict.fromkeys(("accelerator", "devices", "gpus", "num_nodes", "use_distributed_sampler"), _WHERE),
    **dict.fromkeys(("check_val_every_n_epoch", "val_check_interval"), _EVALUATIONS),
    **dict.fromkeys(("enable_progress_bar", "enable_checkpointing", "enable_model_summary"), _CALLBACKS),
    "default_root_dir": _FOLDER,
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), _CLIPPING),
    **dict.fromkeys(("fast_dev_run", "limit_train_batches", "limit_val_batches", "overfit_batches"), _TRIAL),
    **dict.fromkeys(("deterministic", "benchmark", "inference_mode"), _REPEATS),
    "precision": '`strategy=SlotStrategy(precision="bf16-mixed")` has the precision',
    "accumulate_grad_batches": "`Batching(size)` of the data module has the size of a local step's batch",
    "log_every_n_steps": "each round is logged; leave it out",
}
"""Arguments of `lightning.Trainer`, with what there is here in their place."""
LIGHTNING_FIT = {
    **dict.fromkeys(("model", "module"), "the task is the second argument, e.g. `Classification(model)`"),
    **dict.fromkeys(
        ("datamodule", "train_dataloaders", "val_dataloaders", "train_dataloader"),
        "the data module is the third argument, e.g. `TensorData(Examples(inputs, targets), partition)`",
    ),
    "checkpoint": "a checkpoint's path is `ckpt_path`",
}
"""The same of its `fit`."""


def refuse_unknown(owner: str, given: Collection[str], function: Callable[..., Any], foreign: dict[str, str]) -> None:
    """Refuse keyword arguments that a function does not have.

    Args:
        owner: of the arguments, for the message.
        given: the names that were given.
        function: whose names they should be.
        foreign: names of Lightning, each with what there is in its place.

    Raises:
        ConfigurationError: a name was given.
    """
    for name in given:
        known = [key for key in inspect.signature(function).parameters if key not in ("self", "others")]
        remedy = f"{foreign[name]}." if name in foreign else nearest(name, known)
        raise ConfigurationError(f"{owner} has no argument `{name}`: {remedy}")


def check_fit(method: Any, task: Any, data: Any, state: Any, ckpt_path: Any) -> None:
    """Check the kinds of what `fit` is given.

    Raises:
        ConfigurationError: they are in another order, one is a class or something else, or there are two states to go on
            from.
    """
    given = (method, task, data)
    _check_order(given)
    for (kind, (name, remedy)), value in zip(_KINDS.items(), given, strict=True):
        if not isinstance(value, kind):
            raise ConfigurationError(
                f"`{name}` of `fit` must be a {kind.__name__}, but is {shown(value)}; {remedy(value)}."
            )
    if not isinstance(state, RoundState | None):
        raise ConfigurationError(
            f"`state` of `fit` must be the RoundState that a `fit` returned, but is {shown(state)}; a checkpoint's path is "
            "`ckpt_path`."
        )
    if isinstance(state, RoundState) and not (isinstance(state.server, State) and "x" in state.server):
        raise ConfigurationError(
            f"`state` of `fit` must hold a State of the server with the model `x`, but holds {state.server!r:.100}; go on from "
            "one that a `fit` returned."
        )
    if not isinstance(ckpt_path, str | os.PathLike | None):
        raise ConfigurationError(
            f'`ckpt_path` of `fit` must be a path or "last", but is {shown(ckpt_path)}; a state is `state`.'
        )
    if state is not None and ckpt_path is not None:
        raise ConfigurationError("`fit` must go on from one state, but has `state` and `ckpt_path`; leave one out.")


def check_evaluation(name: str, task: Any, data: Any, ckpt_path: Any) -> None:
    """Check the kinds of what `validate`, `test` or `predict` is given.

    Raises:
        ConfigurationError: they are others.
    """
    for value, kind in ((task, FederatedTask), (data, FederatedDataModule)):
        argument, remedy = _KINDS[kind]
        if not isinstance(value, kind):
            raise ConfigurationError(
                f"`{argument}` of `{name}` must be a {kind.__name__}, but is {shown(value)}; {remedy(value)}."
            )
    if not isinstance(ckpt_path, str | os.PathLike | None):
        raise ConfigurationError(
            f'`ckpt_path` of `{name}` must be a path, "last" or "best", but is {shown(ckpt_path)}; leave it out for the task as '
            "it is."
        )


def _check_order(given: tuple[Any, ...]) -> None:
    """Refuse the right things in another order."""
    right = [next((value for value in given if isinstance(value, kind)), None) for kind in _KINDS]
    if None not in right and any(one is not other for one, other in zip(right, given, strict=True)):
        shown, names = (", ".join(type(value).__name__ for value in values) for values in (given, right))
        raise ConfigurationError(
            f"`fit` must be given (method, task, data), but was given ({shown}); use `fit({names})`."
        )


def _called(value: Any, kind: type, otherwise: str) -> str:
    """What to write in the place of a class, or of something else."""
    if isinstance(value, type) and issubclass(value, kind):
        return f"give an instance of it, `{value.__name__}(…)`"
    return otherwise


def _for_method(value: Any) -> str:
    if isinstance(value, str):
        return "import its class from fedlightning.methods, e.g. `FedAvg(lr=0.1)`"
    return _called(value, FedMethod, "give e.g. `FedAvg(lr=0.1)`")


def _for_task(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"wrap the module, e.g. `Classification({type(value).__name__}(…))`"
    return _called(value, FederatedTask, "give e.g. `Classification(model)`")


def _for_data(value: Any) -> str:
    return _called(value, FederatedDataModule, "give e.g. `TensorData(Examples(inputs, targets), partition)`")


_KINDS: dict[type, tuple[str, Callable[[Any], str]]] = {
    FedMethod: ("method", _for_method),
    FederatedTask: ("task", _for_task),
    FederatedDataModule: ("data", _for_data),
}
