"""What is promised bit for bit: any number of slots, evaluation or none, killed and resumed or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit, quiet_trainer
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    ModelCheckpoint,
    RoundState,
    Scaffold,
)
from fedlightning.datasets import FakeImages
from fedlightning.models import LeNet

METHODS = [FedAvg(lr=0.05), FedProx(lr=0.05, mu=0.1), Scaffold(lr=0.05)]
ROUNDS = 5


def task() -> Classification:
    torch.manual_seed(0)
    lenet = LeNet(3, 5, size=16)
    return Classification(nn.Sequential(nn.Dropout2d(0.1), lenet, nn.Dropout(0.2)), 5)


def data() -> FakeImages:
    return FakeImages(
        "A0d30C12", shape=(3, 16, 16), classes=5, num_train=400, num_test=100, batching=Batching(16), augment=True
    )


class Equal:
    """Everything of two states, compared bit by bit."""

    @staticmethod
    def check(one: RoundState, other: RoundState) -> None:
        assert one.round == other.round
        assert list(one.server) == list(other.server)
        for name in one.server:
            assert torch.equal(one.server[name], other.server[name]), name
        assert one.memory.rows().keys() == other.memory.rows().keys()
        for client, row in one.memory.rows().items():
            assert all(torch.equal(row[name], other.memory.rows()[client][name]) for name in row)


def dropout_run(method: FedMethod, rounds: int = ROUNDS, **options: Any) -> RoundState:
    """A run on augmented images, with dropout, of six clients a round."""
    return fit(method, task(), data(), rounds, clients_per_round=6, **{"cohort_size": 1, **options}).state


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: type(method).__name__)
def reference(request: pytest.FixtureRequest) -> tuple[FedMethod, RoundState]:
    return request.param, dropout_run(request.param)


@pytest.mark.quick
@pytest.mark.parametrize("slots", [2, 4])
def test_the_number_of_slots_changes_no_bit(reference: tuple[FedMethod, RoundState], slots: int) -> None:
    method, state = reference
    Equal.check(state, dropout_run(method, slots=slots))


@pytest.mark.parametrize("slots", [1, 3])
def test_evaluation_changes_no_bit(reference: tuple[FedMethod, RoundState], slots: int) -> None:
    method, state = reference
    Equal.check(state, dropout_run(method, slots=slots, evaluate_every=1))


def test_going_on_from_a_returned_state_changes_no_bit(reference: tuple[FedMethod, RoundState]) -> None:
    method, state = reference
    Equal.check(state, dropout_run(method, state=dropout_run(method, rounds=2)))


class Kill(Callback):
    """Ends the program in the midst of a round, as a signal would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: object) -> None:
        if trainer.round == self.after:
            raise KeyboardInterrupt


@pytest.mark.quick
@pytest.mark.parametrize("slots", [1, 2])
def test_killed_in_the_fourth_round_and_resumed_changes_no_bit(
    reference: tuple[FedMethod, RoundState], slots: int, tmp_path: Path
) -> None:
    method, state = reference
    callbacks = [ModelCheckpoint(tmp_path), Kill(3)]
    trainer = quiet_trainer(ROUNDS, slots, clients_per_round=6, callbacks=callbacks, evaluate_every=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(method, task(), data())
    assert trainer.state.round == 3
    Equal.check(state, dropout_run(method, slots=slots, ckpt_path=tmp_path / "last.ckpt"))


def test_cohorts_give_the_same_bits_for_any_number_of_slots_and_the_loops_numbers() -> None:
    one = dropout_run(FedProx(lr=0.05), cohort_size=3)
    Equal.check(one, dropout_run(FedProx(lr=0.05), cohort_size=3, slots=2, evaluate_every=2))
    torch.testing.assert_close(one.server.x, dropout_run(FedProx(lr=0.05)).server.x, rtol=1e-4, atol=1e-6)


def test_another_seed_gives_other_bits() -> None:
    def first(seed: int) -> Tensor:
        return dropout_run(FedAvg(lr=0.05), 1, seed=seed).server.x

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_a_memory_in_mapped_files_changes_no_bit(tmp_path: Path) -> None:
    method = Scaffold(lr=0.05)
    mapped = dropout_run(method, slots=2, memory_dir=tmp_path)
    Equal.check(dropout_run(method), mapped)
    assert (tmp_path / "c.bin").stat().st_size == 12 * Tensor.numel(mapped.server.c) * 4
