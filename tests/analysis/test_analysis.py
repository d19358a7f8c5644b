"""The analyses: their numbers against closed forms on quadratics, and that they leave the run alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
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
    MethodError,
    ModelCheckpoint,
    Partition,
    Scaffold,
    SlotStrategy,
    State,
    Stragglers,
    TensorData,
)
from fedlightning.analysis import ClientOptima, Dissimilarity, LossLandscape, PartitionReport, UpdateAngles
from fedlightning.analysis.angles import UpdateSums, angle, clamp, layer_slices
from fedlightning.analysis.gradients import GradientSums, client_objective, mean_losses
from fedlightning.analysis.lbfgs import minimise
from fedlightning.analysis.partition import effective_classes
from fedlightning.analysis.plane import Plane, principal_plane
from fedlightning.datasets import FakeImages
from fedlightning.execution.model import Replica
from fedlightning.layout import Layout
from fedlightning.loggers import run_loggers
from fedlightning.methods import FedDane
from fedlightning.models import MLP
from fedlightning.participation import FixedSchedule
from fedlightning.testing import Quadratics

SIZES, START, ETA, STEPS = [3, 5, 11, 20], [1.0, -1.0, 0.5], 0.05, 3
ANALYSES: list[Callable[[], Callback]] = [
    Dissimilarity,
    lambda: UpdateAngles(every=1),
    lambda: ClientOptima(every=1, passes=5),
    lambda: LossLandscape(resolution=3),
    PartitionReport,
]


class Trace(Callback):
    """The global model before each round, and what was logged after it."""

    def __init__(self) -> None:
        self.models: list[Tensor] = []
        self.logged: list[dict[str, float]] = []

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self.models.append(trainer.state.server.x.clone())

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        self.models.append(trainer.state.server.x.clone())
        self.logged.append({k: v for k, v in metrics.items() if not k.startswith("throughput") and "seconds" not in k})


def problem() -> tuple[Quadratics, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    roots = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in SIZES]
    curvatures = [root @ root.T + torch.eye(3) for root in roots]
    optima = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in SIZES]
    return Quadratics(curvatures, optima, SIZES, steps=STEPS), curvatures, optima


def updates(x: Tensor, steps: int = STEPS) -> list[Tensor]:
    """What each client does from x: −(I − (I − ηA)^K)(x − b)."""
    _, curvatures, optima = problem()
    unit = torch.eye(3, dtype=torch.float64)
    left = [torch.linalg.matrix_power(unit - ETA * a, steps) for a in curvatures]
    return [(p - unit) @ (x - b) for p, b in zip(left, optima, strict=True)]


def trainer_of(rounds: int, *callbacks: Callback, slots: int = 1, logger: Any = False, **options: Any) -> FederatedTrainer:  # fmt: skip
    strategy = SlotStrategy([f"cpu/{i}" for i in range(slots)], runner="loop")
    return FederatedTrainer(rounds, strategy=strategy, callbacks=callbacks, logger=logger, **options)


def on_quadratics(rounds: int, *callbacks: Callback, method: FedMethod | None = None, **options: Any) -> FederatedTrainer:  # fmt: skip
    trainer = trainer_of(rounds, *callbacks, **options)
    trainer.fit(method or FedAvg(lr=ETA), Quadratics.task(START), problem()[0])
    return trainer


def images() -> tuple[FakeImages, Classification]:
    torch.manual_seed(0)
    data = FakeImages(
        "A1d00C6", shape=(3, 16, 16), classes=3, num_train=120, num_test=20, batching=Batching(8), augment=True
    )
    return data, Classification(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), MLP(768, 3)), 3)


# -- all of them --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", ANALYSES)
def test_the_run_s_numbers_are_left_alone(make: Callable[[], Callback], tmp_path: Path) -> None:
    """A method with memory, dropout, augmentation and partial participation; also every other logged number."""
    runs = []
    for callbacks in ([], [make()]):
        data, task = images()
        before, trace = torch.get_rng_state(), Trace()
        logger = run_loggers(tmp_path, f"run{len(runs)}")
        trainer = trainer_of(3, *callbacks, trace, slots=2, clients_per_round=3, logger=logger)
        trainer.fit(Scaffold(lr=0.05), task, data)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append((trainer.state, trace))
    (plain, without), (measured, along) = runs
    assert torch.equal(plain.server.x, measured.server.x)
    assert torch.equal(plain.server.c, measured.server.c)
    assert plain.memory.rows().keys() == measured.memory.rows().keys()
    for client, row in plain.memory.rows().items():
        assert torch.equal(row.c, measured.memory.rows()[client].c)
    for one, other in zip(without.logged, along.logged, strict=True):
        assert {name: other[name] for name in one} == one


def test_the_same_bits_for_any_number_of_slots() -> None:
    found = []
    for slots in (1, 3):
        data, task = images()
        landscape = LossLandscape(resolution=3)
        trace = Trace()
        looks = [Dissimilarity(), UpdateAngles(every=1), ClientOptima(passes=8), PartitionReport(), landscape, trace]
        trainer_of(2, *looks, slots=slots, clients_per_round=3).fit(FedAvg(lr=0.05), task, data)
        assert landscape.landscape
        found.append((trace.logged, landscape.landscape))
    assert found[0][0] == found[1][0]
    assert "optima/gap" in found[0][0][-1]
    assert torch.equal(found[0][1].losses, found[1][1].losses)
    assert torch.equal(found[0][1].server, found[1][1].server)


def test_the_folder_holds_a_picture_of_each_and_tensorboard_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    looks = [make() for make in ANALYSES]
    trainer = on_quadratics(2, *looks, logger=run_loggers(tmp_path, "run"))
    names = ["angles", "landscape", "optima", "partition"]
    assert sorted(path.stem for path in trainer.log_dir.glob("*.png")) == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in trainer.log_dir.glob("*.png"))
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert sorted(events.Tags()["images"]) == names
    assert {name: events.Images(name)[0].step for name in names} == {"angles": 2, "landscape": 2, "optima": 2, "partition": 0}  # fmt: skip


@pytest.mark.parametrize("make", ANALYSES[1:])
def test_axes_have_labels_and_titles(make: Callable[[], Any]) -> None:
    look = make()
    on_quadratics(2, look)
    for axes in look.figure.axes:
        assert axes.get_ylabel() or axes.get_xlabel()
    assert any(axes.get_title() for axes in look.figure.axes) or isinstance(look, PartitionReport)


def test_without_a_logger_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_quadratics(1, *(make() for make in ANALYSES))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpdateAngles(every=0), "`every` of UpdateAngles must be at least 1, but is 0"),
        (lambda: ClientOptima(passes=0), "`passes` of ClientOptima must be at least 1, but is 0"),
        (lambda: ClientOptima(tolerance=0.0), r"`tolerance` of ClientOptima must be in \(0, inf\), but is 0"),
        (lambda: LossLandscape(resolution=1), "`resolution` of LossLandscape must be at least 2, but is 1"),
        (lambda: LossLandscape(clients=-1), "`clients` of LossLandscape must be at least 0, but is -1"),
    ],
)
def test_numbers_are_checked(make: Callable[[], Callback], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


# -- heterogeneity ------------------------------------------------------------------------------------------------------
def test_heterogeneity_and_diversity_by_their_definitions() -> None:
    _, curvatures, optima = problem()
    trace = Trace()
    on_quadratics(2, Dissimilarity(), trace)
    for x, logged in zip(trace.models[1:], trace.logged, strict=True):
        gradients = torch.stack([a @ (x - b) for a, b in zip(curvatures, optima, strict=True)])
        shares = torch.tensor(SIZES, dtype=torch.float64) / sum(SIZES)
        mean = shares @ gradients
        zeta = float(shares @ (gradients - mean).square().sum(1))
        assert logged["dissimilarity/heterogeneity"] == pytest.approx(zeta, rel=1e-12)
        assert logged["dissimilarity/relative_heterogeneity"] == pytest.approx(zeta / float(mean @ mean), rel=1e-12)
        local = float(shares @ gradients.square().sum(1))
        assert logged["dissimilarity/diversity"] == pytest.approx(local / float(mean @ mean), rel=1e-12)


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [([0.0, 0.0], (0, 0, 1)), ([1.0, -1.0], (1, math.inf, math.inf)), ([2.0, 2.0], (0, 0, 1))],
)
def test_heterogeneity_at_the_edges(gradients: list[float], expected: tuple[float, ...]) -> None:
    sums = GradientSums(1, torch.device("cpu"))
    for gradient in gradients:
        sums.add(torch.tensor([gradient], dtype=torch.float64), 4)
    assert (sums.heterogeneity, sums.relative_heterogeneity, sums.diversity) == expected


# -- angles -------------------------------------------------------------------------------------------------------------
def degrees(a: Tensor, b: Tensor) -> float:
    return math.degrees(math.acos(float(a @ b / a.norm() / b.norm())))


def pairwise(vectors: list[Tensor]) -> float:
    pairs = [(u, v) for i, u in enumerate(vectors) for v in vectors[:i]]
    return sum(float(u @ v / u.norm() / v.norm()) for u, v in pairs) / len(pairs)


def test_angles_against_the_closed_form() -> None:
    schedule = ((0, 2), (1, 3), (0, 1), (2, 3), (0, 3))
    trace = Trace()
    on_quadratics(5, UpdateAngles(every=2), trace, sampler=FixedSchedule(schedule), clients_per_round=2)
    assert ["angles/degrees" in logged for logged in trace.logged] == [True, False, True, False, True]
    for t in (0, 2, 4):
        u, logged = updates(trace.models[t]), trace.logged[t]
        mean = [sum(SIZES[i] * u[i] for i in c) / sum(SIZES[i] for i in c) for c in (schedule[t], range(4))]
        assert logged["angles/degrees"] == pytest.approx(degrees(*mean), rel=1e-9)
        assert logged["angles/cosine"] == pytest.approx(math.cos(math.radians(degrees(*mean))), rel=1e-12)
        assert logged["angles/norm_ratio"] == pytest.approx(float(mean[0].norm() / mean[1].norm()), rel=1e-12)
        assert logged["angles/pairwise_all"] == pytest.approx(pairwise(u), rel=1e-10)
        assert logged["angles/pairwise_participants"] == pytest.approx(pairwise([u[i] for i in schedule[t]]), rel=1e-10)


def test_with_all_clients_the_angle_is_zero() -> None:
    trace = Trace()
    on_quadratics(2, UpdateAngles(every=1), trace, method=FedDane(lr=0.01))
    for logged in trace.logged:
        assert (logged["angles/degrees"], logged["angles/norm_ratio"]) == (0, 1)


def test_stragglers_do_their_part_in_the_trial() -> None:
    """With all clients taking part the trial is the round, stragglers or not."""
    trace = Trace()
    on_quadratics(3, UpdateAngles(every=1), trace, stragglers=Stragglers(0.5))
    assert [logged["angles/degrees"] for logged in trace.logged] == [0, 0, 0]
    assert any(abs(float((b - a).norm() / (torch.stack(updates(a)).T @ torch.tensor(SIZES).double() / sum(SIZES)).norm()) - 1) > 1e-3 for a, b in zip(trace.models, trace.models[1:], strict=False))  # fmt: skip


def test_layers_by_definition() -> None:
    layout = Layout.of(Classification(MLP(4, 3), 3))
    slices = layer_slices(layout)
    assert len(slices) == len(layout.names) // 2
    assert sum(place.stop - place.start for place in slices.values()) == layout.size
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(layout.size, generator=generator, dtype=torch.float64) for _ in range(3)]
    sums = UpdateSums(layout.size, slices)
    for vector in vectors:
        sums.add(vector, 2.0)
    for name, place in slices.items():
        assert sums.pairwise(name) == pytest.approx(pairwise([v[place] for v in vectors]), rel=1e-10)
    assert sums.pairwise() == pytest.approx(pairwise(vectors), rel=1e-10)
    last = next(iter(slices))
    still = torch.zeros(layout.size, dtype=torch.float64)
    sums.add(still, 1.0)
    assert sums.pairwise(last) == pytest.approx(pairwise([v[slices[last]] for v in vectors]), rel=1e-10)


def test_angles_at_the_edges() -> None:
    a = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert angle(a, 3 * a) == (1, 0)
    assert angle(a, -a) == (-1, 180)
    assert angle(a, a + torch.tensor([0, 1e-12, 0]))[1] == pytest.approx(math.degrees(1e-12), rel=1e-9)
    assert all(math.isnan(value) for value in angle(a, 0 * a))
    assert (clamp(1 + 1e-15), clamp(-1 - 1e-15)) == (1, -1)
    sums = UpdateSums(3, {})
    sums.add(a, 1.0)
    assert math.isnan(sums.pairwise())


def test_a_method_without_a_delta_is_named() -> None:
    class Silent(FedAvg):
        def on_client_end(self, local: State, client: Any) -> tuple[State, State]:
            return State(model=local.w), client.state

        def on_aggregate(self, server: State, mean: State, round: Any) -> State:
            return server.replace(x=mean.model)

    with pytest.raises(MethodError, match="`Silent` must upload `delta` for UpdateAngles, but uploads model; add"):
        on_quadratics(1, UpdateAngles(), method=Silent())


def test_a_trial_belongs_to_the_start_of_a_round() -> None:
    class Late(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
            trainer.trial([0], lambda cohort: None)

    with pytest.raises(
        ConfigurationError, match=r"`trial` must be called in a callback's `on_round_start`, but no round"
    ):
        on_quadratics(1, Late())


def test_a_resumed_run_draws_all_angles(tmp_path: Path) -> None:
    def run(name: str, rounds: int, ckpt_path: Path | None = None) -> tuple[list[dict[str, str]], UpdateAngles]:
        look = UpdateAngles(every=2)
        logger = run_loggers(tmp_path, name)
        trainer = trainer_of(rounds, look, ModelCheckpoint(), logger=logger, clients_per_round=2)
        trainer.fit(FedAvg(lr=ETA), Quadratics.task(START), problem()[0], ckpt_path=ckpt_path)
        rows = list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))
        return [row for row in rows if row["angles/degrees"]], look

    whole, look = run("whole", 5)
    run("cut", 3)
    rest, resumed = run("cut", 5, tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert [row["step"] for row in whole] == ["1", "3", "5"]
    assert [row["angles/degrees"] for row in rest] == [row["angles/degrees"] for row in whole]
    assert resumed.state_dict() == look.state_dict()


# -- optima -------------------------------------------------------------------------------------------------------------
def test_optima_against_the_closed_form() -> None:
    _, curvatures, optima = problem()
    trace = Trace()
    on_quadratics(3, ClientOptima(every=2, tolerance=1e-9), trace, clients_per_round=2)
    assert ["optima/gap" in logged for logged in trace.logged] == [False, True, True]
    for t in (1, 2):
        x, logged = trace.models[t + 1], trace.logged[t]
        distances = torch.stack([(x - b).norm() for b in optima])
        pairs = torch.stack([(b - c).norm() for i, b in enumerate(optima) for c in optima[:i]])
        for name, values in (("distance", distances), ("pairwise", pairs)):
            assert logged[f"optima/{name}_mean"] == pytest.approx(float(values.mean()), rel=1e-8)
            for q in (10, 50, 90):
                assert logged[f"optima/{name}_p{q}"] == pytest.approx(float(values.quantile(q / 100)), rel=1e-8)
        losses = [n / sum(SIZES) * float((x - b) @ a @ (x - b)) / 2 for n, a, b in zip(SIZES, curvatures, optima, strict=True)]  # fmt: skip
        assert logged["optima/gap"] == pytest.approx(sum(losses), rel=1e-12)
        assert logged["optima/local_loss"] == pytest.approx(0, abs=1e-15)
        assert logged["optima/converged"] == 1


def test_at_the_minimiser_the_gap_is_the_floor() -> None:
    _, curvatures, optima = problem()
    shares = [n / sum(SIZES) for n in SIZES]
    whole = sum(p * a for p, a in zip(shares, curvatures, strict=True))
    x = torch.linalg.solve(whole, sum(p * a @ b for p, a, b in zip(shares, curvatures, optima, strict=True)))
    floor = sum(p * float((x - b) @ a @ (x - b)) / 2 for p, a, b in zip(shares, curvatures, optima, strict=True))
    method = Scaffold(lr=ETA, weighting="examples")
    found = on_quadratics(120, ClientOptima(tolerance=1e-9), method=method, evaluate_every=0).metrics
    assert found["optima/gap"] == pytest.approx(floor, rel=1e-9)
    assert floor > 0.1


def test_optima_of_a_sample_and_of_a_budget() -> None:
    found = on_quadratics(1, ClientOptima(num_clients=1, passes=2, tolerance=1e-9)).metrics
    assert found["optima/converged"] == 0
    assert "optima/pairwise_mean" not in found
    assert found["optima/gap"] > 0
    with pytest.raises(ConfigurationError, match=r"`num_clients` of ClientOptima must be in 1…4, but is 5"):
        on_quadratics(1, ClientOptima(num_clients=5))


def test_losses_without_dropout_or_augmentation() -> None:
    """By plain autograd on the task in evaluation mode; and it trains again afterwards."""
    data, task = images()
    data.setup()
    layout = Layout.of(task)
    replica, x, buffers = Replica(task, layout, torch.device("cpu")), layout.read(task), torch.zeros(0).double()
    plain = task.with_parameters(x).eval()
    index = data.clients.client(0)
    loss = plain.loss((data.preprocess(data.train.inputs[index]), data.train.targets[index])).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(plain.parameters()))])
    with client_objective(replica, data, data.train, 0, x, buffers, 7) as objective:
        value, gradient = objective(x.double())
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(gradient, expected.double(), rtol=1e-4, atol=1e-6)
    assert mean_losses(replica, data, data.train, index, [x, x + 0.1], buffers, 7)[0] == pytest.approx(value, rel=1e-5)
    assert all(module.training for module in replica.task.modules())


def rosenbrock(w: Tensor) -> tuple[float, Tensor]:
    x, y = w.tolist()
    gradient = torch.tensor([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)], dtype=torch.float64)
    return 100 * (y - x * x) ** 2 + (1 - x) ** 2, gradient


def test_the_minimiser_on_rosenbrock_s_valley() -> None:
    found = minimise(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), 1e-9, 200, 1e-15)
    assert found.gradient_norm <= 1e-9
    assert found.passes < 100
    assert found.point.tolist() == pytest.approx([1, 1], abs=1e-8)
    assert found.start == pytest.approx(24.2)


@pytest.mark.parametrize("passes", [1, 2, 7])
def test_the_minimiser_keeps_to_its_budget(passes: int) -> None:
    calls = []

    def counted(w: Tensor) -> tuple[float, Tensor]:
        calls.append(w)
        return rosenbrock(w)

    found = minimise(counted, torch.tensor([-1.2, 1.0], dtype=torch.float64), 1e-9, passes, 1e-15)
    assert len(calls) == found.passes == passes
    assert found.value == rosenbrock(found.point)[0] <= found.start


# -- the landscape --------------------------------------------------------------------------------------------------------
def test_the_landscape_s_losses_and_paths() -> None:
    """Every loss of the grid, and every point that is drawn, in closed form."""
    _, curvatures, optima = problem()
    look, trace = LossLandscape(every=1, clients=2, resolution=4), Trace()
    on_quadratics(3, look, trace)
    found = look.landscape
    assert found
    assert torch.equal(found.plane.origin, trace.models[-1])
    unit = found.plane.directions @ found.plane.directions.T
    assert torch.allclose(unit, torch.eye(2, dtype=torch.float64), atol=1e-14)
    for i, b in enumerate(found.b):
        for j, a in enumerate(found.a):
            x = found.plane.origin + a * found.plane.directions[0] + b * found.plane.directions[1]
            f = [
                float((x - o) @ c @ (x - o)) / 2 * n / sum(SIZES)
                for c, o, n in zip(curvatures, optima, SIZES, strict=True)
            ]
            assert float(found.losses[i, j]) == pytest.approx(sum(f), rel=1e-12)
    solved = torch.linalg.lstsq(found.plane.directions.T, (torch.stack(trace.models) - found.plane.origin).T).solution.T
    assert torch.allclose(found.server, solved, atol=1e-13)
    assert [t for t, *_ in found.clients] == [1, 1, 2, 2, 3, 3]
    for t, client, ends in found.clients:
        x = trace.models[t - 1]
        assert torch.allclose(ends, found.plane.project(torch.stack([x, x + updates(x)[client]])), atol=1e-13)
    everything = torch.cat([found.server, *(ends for *_, ends in found.clients)])
    for axis, values in enumerate((found.a, found.b)):
        assert values[0] < everything[:, axis].min() < everything[:, axis].max() < values[-1]


def test_the_landscape_s_examples_are_a_fixed_sample() -> None:
    losses = []
    for _ in range(2):
        look = LossLandscape(resolution=2, num_examples=5, batch_size=2)
        on_quadratics(1, look)
        assert look.landscape
        losses.append(look.landscape.losses)
    assert torch.equal(*losses)
    look = LossLandscape(resolution=2, num_examples=5)
    on_quadratics(1, look, seed=3)
    assert look.landscape
    assert not torch.equal(look.landscape.losses, losses[0])


def test_the_path_has_few_points_and_its_end() -> None:
    look = LossLandscape(every=3, clients=0, resolution=2)
    on_quadratics(7, look)
    assert look.landscape
    assert len(look.landscape.server) == 4  # the start, 3, 6 and 7
    assert look.landscape.server[-1].tolist() == [0, 0]


def test_a_run_that_is_stopped_ends_its_path() -> None:
    class Stop(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
            trainer.should_stop = trainer.round == 2

    look, trace = LossLandscape(every=5, clients=0, resolution=2), Trace()
    on_quadratics(9, look, Stop(), trace)
    assert look.landscape
    assert torch.equal(look.landscape.plane.origin, trace.models[2])
    assert len(look.landscape.server) == 2


def test_given_directions_are_made_orthonormal() -> None:
    first, second = torch.tensor([2.0, 0, 0]), torch.tensor([5.0, 0, 3.0])
    look = LossLandscape(directions=(first, second), resolution=2, clients=0)
    on_quadratics(1, look)
    assert look.landscape
    assert look.landscape.plane.directions.tolist() == [[1, 0, 0], [0, 0, 1]]
    for given, message in (
        ((first, 2 * first), "linearly dependent"),
        ((first, first[:2]), r"must be two vectors \[3\]"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            on_quadratics(1, LossLandscape(directions=given))


def test_the_principal_plane() -> None:
    """A path in a plane is found whole; on a line the other direction is orthogonal, and chosen by the seed."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q.T
    path = torch.randn(5, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0]) @ basis
    plane = principal_plane(path, seed=0)
    assert torch.allclose(torch.stack([plane.point(c) for c in plane.project(path)]), path, atol=1e-13)
    assert sum(share or 0 for share in plane.shares) == pytest.approx(1)
    assert plane.shares[0] >= plane.shares[1]  # type: ignore[operator]
    line = torch.arange(3, dtype=torch.float64)[:, None] * basis[0]
    planes = [principal_plane(line, seed) for seed in (0, 0, 1)]
    assert torch.equal(planes[0].directions, planes[1].directions)
    assert not torch.equal(planes[0].directions, planes[2].directions)
    for found in planes:
        assert torch.allclose(found.directions @ found.directions.T, torch.eye(2, dtype=torch.float64), atol=1e-14)
        assert torch.allclose(torch.stack([found.point(c) for c in found.project(line)]), line, atol=1e-13)
    still = principal_plane(torch.ones(2, 3, dtype=torch.float64), 0)
    assert still.project(torch.ones(2, 3)).tolist() == [[0, 0], [0, 0]]
    one = principal_plane(torch.tensor([[1.0], [3.0]], dtype=torch.float64), 0)
    assert one.project(torch.tensor([[2.0]])).tolist() == [[-1, 0]]
    assert isinstance(one, Plane)


