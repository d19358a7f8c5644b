"""What a run is: what must be the same to go on with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import astuple
from typing import Any

from torch import nn

from fedlightning._hashing import described, digest_text
from fedlightning.data.module import FederatedDataModule, SplitName
from fedlightning.errors import ConfigurationError
from fedlightning.layout import identify_model
from fedlightning.method import FedMethod, hyperparameters
from fedlightning.server.round_state import RoundState
from fedlightning.state import State


def identify(
    method: FedMethod,
    task: nn.Module,
    data: FederatedDataModule,
    evaluate_on: Collection[SplitName],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides the numbers of a run but its length, as plain JSON; tensors are told by hashes of all they hold.

    Args:
        method: its classes and hyperparameters.
        task: its layers, what is trained of them, and the values of what is not.
        data: training data, partition and batches.
        evaluate_on: the splits that are evaluated; the examples of the validation split and of the test set count where they
            are, since callbacks decide by them.
        settings: of the trainer: the seed, who takes part, and in what numbers.
    """
    classes = [_name(cls) for cls in type(method).__mro__ if issubclass(cls, FedMethod) and cls is not FedMethod]
    return {
        "method": type(method).__name__,
        "classes": classes,
        "hyperparameters": hyperparameters(method),
        **identify_model(task),
        "model": digest_text(f"{task!r}{_attributes(task)}"),
        "partition": data.clients.fingerprint,
        "batches": list(astuple(data.batching)),
        "training_data": data.fingerprint,
        "validation_data": data.split_fingerprint("val") if "val" in evaluate_on else None,
        "test_data": data.split_fingerprint("test") if "test" in evaluate_on else None,
        **{
            name: value if isinstance(value, int | str | None) else described(value) for name, value in settings.items()
        },
    }


def _name(cls: type) -> str:
    """A class's name; one of the library's has its module, too, which is the same in every program."""
    return f"{cls.__module__}.{cls.__name__}" if cls.__module__.startswith("fedlightning.") else cls.__name__


def _attributes(task: nn.Module) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The plain values that a task and its layers keep on themselves, such as a scale, which `repr` need not show."""
    return [
        (
            name,
            [
                (key, value)
                for key, value in sorted(vars(module).items())
                if _is_kept(key, value) and (name or key != "lr")
            ],
        )
        for name, module in task.named_modules()
    ]


def _is_kept(key: str, value: Any) -> bool:
    """Whether an attribute is the module's own and decides what it computes; `lr` is that of the centralised baseline."""
    return not key.startswith("_") and key != "training" and isinstance(value, bool | int | float | str)


def check_state(state: RoundState, identity: Mapping[str, Any], server: State, row: State, num_clients: int) -> None:
    """Check that a run can go on from a state; its learning rate, its length and its seed may be others.

    Args:
        state: what `fit` was given.
        identity: the run's.
        server: what the server remembers before the first round.
        row: what a client remembers before it takes part.
        num_clients: N.

    Raises:
        ConfigurationError: it cannot.
    """
    if fault := _fault(state, identity, server, row, num_clients):
        raise ConfigurationError(
            f"`state` of `fit` must be one that this run can go on from, but {fault}. To begin a new run at its model, give "
            "`task.with_state(state)` in place of the task."
        )


def _fault(state: RoundState, identity: Mapping[str, Any], server: State, row: State, num_clients: int) -> str:
    maker, method = state.identity, identity["method"]
    if type(state.round) is not int or state.round < 0:
        return f"its `round` is {state.round!r}"
    if maker and not _takes_up(maker, identity):
        return f"it was made by {maker['method']}, and the method is {method}"
    kinds = state.memory.kinds()
    if kinds and maker and maker["partition"] != identity["partition"]:
        return "it holds what the clients of another partition remember"
    if unknown := [client for client in state.memory.clients() if not 0 <= client < num_clients]:
        return f"it holds what client {max(unknown)} remembers, and there are {num_clients} clients"
    held = {"server": [state.server], "client": kinds}
    if not (maker and maker["hyperparameters"] == identity["hyperparameters"]):
        for owner, wanted in (("server", server), ("client", row)):
            for found in held[owner]:
                if lacking := _unlike(found, wanted, exactly=not maker):
                    return f"what a {owner} remembers has no such {lacking}, which {method} needs"
    return ""


def _takes_up(maker: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a state was made by the same method, or by a class of one's own that adds to it no hyperparameter."""
    theirs, ours = list(maker["classes"]), list(identity["classes"])
    more = theirs[: len(theirs) - len(ours)]
    return (
        theirs == more + ours
        and maker["hyperparameters"].keys() == identity["hyperparameters"].keys()
        and not any(name.startswith("fedlightning.") for name in more)
    )


def _unlike(found: State, wanted: State, exactly: bool) -> str:
    """An entry that a state lacks or, `exactly`, that it has and need not, or has in another dtype or shape."""
    for name, tensor in wanted.items():
        if name not in found or (exactly and (found[name].dtype, found[name].shape) != (tensor.dtype, tensor.shape)):
            return f"`{name}` ({str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)})"
    return ""
