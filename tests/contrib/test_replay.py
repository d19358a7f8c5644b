"""The replay of the FedProx program, against a literal simulation of its random streams, and against what it printed.

`fedprox_program.npz` holds two runs of the authors' unmodified program (TensorFlow 1.10) on synthetic (1, 1), seed 1: start,
training losses, test accuracies and last weights. For the curves see `fedprox_curves.py`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedprox_curves import CURVES, Evaluations, check_curve
from small_runs import fit

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FedMethod,
    FedProx,
    Partition,
    RoundState,
    TensorData,
)
from fedlightning.contrib.fedprox_program import ReplayedBatches, ReplayedStragglers, RoundSeeded
from fedlightning.datasets import Synthetic
from fedlightning.models import MLP, LogisticRegression
from fedlightning.participation import Participation, UniformSampling

PROGRAM = np.load(Path(__file__).parent / "fedprox_program.npz")
SIZES = [45, 54, 100, 7, 23, 10, 61, 33, 12, 9, 18, 27]


def data(**batching) -> TensorData:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    count = sum(SIZES)
    inputs, targets = torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    shuffled = torch.randperm(count, generator=generator)
    module = TensorData(
        Examples(inputs, targets),
        Partition.of(list(shuffled.split(SIZES))),
        batching=Batching(**{"size": 10, "epochs": 5, **batching}),
    )
    module.setup()
    return module


def run_of(module: TensorData, fraction: float = 0.5, partial: bool = True, count: int = 6) -> Participation:
    return Participation(module, count, RoundSeeded(), ReplayedStragglers(fraction, partial), ReplayedBatches())


# -- the streams ----------------------------------------------------------------------------------------------------------
def program(fraction: float, partial: bool, rounds: int, epochs: int = 5, count: int = 6) -> Iterator[dict[int, list[list[int]]]]:  # fmt: skip
    """What the program does, line by line, with one generator that is seeded again and again: each client's batches."""
    owned = data().clients
    inputs = [owned.client(c).numpy()[:, None] * np.ones((1, 3), dtype=np.int64) for c in range(len(SIZES))]
    targets = [owned.client(c).numpy().copy() for c in range(len(SIZES))]
    rng = np.random.RandomState()
    for t in range(rounds):
        rng.seed(t)
        chosen = rng.choice(range(len(SIZES)), count, replace=False)
        rng.seed(t)
        active = rng.choice(chosen, round(count * (1 - fraction)), replace=False)
        batches: dict[int, list[list[int]]] = {}
        for client in (chosen if partial else active).tolist():
            batches[client] = []
            for _ in range(epochs if client in active else rng.randint(low=1, high=epochs)):
                rng.seed(100)
                state = rng.get_state()
                rng.shuffle(inputs[client])
                rng.set_state(state)
                rng.shuffle(targets[client])
                assert (inputs[client][:, 0] == targets[client]).all()
                batches[client] += [targets[client][i : i + 10].tolist() for i in range(0, SIZES[client], 10)]
        yield batches


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_clients_epochs_and_batches_are_those_of_the_program(fraction: float, partial: bool) -> None:
    module = data()
    run = run_of(module, fraction, partial)
    for t, expected in enumerate(program(fraction, partial, 30)):
        work = run.work(t)
        assert list(work.clients) == list(expected)
        assert work.stragglers == 6 - round(6 * (1 - fraction))
        for client, batches in expected.items():
            steps = work.steps.get(client, module.num_steps(client))
            assert steps == len(batches)
            index = run.batches([client], [steps], t)[0].index
            assert [[i for i in row if i >= 0] for row in index.tolist()] == batches


