"""FedProx with an adaptive μ, and the hook it needs: a method's look at an evaluation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fedprox_curves import CURVES, check_curve
from small_runs import fit

from fedlightning import (
    Callback,
    Classification,
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    ModelCheckpoint,
    Round,
    RoundState,
    State,
)
from fedlightning.datasets import Synthetic
from fedlightning.methods import AdaptiveFedProx
from fedlightning.models import LogisticRegression
from fedlightning.testing import Quadratics, check_method

ROUND = Round(0, 3, 3, 0.1)


def mus(losses: list[float], **fields: float) -> list[float]:
    """μ after each evaluation."""
    method = AdaptiveFedProx(**fields)  # type: ignore[arg-type]
    server, found = method.configure_server(torch.zeros(2)), []
    for loss in losses:
        server = method.on_evaluation(server, {"train_all/loss": loss}, ROUND)
        found.append(round(float(server.mu), 9))
    return found


# -- the rule -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("losses", "fields", "expected"),
    [
        ([3, 4, 5, 5.1], {"mu": 0.0}, [0, 0.1, 0.2, 0.3]),
        ([9, 8, 7, 6, 5, 4, 3], {"mu": 1.0}, [1, 1, 1, 1, 1, 0.9, 0.9]),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1], {"mu": 1.0}, [1, 1, 1, 1, 1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8]),
        ([9, 8, 7, 6, 5, 6, 5, 4, 3, 2, 1], {"mu": 1.0}, [1, 1, 1, 1, 1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.0]),
        ([9, 8, 7, 6, 5, 5, 4, 3], {"mu": 1.0}, [1] * 8),
        ([6, 5, 4, 3, 2, 1, 0], {"mu": 0.05}, [0.05] * 5 + [0, 0]),
        ([3, 2, 1, 2], {"mu": 1.0, "mu_step": 0.5, "patience": 2}, [1, 1, 0.5, 1]),
        ([3, math.inf, 2], {"mu": 0.0}, [0, 0.1, 0.1]),
    ],
)
def test_mu_grows_with_each_rise_and_shrinks_with_five_falls_in_a_row(losses, fields, expected) -> None:  # type: ignore[no-untyped-def]
    assert mus(losses, **fields) == expected


@pytest.mark.parametrize(("field", "value"), [("mu", -0.1), ("mu_step", 0), ("patience", 0)])
def test_fields_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"`{field}` of AdaptiveFedProx must be (in|at least) "):
        AdaptiveFedProx(**{field: value})  # type: ignore[arg-type]


# -- the contract -----------------------------------------------------------------------------------------------------------
def test_it_keeps_the_contract() -> None:
    check_method(AdaptiveFedProx(mu=1.0))


class Logged(Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.rows.append({"round": trainer.round, **metrics})

    def on_round_end(self, trainer: FederatedTrainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.rows[-1].update(metrics)


def problem() -> Quadratics:
    a = [torch.eye(2) * s for s in (1.0, 4.0, 9.0)]
    return Quadratics(a, list(torch.tensor([[1.0, 0], [0, 2], [-1, -1]])), [10, 20, 30], steps=4)


def run(method: FedMethod, rounds: int = 12, **options: Any) -> RoundState:
    """A run on the quadratics with two clients a round, evaluated after each."""
    options = {"clients_per_round": 2, "evaluate_every": 1, "evaluate_on": ("train",), **options}
    return fit(method, Quadratics.task([3.0, 1.0]), problem(), rounds, **options).state


def test_each_round_is_that_of_fedprox_with_the_mu_that_is_logged_before_it() -> None:
    logged, states = Logged(), [run(AdaptiveFedProx(mu=0.3), rounds) for rounds in range(1, 13)]
    last = run(AdaptiveFedProx(mu=0.3), callbacks=[logged])
    found = [row["server/mu"] for row in logged.rows]
    assert found == pytest.approx(mus([row["train_all/loss"] for row in logged.rows], mu=0.3))
    assert len(set(found)) > 2
    assert last.server.mu == logged.rows[-1]["server/mu"]
    for t in range(1, 12):
        before = states[t - 1]
        one = run(FedProx(mu=found[t]), t + 1, state=RoundState(t, State(x=before.server.x)))
        torch.testing.assert_close(one.server.x, states[t].server.x, rtol=0, atol=1e-12)
    assert not torch.allclose(states[-1].server.x, run(FedProx(mu=0.3)).server.x, atol=1e-3)


def test_mu_is_sent_down_and_nothing_else_of_it() -> None:
    logged, plain = Logged(), Logged()
    run(AdaptiveFedProx(), 1, callbacks=[logged])
    run(FedProx(), 1, callbacks=[plain])
    assert logged.rows[-1]["communication/down_bytes"] == plain.rows[-1]["communication/down_bytes"] + 2 * 8
    assert [name for name in logged.rows[-1] if name.startswith("server/")] == ["server/mu"]
    assert not [name for name in plain.rows[-1] if name.startswith("server/")]


# -- the hook ---------------------------------------------------------------------------------------------------------------
class Watches(FedAvg):
    """Counts the evaluations and remembers what it was told."""

    downlink = ("count",)

    def configure_server(self, x):  # type: ignore[no-untyped-def]
        return super().configure_server(x).replace(count=torch.zeros(()), told=x.new_zeros(20))

    def on_evaluation(self, server, metrics, round):  # type: ignore[no-untyped-def]
        told = server.told.clone()
        told[int(server.count)] = 100 * round.index + 10 * round.num_participants + metrics["train_all/loss"]
        return server.replace(count=server.count + 1, told=told)


def test_it_is_called_before_the_first_round_and_after_each() -> None:
    logged = Logged()
    state = run(Watches(), 3, callbacks=[logged])
    assert [row["server/count"] for row in logged.rows] == [1, 2, 3, 4]
    expected = [100 * t + 20 + row["train_all/loss"] for t, row in zip((0, 0, 1, 2), logged.rows, strict=True)]
    assert state.server.told[:5].tolist() == pytest.approx([*expected, 0])


@pytest.mark.parametrize("method", [AdaptiveFedProx(), Watches()], ids=lambda method: type(method).__name__)
def test_it_needs_the_training_loss_of_every_round(method: FedMethod) -> None:
    name = type(method).__name__
    for every in (0, 2):
        with pytest.raises(ConfigurationError, match=f"`evaluate_every` of .* must be 1 for {name}, .* but is {every}"):
            run(method, evaluate_every=every)
    with pytest.raises(ConfigurationError, match=f"`evaluate_on` of FederatedTrainer must hold 'train' for {name}"):
        fit(method, Classification(LogisticRegression(60, 10)), Synthetic(), evaluate_every=1)
    run(FedAvg(), 1, evaluate_every=0)


class Interrupts(Callback):
    """Ends the program in a hook, as Ctrl-C would."""

    def __init__(self, hook: str, at: int) -> None:
        self.hook, self.at = hook, at
        setattr(self, hook, self.stop)

    def stop(self, trainer: FederatedTrainer, *arguments: object) -> None:
        if trainer.round == self.at:
            raise KeyboardInterrupt


class Falls(AdaptiveFedProx):
    """Interrupted in the midst of an evaluation."""

    def on_evaluation(self, server, metrics, round):  # type: ignore[no-untyped-def]
        if round.index == 3:
            raise KeyboardInterrupt
        return super().on_evaluation(server, metrics, round)


@pytest.mark.parametrize(
    ("hook", "at"),
    [("on_evaluation_end", 0), ("on_cohort_end", 0), ("on_evaluation_end", 4), ("on_round_end", 4), ("on_cohort_end", 6)],
)  # fmt: skip
@pytest.mark.parametrize("method", [AdaptiveFedProx(mu=0.3), Watches()], ids=lambda method: type(method).__name__)
def test_interrupted_anywhere_and_resumed_changes_no_bit(method: FedMethod, hook: str, at: int, tmp_path: Path) -> None:
    reference = run(method)
    with pytest.raises(KeyboardInterrupt):
        run(method, callbacks=[ModelCheckpoint(tmp_path), Interrupts(hook, at)])
    state = run(method, ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(reference.server[name], state.server[name]) for name in reference.server)
    half = run(method, state=run(method, 5))
    assert all(torch.equal(reference.server[name], half.server[name]) for name in reference.server)


def test_a_round_has_ended_when_it_was_looked_at(tmp_path: Path) -> None:
    reference = run(AdaptiveFedProx(mu=0.3))
    kept: list[RoundState] = []

    class Keeps(Callback):
        def on_exception(self, trainer, exception) -> None:  # type: ignore[no-untyped-def]
            kept.append(trainer.state)

    with pytest.raises(KeyboardInterrupt):
        run(Falls(mu=0.3), callbacks=[Keeps()])
    assert kept[0].round == 3
    state = run(AdaptiveFedProx(mu=0.3), state=kept[0])
    assert all(torch.equal(reference.server[name], state.server[name]) for name in reference.server)


# -- the curves -------------------------------------------------------------------------------------------------------------
ADAPTIVE = [name for name in CURVES if "adaptive" in name]
LOSS, ACCURACY = 2e-5, 1e-5  # the reference is rounded to 5e-6; one example is 1e-3


def test_twenty_rounds_of_the_curve() -> None:
    check_curve("iid|adaptivefedprox|mu1|drop0|repo", 1, 20, LOSS, ACCURACY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_curves(name: str, seed: int) -> None:
    check_curve(name, seed, 200, LOSS, ACCURACY)
