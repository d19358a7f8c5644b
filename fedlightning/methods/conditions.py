"""Conditions of the papers that are checked before the first round; for `FedMethod.check`."""

from __future__ import annotations

import warnings

from fedlightning.errors import ConfigurationError
from fedlightning.method import FedMethod, Round
from fedlightning.methods.fedcm import FedCM


def expect_plain_sgd(method: FedMethod) -> None:
    """Warn if (x − w_i) / (K η) is no mean of gradients: with clipping, momentum, or a local step of the method's own."""
    found = ["`clip_norm`"] if method.clip_norm else []
    found += ["momentum"] if isinstance(method, FedCM) else []
    found += ["a local step of its own"] if "on_local_step" in method.own_hooks else []
    if found:
        warnings.warn(
            f"{type(method).__name__} takes (x − w_i) / (K η) for the mean of a client's gradients, as option II of SCAFFOLD, "
            f"which holds for plain SGD alone, but it has {' and '.join(found)}; it is not exact then. Use `option='I'`.",
            stacklevel=3,
        )


def expect_full_participation(method: FedMethod, round: Round, allow_partial: bool) -> None:
    """Refuse, or with `allow_partial` warn of, rounds in which some clients do not take part.

    Raises:
        ConfigurationError: some do not.
    """
    if round.num_participants == round.num_clients:
        return
    what = (
        f"All clients must take part in each round of {type(method).__name__}, as its paper has it, but "
        f"{round.num_participants} of {round.num_clients} do"
    )
    if not allow_partial:
        raise ConfigurationError(f"{what}; use `clients_per_round=1.0`, or `allow_partial=True` for a heuristic.")
    warnings.warn(f"{what}: it is a heuristic then.", stacklevel=3)