def test_a_fresh_object_knows_the_history() -> None:
    module = data()
    run = run_of(module)

    def drawn(run: Participation, t: int) -> list[list[list[int]]]:
        plan = run.plan(t)
        schedules = plan.batches(plan.clients, [plan.num_steps(client) for client in plan.clients])
        return [schedule.index.tolist() for schedule in schedules]

    rounds = [drawn(run, t) for t in range(60)]
    for t in (57, 3, 0, 59):
        assert drawn(run_of(module), t) == rounds[t]
        assert drawn(run, t) == rounds[t]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda t: drawn(run, t), range(60))) == rounds


@pytest.mark.parametrize(("size", "epochs"), [(45, 17), (54, 3), (100, 5), (500, 19), (1000, 12)])
def test_a_stragglers_epochs_follow_from_the_client_before_it(size: int, epochs: int) -> None:
    owned = Partition.of(list(torch.arange(30 * size).split(size)))
    module = TensorData(
        Examples(torch.zeros(30 * size, 1), torch.zeros(30 * size)), owned, batching=Batching(size, epochs=20)
    )
    module.setup()
    for t, first in enumerate((5, 8, 12)):
        work = run_of(module, 0.9, count=10).work(t)
        expected = dict(zip(work.clients, (first, *[epochs] * 9), strict=True))
        (active,) = set(work.clients) - set(work.steps)
        assert active == (13, 10, 21)[t]
        assert work.steps == {client: e for client, e in expected.items() if client != active}


def test_ten_examples_go_round_as_published() -> None:
    owned = Partition.of(list(torch.arange(20).split(10)))
    module = TensorData(Examples(torch.zeros(20, 1), torch.zeros(20)), owned, batching=Batching(10, epochs=3))
    module.setup()
    found = run_of(module, 0.0, count=2).batches([0], [3], 0)[0].index
    orders = [[7, 6, 1, 5, 4, 2, 0, 3, 9, 8], [3, 0, 6, 2, 4, 1, 7, 5, 8, 9], [5, 7, 0, 1, 4, 6, 3, 2, 9, 8]]
    assert found.tolist() == orders


# -- what is refused, what is promised --------------------------------------------------------------------------------------
class Sixes(FedAvg):
    def local_steps(self, round: int) -> int:
        return 6


@pytest.mark.parametrize(
    ("replay", "batching", "settings", "message"),
    [
        (ReplayedStragglers(0.5), {}, {"sampler": UniformSampling()}, r"`sampler` must be RoundSeeded\(\) for ReplayedStragglers"),
        (ReplayedStragglers(0.0), {"epochs": None, "steps": 3}, {}, "must train for epochs.* has steps=3"),
        (ReplayedStragglers(0.0), {}, {"method": Sixes()}, "must train for epochs.* asks for 6 steps"),
        (ReplayedStragglers(0.5), {"epochs": 1}, {}, "`batching.epochs` of TensorData must be at least 2 .* but is 1"),
        (ReplayedStragglers(0.97, False), {}, {}, "At least one of the chosen clients must be active"),
    ],
)  # fmt: skip
def test_what_the_program_cannot_do_is_refused(replay, batching, settings, message) -> None:  # type: ignore[no-untyped-def]
    method = settings.pop("method", FedAvg())
    how = {"clients_per_round": 6, "stragglers": replay, "sampler": RoundSeeded(), **settings}
    with pytest.raises(ConfigurationError, match=message):
        fit(method, Classification(MLP(6, 3)), data(**batching), 1, **how)


def test_batches_alone_are_replayed_with_the_programs_clients_alone() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`sampler` must be RoundSeeded\(\) for ReplayedBatches, but is Uniform"
    ):
        Participation(data(), 6, UniformSampling(), batching_policy=ReplayedBatches())


def test_one_epoch_and_nobody_active_are_fine_where_the_program_is() -> None:
    run_of(data(epochs=1), 0.0).work(0)
    work = run_of(data(), 0.97).work(0)
    assert work.stragglers == 6
    assert len(work.steps) == len(work.clients) == 6


