"""Stragglers: who they are, what they do, and that whatever is promised bit for bit stays so."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fedprox_curves import check_curve
from small_runs import fit
from torch import Tensor

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    ModelCheckpoint,
    Partition,
    Round,
    RoundState,
    Scaffold,
    Stragglers,
    TensorData,
)
from fedlightning.loggers import run_loggers
from fedlightning.methods import Scaffnew
from fedlightning.models import MLP
from fedlightning.participation import FixedSchedule, Participation, UniformSampling, Work
from fedlightning.testing import Quadratics

SIZES = [4, 9, 17, 30, 5, 12, 8, 21, 10, 10, 13, 7]


def data(**batching: int) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randn(sum(SIZES), 6, generator=generator),
        torch.randint(0, 3, (sum(SIZES),), generator=generator),
    )
    owned = Partition.of(list(torch.arange(sum(SIZES)).split(SIZES)))
    module = TensorData(Examples(inputs, targets), owned, batching=Batching(5, **(batching or {"epochs": 4})))
    module.setup()
    return module


def works(
    stragglers: Stragglers, rounds: int = 40, asked: int | None = None, count: int = 10, seed: int = 0, **batching
):  # type: ignore[no-untyped-def]
    run = Participation(data(**batching), count, None, stragglers, seed=seed, local_steps=lambda round: asked)
    return [run.work(round) for round in range(rounds)]


def chosen(round: int, count: int = 10, seed: int = 0) -> list[int]:
    return UniformSampling().sample(round, len(SIZES), count, seed)


# -- who they are -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fraction", "count", "active"),
    [(0, 10, 10), (0.1, 10, 9), (0.25, 10, 8), (0.5, 10, 5), (0.75, 10, 2), (0.9, 10, 1), (0.99, 10, 1), (0.5, 1, 1), (0.5, 3, 2)],
)  # fmt: skip
def test_the_number_of_active_clients_is_rounded_to_even_and_at_least_one(
    fraction: float, count: int, active: int
) -> None:
    for partial in (True, False):
        for round, work in enumerate(works(Stragglers(fraction, partial), 5, count=count)):
            assert work.stragglers == count - active
            assert list(work.clients) == [c for c in chosen(round, count) if partial or c in work.clients]
            assert len(work.clients) == (count if partial else active)


def test_the_dropped_ones_are_those_that_do_less_and_fractions_are_nested() -> None:
    for seed in (0, 1):
        some, many = works(Stragglers(0.5, False), seed=seed), works(Stragglers(0.9, False), seed=seed)
        part = works(Stragglers(0.5), seed=seed, epochs=1000)
        for round in range(40):
            dropped = set(chosen(round, seed=seed)) - set(some[round].clients)
            assert set(part[round].steps) == dropped
            assert set(many[round].clients) < set(some[round].clients)
    assert works(Stragglers(0.5), seed=0) != works(Stragglers(0.5), seed=1)


def test_every_chosen_client_is_a_straggler_as_often_as_the_others() -> None:
    counts = Counter(c for work in works(Stragglers(0.5, False), 2000, count=12) for c in work.clients)
    assert all(abs(counts[c] / 2000 - 0.5) < 4 * (0.25 / 2000) ** 0.5 for c in range(12))


# -- what they do -------------------------------------------------------------------------------------------------------
def spread(found: Counter[int], largest: int) -> None:
    total = sum(found.values())
    assert set(found) == set(range(1, largest + 1))
    p = 1 / largest
    assert all(abs(count / total - p) <= 4.5 * math.sqrt(p * (1 - p) / total) for count in found.values())


def test_a_straggler_does_one_to_all_of_its_epochs() -> None:
    epochs: Counter[int] = Counter()
    for work in works(Stragglers(0.9), 500, epochs=4):
        for client, steps in work.steps.items():
            done, rest = divmod(steps, -(-SIZES[client] // 5))
            assert not rest
            epochs[done] += 1
    spread(epochs, 4)


@pytest.mark.parametrize(("asked", "batching"), [(None, {"steps": 7}), (7, {"epochs": 3}), (7, {"steps": 2})])
def test_where_there_are_no_epochs_it_does_one_to_all_of_its_steps(asked: int | None, batching: dict[str, int]) -> None:
    spread(Counter(k for w in works(Stragglers(0.9), 500, asked, **batching) for k in w.steps.values()), 7)


def test_of_a_single_epoch_it_does_one_to_all_batches() -> None:
    found = works(Stragglers(0.9), 2000, epochs=1)
    for client, size in enumerate(SIZES):
        spread(Counter(work.steps[client] for work in found if client in work.steps), -(-size // 5))


class Kept(Callback):
    def __init__(self) -> None:
        self.steps: list[dict[int, int]] = []
        self.rounds: list[Round] = []
        self.logged: list[dict[str, float]] = []

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        self.rounds.append(round)
        self.steps.append({})

    def on_cohort_end(self, trainer: FederatedTrainer, cohort) -> None:  # type: ignore[no-untyped-def]
        self.steps[-1].update(zip(cohort.clients, cohort.num_steps.tolist(), strict=True))

    def on_round_end(self, trainer: FederatedTrainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.logged.append(dict(metrics))


def straggling_run(
    method: FedMethod, stragglers: Stragglers | None, rounds: int = 4, **options: Any
) -> tuple[RoundState, Kept]:
    """A run with ten of the clients a round, and who did how much."""
    torch.manual_seed(0)
    model, kept = Classification(MLP(6, 3, (8,))), Kept()
    how = {"clients_per_round": 10, "stragglers": stragglers, "callbacks": [kept], **options}
    return fit(method, model, data(), rounds, **how).state, kept


@pytest.mark.parametrize("method", [FedAvg(), FedProx(mu=1.0), Scaffold(lr=0.01)], ids=lambda m: type(m).__name__)
def test_the_engine_trains_these_clients_for_these_steps_whatever_the_method(method: FedMethod) -> None:
    for stragglers in (Stragglers(0.5), Stragglers(0.9, partial=False)):
        _, kept = straggling_run(method, stragglers)
        for round, work in enumerate(works(stragglers, 4)):
            full = {client: 4 * -(-SIZES[client] // 5) for client in work.clients}
            assert kept.steps[round] == {**full, **work.steps}
            assert kept.rounds[round].num_participants == len(work.clients)
            assert kept.logged[round]["round/stragglers"] == work.stragglers


def test_what_stragglers_did_is_aggregated() -> None:
    """Against w_i after k_i steps of gradient descent on a quadratic, in closed form."""
    a, b, n, start = (
        [torch.eye(2) * s for s in (1.0, 2.0, 3.0)],
        torch.tensor([[1.0, 0], [0, 2], [3, 3]]),
        [4, 8, 20],
        torch.tensor([1.0, -1.0]),
    )
    problem = Quadratics(a, list(b), n, steps=6)
    problem.setup()
    stragglers, everyone = Stragglers(0.7), FixedSchedule(((0, 1, 2),))
    task = Quadratics.task(start.tolist())
    found = fit(FedAvg(lr=0.1), task, problem, 1, sampler=everyone, stragglers=stragglers, seed=3).state.server.x
    work = Participation(problem, 3, everyone, stragglers, seed=3).work(0)
    assert len(work.steps) == 2

    def local(i: int) -> Tensor:
        decay = (1 - 0.1 * (i + 1.0)) ** work.steps.get(i, 6)
        return b[i] + decay * (start - b[i])

    expected = sum(n[i] * local(i) for i in range(3)) / sum(n)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)  # type: ignore[union-attr]
    assert set(work.steps.values()) != {6}


def test_dropped_clients_upload_nothing_and_are_not_counted() -> None:
    _, all_ = straggling_run(FedAvg(), None)
    _, kept = straggling_run(FedAvg(), Stragglers(0.9, partial=False))
    for name in ("communication/up_bytes", "communication/down_bytes"):
        assert [row[name] * 10 for row in kept.logged] == [row[name] for row in all_.logged]
    assert "round/stragglers" not in all_.logged[0]


def test_nobody_straggles_with_none_or_a_fraction_of_nought() -> None:
    one, other = straggling_run(FedAvg(), None)[0], straggling_run(FedAvg(), Stragglers(0.0))[0]
    assert torch.equal(one.server.x, other.server.x)
    assert not torch.equal(one.server.x, straggling_run(FedAvg(), Stragglers(0.1))[0].server.x)


# -- conditions and promises --------------------------------------------------------------------------------------------
def test_a_methods_own_conditions_are_those_of_the_clients_that_upload() -> None:
    problem, model = data(), Classification(MLP(6, 3, (8,)))
    with pytest.raises(ConfigurationError, match=r"All clients must take part in each round of Scaffnew.* 6 of 12"):
        fit(Scaffnew(), model, problem, 1, stragglers=Stragglers(0.5, partial=False))
    fit(Scaffnew(), model, problem, 1, stragglers=Stragglers(0.5))


def same(one: RoundState, other: RoundState) -> bool:
    rows, others = one.memory.rows(), other.memory.rows()
    return (
        all(torch.equal(one.server[name], other.server[name]) for name in one.server)
        and rows.keys() == others.keys()
        and all(torch.equal(row[name], others[client][name]) for client, row in rows.items() for name in row)
    )


@pytest.mark.parametrize("partial", [True, False])
def test_slots_evaluation_and_resumption_change_no_bit(partial: bool, tmp_path: Path) -> None:
    method, stragglers = Scaffold(lr=0.05), Stragglers(0.5, partial)
    reference = straggling_run(method, stragglers)[0]
    assert same(reference, straggling_run(method, stragglers, slots=3)[0])
    assert same(reference, straggling_run(method, stragglers, evaluate_every=1)[0])
    assert same(reference, straggling_run(method, stragglers, state=straggling_run(method, stragglers, 2)[0])[0])
    straggling_run(method, stragglers, 2, callbacks=[ModelCheckpoint(tmp_path)])
    assert same(reference, straggling_run(method, stragglers, ckpt_path=tmp_path / "last.ckpt")[0])


def test_cohorts_give_the_loops_numbers() -> None:
    looped = straggling_run(FedProx(), Stragglers(0.9))[0]
    vmapped = straggling_run(FedProx(), Stragglers(0.9), cohort_size=4)[0]
    torch.testing.assert_close(looped.server.x, vmapped.server.x, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_with_the_same_stragglers_alone(tmp_path: Path) -> None:
    straggling_run(FedAvg(), Stragglers(0.5), 1, callbacks=[ModelCheckpoint(tmp_path)])
    for other in (None, Stragglers(0.9), Stragglers(0.5, partial=False)):
        with pytest.raises(ConfigurationError, match=r"`stragglers` is 'Stragglers\(fraction=0.5, partial=True\)'"):
            straggling_run(FedAvg(), other, ckpt_path=tmp_path / "last.ckpt")


def test_they_are_among_the_logged_hyperparameters(tmp_path: Path) -> None:
    for name, stragglers, written in (
        ("some", Stragglers(0.5), "Stragglers(fraction=0.5, partial=True)"),
        ("none", None, None),
    ):
        straggling_run(FedAvg(), stragglers, 1, logger=run_loggers(tmp_path, name))
        assert yaml.safe_load((tmp_path / name / "hparams.yaml").read_text())["stragglers"] == written


@pytest.mark.parametrize("fraction", [1, 1.2, -0.1, math.nan, "0.5"])
def test_a_fraction_that_cannot_be_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"`fraction` of Stragglers must be in \[0, 1\), but is"):
        Stragglers(fraction)


def test_work_is_nothing_by_default() -> None:
    assert Work() == Work((), {}, 0)


# -- the curves -------------------------------------------------------------------------------------------------------------
def within(name: str) -> tuple[float, float]:
    """The reference's own tolerances for other batches and other stragglers' epochs."""
    return (0.02, 0.02) if "mu1" in name else (0.1, 0.02)


@pytest.mark.parametrize(
    "name", ["iid|fedavg|mu0|drop0.9|clean", "1_1|fedavg|mu0|drop0.5|clean", "1_1|fedprox|mu1|drop0.9|clean"]
)
def test_twenty_rounds_of_the_curves(name: str) -> None:
    check_curve(name, 1, 20, *within(name))
