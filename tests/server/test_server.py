"""The server's part of a round: its bill in closed form, and which of a method's hooks it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fedlightning import Callback, FedAvg, FederatedTrainer, FedMethod, Scaffold, State
from fedlightning.methods import FedDane, FedLESAM, FedRed
from fedlightning.server.aggregation import OrderedMean
from fedlightning.testing import Quadratics

pytestmark = pytest.mark.quick

P, N = 2, 4
FLOAT = 8  # bytes of a number of float64


class Bills(Callback):
    """Keeps what is logged of each round."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))


def bill(method: FedMethod, participants: int) -> tuple[float, float]:
    """Vectors [P] that travel up and down in a round, of each participant."""
    curvatures, minima = [torch.eye(P, dtype=torch.float64)] * N, [torch.ones(P, dtype=torch.float64)] * N
    kept = Bills()
    trainer = FederatedTrainer(2, participants, callbacks=[kept], logger=False, evaluate_every=0)
    trainer.fit(method, Quadratics.task([1.0, -1.0]), Quadratics(curvatures, minima, [4] * N, steps=2))
    (one,) = {(row["communication/up_bytes"], row["communication/down_bytes"]) for row in kept.rows}
    up, down = (number / (participants * P * FLOAT) for number in one)
    return up, down


class Returns(FedAvg):
    """Remembers the server's last step, for which the new model must travel back."""

    def configure_client(self, x: torch.Tensor) -> State:
        return State(step=torch.zeros_like(x))

    def on_client_end(self, local: Any, client: Any) -> tuple[State, State]:
        upload, _ = super().on_client_end(local, client)
        return upload, client.state

    def on_return(self, state: State, upload: State, step: torch.Tensor, round: Any) -> State:
        return state.replace(step=step)


class Wrapped(Scaffold):
    """Scaffold, of which a hook is called through a class that changes nothing, and says so."""

    own_hooks = frozenset()

    def on_return(self, state: State, upload: State, step: torch.Tensor, round: Any) -> State:
        return super().on_return(state, upload, step, round)


@pytest.mark.parametrize(
    ("method", "up", "down"),
    [
        (FedAvg(), 1, 1),
        (Scaffold(), 2, 2),
        (FedDane(), 2, 2),  # a gradient up, and the mean of all gradients down
        (FedRed(), 2, 2),
        (Wrapped(), 2, 2),
        (FedLESAM(rho=0.1), 1, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedMethod) else str(value),
)
@pytest.mark.parametrize("participants", [2, N])
def test_the_bill_counts_what_travels(method: FedMethod, up: int, down: int, participants: int) -> None:
    assert bill(method, participants) == (up, down)


def test_a_model_that_goes_back_is_billed_unless_the_next_round_sends_it() -> None:
    assert bill(Returns(), N) == (1, 1)
    assert bill(Returns(), 2) == (1, 2)


# -- which hooks a method has of its own --------------------------------------------------------------------------------
class MixIn:
    """Not a method, but in front of one."""

    def on_return(self, state: State, upload: State, step: torch.Tensor, round: Any) -> State:
        return state


class Mixed(MixIn, FedAvg):
    pass


def test_own_hooks_are_found_through_mixins_and_unless_a_wrapper_says_that_it_changes_nothing() -> None:
    assert FedAvg.own_hooks == frozenset()
    assert "on_return" in Mixed.own_hooks
    assert "on_return" in Returns.own_hooks
    assert "on_return" not in Wrapped.own_hooks
    assert type("Further", (Returns,), {}).own_hooks == Returns.own_hooks  # type: ignore[attr-defined]
    assert "on_aggregate" in Scaffold.own_hooks


def test_the_mean_of_one_upload_is_what_the_audit_shows_a_method() -> None:
    upload = State(delta=torch.randn(3), votes=torch.tensor([1, -1]), seen=torch.tensor([True, False]))
    mean = OrderedMean(torch.device("cpu"), torch.float64)
    mean.add(upload.apply(lambda entry: entry.unsqueeze(0)), torch.ones(1))
    shown: list[State] = []

    class Watching(FedAvg):
        def configure_server(self, x: torch.Tensor) -> State:
            return State(x=x)

        def on_client_end(self, local: Any, client: Any) -> tuple[State, State]:
            first, state = super().on_client_end(local, client)
            return first.replace(**dict(upload)), state

        def on_aggregate(self, server: State, mean: State, round: Any) -> State:
            shown.append(mean)
            return server

    curvature, minimum = torch.eye(3, dtype=torch.float32), torch.zeros(3)
    data = Quadratics([curvature], [minimum], [4], steps=1)
    FederatedTrainer(1, callbacks=[], logger=False, evaluate_every=0).fit(
        Watching(), Quadratics.task([1.0, -1.0, 0.0]), data
    )
    audited, real = shown
    for name in ("votes", "seen"):
        assert audited[name].dtype == real[name].dtype
        torch.testing.assert_close(audited[name], mean.result()[name].to(real[name].dtype))
        torch.testing.assert_close(real[name], audited[name])