def replayed(rounds: int = 5, **options: Any) -> RoundState:
    """A run on six of the clients a round, half of them stragglers."""
    torch.manual_seed(0)
    model = Classification(MLP(6, 3, (8,)))
    how = {"clients_per_round": 6, "sampler": RoundSeeded(), "stragglers": ReplayedStragglers(0.5), **options}
    how["batching_policy"] = ReplayedBatches()
    return fit(FedProx(mu=0.1), model, data(), rounds, **how).state


def test_slots_resumption_and_the_seed_change_no_bit() -> None:
    reference = replayed().server.x
    assert torch.equal(reference, replayed(slots=3).server.x)
    assert torch.equal(reference, replayed(state=replayed(2)).server.x)
    assert torch.equal(reference, replayed(seed=7).server.x)


# -- the program's own numbers ----------------------------------------------------------------------------------------------
def replay(name: str, method: FedMethod, stragglers: ReplayedStragglers, rounds: int) -> None:
    model, kept = LogisticRegression(60, 10), Evaluations()
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(PROGRAM["kernel"].T))
        model.linear.bias.copy_(torch.from_numpy(PROGRAM["bias"]))
    how = {"clients_per_round": 10, "sampler": RoundSeeded(), "stragglers": stragglers}
    how |= {
        "batching_policy": ReplayedBatches(),
        "evaluate_every": 1,
        "evaluate_on": ("test", "train"),
        "callbacks": [kept],
    }
    task, data = Classification(model, 10), Synthetic(1.0, 1.0, seed=1)
    x = fit(method, task, data, rounds, **how).state.server.x.numpy()
    losses, accuracies = PROGRAM[f"{name}_loss"], PROGRAM[f"{name}_accuracy"]
    found = list(kept.at.values())
    assert len(found) == rounds + 1
    for row, loss in zip(found, losses, strict=False):  # after the last round the program prints no loss
        assert row["train_all/loss"] == pytest.approx(loss, abs=2e-6)
    for row, accuracy in zip(found, accuracies, strict=False):
        assert row["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)  # one example is 1e-3
    if rounds == len(losses):
        np.testing.assert_allclose(x[:600].reshape(10, 60).T, PROGRAM[f"{name}_kernel"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(x[600:], PROGRAM[f"{name}_bias"], rtol=0, atol=2e-6)


RUNS = [("fedprox", FedProx(lr=0.01, mu=1.0), ReplayedStragglers(0.5), 60), ("fedavg", FedAvg(lr=0.01), ReplayedStragglers(0.0, partial=False), 30)]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "stragglers", "rounds"), RUNS, ids=["fedprox", "fedavg"])
def test_the_first_rounds_of_the_program(
    name: str, method: FedMethod, stragglers: ReplayedStragglers, rounds: int
) -> None:
    replay(name, method, stragglers, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "stragglers", "rounds"), RUNS, ids=["fedprox", "fedavg"])
def test_all_rounds_of_the_program(name: str, method: FedMethod, stragglers: ReplayedStragglers, rounds: int) -> None:
    replay(name, method, stragglers, rounds)


# -- the curves -------------------------------------------------------------------------------------------------------------
REPLAYED = [name for name in CURVES if name.endswith("|repo") and "adaptive" not in name]
LOSS, ACCURACY = 2e-5, 1e-5  # the reference is rounded to 5e-6; one example is 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "1_1|fedavg|mu0|drop0.9|repo",
        "1_1|fedavg|mu0|drop0.5|repo",
        "1_1|fedprox|mu1|drop0.9|repo",
        pytest.param("1_1|feddane|mu1|drop0|repo", marks=pytest.mark.slow),
    ],
)
def test_twenty_rounds_of_the_curves(name: str) -> None:
    check_curve(name, 1, 20, LOSS, ACCURACY)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLAYED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_curves(name: str, seed: int) -> None:
    check_curve(name, seed, 20 if "feddane" in name else 200, LOSS, ACCURACY)