# -- the partition ------------------------------------------------------------------------------------------------------
def test_the_partition_s_numbers() -> None:
    targets = torch.tensor([7, 7, 7, 7, 9, 9, 7, 9, 9, 9])  # classes need not begin at 0
    clients = Partition.of([torch.arange(4), torch.tensor([4, 6]), torch.tensor([5, 7, 8, 9])])
    data = TensorData(Examples(torch.randn(10, 4), targets), clients, batching=Batching(2))
    trainer = trainer_of(1, PartitionReport())
    trainer.fit(FedAvg(), Classification(MLP(4, 10), 10), data)
    found = {name.removeprefix("partition/"): value for name, value in trainer.metrics.items() if "partition/" in name}
    assert found == {
        "clients": 3, "examples": 10, "size_mean": pytest.approx(10 / 3), "size_std": pytest.approx(math.sqrt(8 / 9)),
        "size_min": 2, "size_max": 4, "effective_classes_min": 1, "effective_classes_max": pytest.approx(2),
        "effective_classes_mean": pytest.approx(4 / 3), "effective_classes_pooled": pytest.approx(2),
    }  # fmt: skip
    shares = effective_classes(torch.tensor([[3, 1, 0]]))
    assert float(shares) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_targets_that_are_no_labels_leave_the_sizes() -> None:
    look = PartitionReport()
    found = on_quadratics(1, look).metrics
    assert found["partition/size_max"] == 20
    assert not [name for name in found if "classes" in name]
    assert look.figure
    assert len(look.figure.axes) == 1


def test_matplotlib_is_asked_for_before_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    for make in ANALYSES[1:]:
        with pytest.raises(
            ConfigurationError, match=r"draws with matplotlib, but it cannot be imported; run `pip install"
        ):
            on_quadratics(1, make())
