"""The methods that act on the server, in float64, against numbers obtained independently of this library."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import A, B, N, minimiser, run
from torch import Tensor

from fedlightning import Callback, ConfigurationError, FederatedTrainer, FedMethod, Round, SlotStrategy, State
from fedlightning.methods import (
    MPX,
    FedAdagrad,
    FedAdam,
    FedAMS,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedExP,
    FedGM,
    FedMPX,
    FedNova,
    FedYogi,
    Scaffold,
)
from fedlightning.testing import Quadratics, check_method

FEDAVG_W = (-0.050851608610, 0.796612774158)  # where FedAvg and every optimizer over its mean come to rest


class AdamScaffold(FedAdam, Scaffold):
    """A server optimizer over SCAFFOLD's mean."""


class MPXAvg(MPX, FedAvg):
    """The identity."""


class AutonomousGM(FedNova, FedGM):
    """General momentum of normalised updates."""


class Iterates(Callback):
    """Keeps the global model after each round."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        self.x.append(trainer.state.server.x)


class UnequalQuadratics(Quadratics):
    """Client i takes `unequal[i]` local steps."""

    unequal = (2, 5, 9)

    def num_steps(self, client: int, steps: int | None = None) -> int:
        return self.unequal[client]


def iterates(method: FedMethod, rounds: int, cohort_size: int = 1, slots: int = 1) -> list[Tensor]:
    """x_1, x_2, … on problem Q3."""
    kept, strategy = Iterates(), SlotStrategy(slots, cohort_size=cohort_size)
    trainer = FederatedTrainer(rounds, strategy=strategy, callbacks=[kept], logger=False, evaluate_every=0)
    trainer.fit(method, Quadratics.task([1.0, 1.0]), Quadratics(A, B, N))
    return kept.x


def feed(method: FedMethod, deltas: Sequence[Tensor], **also: Sequence[Tensor]) -> Tensor:
    """The server alone: what becomes of x = 1 after these mean updates."""
    server = method.configure_server(torch.ones_like(deltas[0]))
    for t, delta in enumerate(deltas):
        mean = State(delta=delta, **{name: values[t] for name, values in also.items()})
        server = method.on_aggregate(server, mean, Round(t, 3, 3, method.lr))
    return server.x


def close(actual: Tensor, expected: Tensor | Sequence[float], atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def sequences(least: int = 1) -> Any:
    """Several mean updates of one dimension."""
    return st.builds(
        lambda seed, rounds, dim: list(
            torch.randn(rounds, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        ),
        st.integers(0, 10**6),
        st.integers(least, 8),
        st.integers(1, 20),
    )


# -- problem Q3 -----------------------------------------------------------------------------------------------------------
ADAPTIVE = {"server_lr": 0.1, "tau": 1e-3}
W = {"weighting": "examples"}
GOLDEN: dict[str, tuple[FedMethod, list[tuple[float, float]]]] = {
    "FedAvgM": (FedAvgM(beta=0.9), [(0.344725312500, 0.973869062500), (-0.485173350538, 0.893907728915), (-0.949517342471, 0.748801040741)]),
    "FedGM": (FedGM(beta=0.9, nu=0.9, **W), [(0.875497809375, 0.995035121875), (0.712904318142, 0.986859354673), (0.528480127832, 0.975031843272)]),
    "FedExP": (FedExP(eps=1e-3), [(0.339950665368, 0.929103203044), (-1.923480297294, -0.391520321674), (-0.624665985227, 0.133005877692)]),
    "FedAdam": (FedAdam(**ADAPTIVE), [(0.901514320748, 0.931163998770), (0.768779507475, 0.867293100111), (0.614942616625, 0.864100471998)]),
    "FedAdam corrected": (FedAdam(v_init=0.0, bias_correction=True, **ADAPTIVE), [(0.900152375220, 0.903685829139), (0.800632786595, 0.875186637968), (0.701756957743, 0.890027430156)]),
    "FedYogi": (FedYogi(**ADAPTIVE), [(0.901514433680, 0.931196398992), (0.769138820761, 0.867526296422), (0.616175951365, 0.864125978957)]),
    "FedAdagrad": (FedAdagrad(**ADAPTIVE), [(0.900152491311, 0.903753683132), (0.832820122574, 0.943935216728), (0.780000716956, 0.909327237999)]),
    "FedAMS": (FedAMS(**ADAPTIVE), [(0.901514320748, 0.931163998770), (0.768779507475, 0.867516398424), (0.614942926328, 0.864086006060)]),
    "FedMPX": (FedMPX(mpx=0.5, **ADAPTIVE), [(0.623119816624, 0.952516530635), (0.349573668136, 0.886036194888), (0.154613887634, 0.819016421754)]),
    "FedNova": (FedNova(), [(0.344725312500, 0.973869062500), (0.104573868212, 0.917425572665), (0.013527754123, 0.871565381819)]),
}  # fmt: skip


@pytest.mark.parametrize(("cohort_size", "slots"), [(1, 1), (1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str, cohort_size: int, slots: int) -> None:
    method, expected = GOLDEN[name]
    for x, numbers in zip(iterates(method, 3, cohort_size, slots), expected, strict=True):
        close(x, numbers, atol=1e-9)


def test_fedexp_takes_the_golden_steps() -> None:
    """η_g = (x_{t+1} − x_t) / Δ̄, where Δ̄ is what FedAvg does from x_t."""
    x = [torch.ones(2, dtype=torch.float64), *iterates(FedExP(), 3)]
    for before, after, step in zip(x, x[1:], (1.416917529638, 37.411391639655, 1.0), strict=False):
        trainer = FederatedTrainer(1, callbacks=[], logger=False, evaluate_every=0)
        plain = trainer.fit(FedAvg(weighting="uniform"), Quadratics.task(before.tolist()), Quadratics(A, B, N))
        close((after - before) / (plain.server.x - before), [step, step], atol=1e-8)


def test_fedexp_takes_a_whole_step_where_no_client_moves() -> None:
    """Without ε the quotient is 0 / 0 at a common optimum."""
    start = B[0].tolist()
    crowd = Quadratics([A[0]] * 2, [B[0]] * 2, [N[0]] * 2)
    trainer = FederatedTrainer(2, callbacks=[], logger=False, evaluate_every=0)
    close(trainer.fit(FedExP(eps=0.0), Quadratics.task(start), crowd).server.x, start)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_fedexp_is_evaluated_at_the_average_of_the_last_two_iterates(rounds: int) -> None:
    x = [torch.ones(2, dtype=torch.float64), *iterates(FedExP(), rounds)][-2:]
    trainer = FederatedTrainer(rounds, callbacks=[], logger=False, evaluate_on=("train",))
    state = trainer.fit(FedExP(), Quadratics.task([1.0, 1.0]), Quadratics(A, B, N))
    middle = FedExP().evaluation_point(state.server)
    close(middle, (x[0] + x[1]) / 2)
    losses = [(middle - b) @ a.double() @ (middle - b) / 2 for a, b in zip(A, B, strict=True)]
    assert trainer.metrics["train_all_clients/loss_mean"] == pytest.approx(float(sum(losses)) / 3, abs=1e-9)


@pytest.mark.parametrize(
    "method",
    [FedAvgM(beta=0.5), FedGM(beta=0.5, **W), MPXAvg(), FedNova(), FedAvgM(beta=0.5, nesterov=True)],
    ids=lambda method: type(method).__name__,
)
def test_server_momentum_comes_to_rest_where_fedavg_does(method: FedMethod) -> None:
    close(run(method, 120), FEDAVG_W, atol=1e-9)


SERVERS = [FedAvgM(), FedGM(**W), FedAdam(), FedYogi(), FedAdagrad(), FedAMS(), FedAMS(option=1), FedMPX(), FedExP(**W)]


@pytest.mark.parametrize("method", SERVERS, ids=lambda method: type(method).__name__)
@settings(max_examples=5, deadline=None)
@given(dim=st.integers(1, 20), steps=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_fixed_point_of_fedavg_is_that_of_a_server_optimizer(
    method: FedMethod, dim: int, steps: int, seed: int
) -> None:
    """Σ p_i M_i (x − b_i) = 0 with M_i = I − (I − η A_i)^K."""
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(dim, dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    curvatures = [r @ r.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64) for r in roots]
    optima = [torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    fixed = rest(curvatures, optima, [20, 30, 50], 0.05, [steps] * 3)
    trainer = FederatedTrainer(2, callbacks=[], logger=False, evaluate_every=0)
    method = type(method)(**{**vars(method), "lr": 0.05})
    after = trainer.fit(method, Quadratics.task(fixed.tolist()), Quadratics(curvatures, optima, [20, 30, 50], steps))
    close(after.server.x, fixed, atol=1e-9)


def rest(
    curvatures: Sequence[Tensor], optima: Sequence[Tensor], sizes: Sequence[int], lr: float, steps: Sequence[int],
    nova: bool = False,
) -> Tensor:  # fmt: skip
    """Where FedAvg, or FedNova, comes to rest when client i takes K_i steps."""
    eye = torch.eye(len(optima[0]), dtype=torch.float64)
    maps = [
        n / (k if nova else 1) * (eye - torch.linalg.matrix_power(eye - lr * a.double(), k))
        for n, a, k in zip(sizes, curvatures, steps, strict=True)
    ]
    return torch.linalg.solve(torch.stack(maps).sum(0), sum(m @ b.double() for m, b in zip(maps, optima, strict=True)))


# -- identities -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "same"),
    [
        (FedAvgM(beta=0.0), FedAvg()),
        (FedAvgM(beta=0.0, nesterov=True), FedAvg()),
        (FedGM(nu=0.0, beta=0.4, **W), FedAvg()),
        (FedExP(eps=1e9, **W), FedAvg()),
        (FedExP(eps=1e9), FedAvg(weighting="uniform")),
    ],
)
def test_identities_hold_bit_for_bit(method: FedMethod, same: FedMethod) -> None:
    assert torch.equal(run(method, 3), run(same, 3))


@pytest.mark.parametrize(
    ("method", "same"),
    [
        (FedGM(beta=0.0, nu=0.3, **W), FedAvg()),
        (FedGM(beta=0.8, nu=1.0, server_lr=0.7 / 0.2, **W), FedAvgM(beta=0.8, server_lr=0.7)),
        (FedGM(beta=0.8, nu=0.8, server_lr=0.7 / 0.2, **W), FedAvgM(beta=0.8, server_lr=0.7, nesterov=True)),
        (FedGM(stages=((2, 1.0, 0.9, 0.9),), beta=0.1, **W), FedGM(beta=0.9, nu=0.9, **W)),
        (FedNova(server_lr=0.8), FedAvg(server_lr=0.8)),
        (AutonomousGM(beta=0.6), FedGM(beta=0.6)),
        (MPXAvg(mpx=0.7), FedAvg()),
        (FedMPX(mpx=0.0), FedAvg()),
        (FedMPX(mpx=1e15, **ADAPTIVE), FedAdam(**ADAPTIVE)),
    ],
)
def test_identities_hold_to_rounding(method: FedMethod, same: FedMethod) -> None:
    close(run(method, 4), run(same, 4))


def test_adaptivity_vanishes_as_tau_grows() -> None:
    for method in (
        FedAdam(beta1=0.0, tau=1e9, server_lr=1e9, v_init=0.0),
        FedAdagrad(tau=1e9, server_lr=1e9, v_init=0.0),
    ):
        close(run(method, 3), run(FedAvg(), 3), atol=1e-8)


# -- the server alone -----------------------------------------------------------------------------------------------------
def reference(optimizer: Callable[..., torch.optim.Optimizer], deltas: Sequence[Tensor], **options: Any) -> Tensor:
    """What one of torch's optimizers makes of x = 1 and the gradients −Δ̄."""
    x = torch.nn.Parameter(torch.ones_like(deltas[0]))
    server = optimizer([x], **options)
    for delta in deltas:
        x.grad = -delta
        server.step()
    return x.detach()


@settings(max_examples=20, deadline=None)
@given(deltas=sequences(), beta=st.floats(0, 0.99), lr=st.floats(0.01, 2))
def test_server_momentum_is_that_of_torch(deltas: list[Tensor], beta: float, lr: float) -> None:
    heavy = feed(FedAvgM(beta=beta, server_lr=lr), deltas)
    close(heavy, reference(torch.optim.SGD, deltas, lr=lr, momentum=beta))
    if beta > 0:
        nesterov = feed(FedAvgM(beta=beta, server_lr=lr, nesterov=True), deltas)
        close(nesterov, reference(torch.optim.SGD, deltas, lr=lr, momentum=beta, nesterov=True))


@settings(max_examples=20, deadline=None)
@given(deltas=sequences(), betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)), tau=st.floats(1e-4, 1))
def test_adaptive_servers_are_those_of_torch(deltas: list[Tensor], betas: tuple[float, float], tau: float) -> None:
    options = {"server_lr": 0.1, "tau": tau, "v_init": 0.0}
    corrected = {**options, "beta1": betas[0], "beta2": betas[1], "bias_correction": True}
    adam = reference(torch.optim.Adam, deltas, lr=0.1, betas=betas, eps=tau)
    ams = reference(torch.optim.Adam, deltas, lr=0.1, betas=betas, eps=tau, amsgrad=True)
    adagrad = reference(torch.optim.Adagrad, deltas, lr=0.1, eps=tau, initial_accumulator_value=0.3)
    close(feed(FedAdam(**corrected), deltas), adam, atol=1e-10)
    close(feed(FedAMS(**corrected), deltas), ams, atol=1e-10)
    close(feed(FedAdagrad(**{**options, "v_init": 0.3}), deltas), adagrad, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(deltas=sequences(), beta=st.floats(0, 0.95), rounds=st.integers(1, 30))
def test_closed_forms_of_a_constant_update(deltas: list[Tensor], beta: float, rounds: int) -> None:
    delta = deltas[0]
    total = sum((1 - beta**s) / (1 - beta) for s in range(1, rounds + 1))
    close(feed(FedAvgM(beta=beta, server_lr=0.7), [delta] * rounds), 1 + 0.7 * delta * total, atol=1e-9)
    close(feed(FedGM(beta=beta, nu=0.6, server_lr=0.7), [delta]), 1 + 0.7 * (1 - 0.6 * beta) * delta)
    momentum = sum(1 - 0.6 * beta**s for s in range(1, rounds + 1))
    close(feed(FedGM(beta=beta, nu=0.6, server_lr=0.7), [delta] * rounds), 1 + 0.7 * delta * momentum, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(deltas=sequences())
def test_first_steps_of_adaptive_servers(deltas: list[Tensor]) -> None:
    d, tau = deltas[0], 1e-2
    own = {"server_lr": 0.3, "tau": tau}
    plain = 1 + 0.3 * 0.1 * d / ((0.99 * tau**2 + 0.01 * d**2).sqrt() + tau)
    from_zero = 1 + 0.3 * 0.1 * d / (0.1 * d.abs() + tau)
    corrected = 1 + 0.3 * d / (d.abs() + tau)
    close(feed(FedAdam(**own), [d]), plain)
    close(feed(FedAMS(**own), [d]), 1 + 0.3 * 0.1 * d / ((0.99 * tau**2 + 0.01 * d**2).clamp(min=tau**2).sqrt() + tau))
    close(feed(FedAdagrad(**own), [d]), 1 + 0.3 * d / ((tau**2 + d**2).sqrt() + tau))
    for method in (FedAdam, FedYogi, FedAMS):
        close(feed(method(v_init=0.0, **own), [d]), from_zero)
        close(feed(method(v_init=0.0, bias_correction=True, **own), [d]), corrected)
    inside = 1 + 0.3 * 0.1 * d / (0.01 * d**2 + tau).sqrt()
    close(feed(FedAdam(v_init=0.0, eps_inside_sqrt=True, **own), [d]), inside)
    close(feed(FedAMS(v_init=0.0, option=1, **own), [d]), 1 + 0.3 * 0.1 * d / (0.01 * d**2).clamp(min=tau).sqrt())


@settings(max_examples=20, deadline=None)
@given(deltas=sequences())
def test_yogi_and_ams_follow_their_recursions(deltas: list[Tensor]) -> None:
    """Number by number, in Python's floats."""
    yogi, ams = feed(FedYogi(tau=0.02), deltas), feed(FedAMS(tau=0.02, option=1, max_init=0.5), deltas)
    for i in range(len(deltas[0])):
        x, y, m, v, u, v_max = 1.0, 1.0, 0.0, 0.02**2, 0.02**2, 0.5
        for d in (float(delta[i]) for delta in deltas):
            m = 0.9 * m + 0.1 * d
            v = v - 0.01 * d * d if v > d * d else v + 0.01 * d * d
            u = 0.99 * u + 0.01 * d * d
            v_max = max(v_max, u)
            x += 0.1 * m / (v**0.5 + 0.02)
            y += 0.1 * m / max(v_max, 0.02) ** 0.5
        assert float(yogi[i]) == pytest.approx(x, abs=1e-12)
        assert float(ams[i]) == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize("cls", [FedAdam, FedYogi, FedAdagrad, FedAMS])
@given(deltas=sequences(2), scale=st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
@settings(max_examples=5, deadline=None)
def test_adaptive_servers_do_not_see_the_scale_of_the_updates(
    cls: type[FedAdam], deltas: list[Tensor], scale: float
) -> None:
    """At v = 0 and as τ vanishes."""
    method = cls(tau=1e-25, v_init=0.0)
    close(feed(method, [scale * d for d in deltas]), feed(method, deltas), atol=1e-9)


def test_stages_of_general_momentum_begin_and_end_where_they_should() -> None:
    deltas = [torch.full((2,), 1.0 + t, dtype=torch.float64) for t in range(6)]
    method = FedGM(stages=((2, 1.0, 0.9, 0.5), (3, 0.5, 0.5, 1.0), (1, 2.0, 0.0, 0.0)), server_lr=0.3)
    x, d = 1.0, 0.0
    for t, (lr, beta, nu) in enumerate([(1.0, 0.9, 0.5)] * 2 + [(0.5, 0.5, 1.0)] * 3 + [(2.0, 0.0, 0.0)]):
        d = (1 - beta) * (1 + t) + beta * d
        x += 0.3 * lr * ((1 - nu) * (1 + t) + nu * d)
    close(feed(method, deltas), [x, x])
    last = FedGM(stages=((1, 1.0, 0.9, 0.5), (1, 2.0, 0.0, 0.0)))
    close(feed(last, deltas[:4]), [1 + 0.55 + 2 * (2 + 3 + 4)] * 2)


def test_extrapolation_of_equal_orthogonal_and_opposing_updates() -> None:
    """η_g is 1 for equal updates, m / 2 for m orthogonal ones of equal norm, and grows as they cancel."""
    eye = torch.eye(8, dtype=torch.float64)
    for m in (1, 2, 5, 8):
        mean, square = eye[:m].mean(0), torch.ones((), dtype=torch.float64)
        x = feed(FedExP(eps=0.0), [mean], square=[square])
        close(x, 1 + max(1.0, m / 2) * mean)
        close(feed(FedExP(eps=0.0), [eye[0]], square=[square]), 1 + eye[0])
    mean, square = torch.tensor([1e-3], dtype=torch.float64), torch.ones((), dtype=torch.float64)
    close(feed(FedExP(eps=1e-2), [mean], square=[square]), 1 + mean / (2 * (1e-6 + 1e-2)))
    twice = feed(FedExP(eps=1e-2, eps_scale="participants", eps_decay=0.5), [mean] * 2, square=[square] * 2)
    close(twice, 1 + mean / (2 * (1e-6 + 3e-2)) + mean / (2 * (1e-6 + 1.5e-2)))


def test_identical_clients_are_not_extrapolated() -> None:
    data = Quadratics([A[2]] * 4, [B[2]] * 4, [5, 5, 5, 5])
    for method in (FedExP(eps=0.0), FedAvg()):
        trainer = FederatedTrainer(5, callbacks=[], logger=False, evaluate_every=0)
        last = trainer.fit(method, Quadratics.task([1.0, 1.0]), data).server.x
        alone = FederatedTrainer(5, callbacks=[], logger=False, evaluate_every=0)
        one = Quadratics([A[2]], [B[2]], [5])
        close(last, alone.fit(FedAvg(), Quadratics.task([1.0, 1.0]), one).server.x)


# -- normalised averaging -------------------------------------------------------------------------------------------------
def unequal(method: FedMethod, rounds: int, cohort_size: int = 1) -> Tensor:
    trainer = FederatedTrainer(
        rounds, strategy=SlotStrategy(cohort_size=cohort_size), callbacks=[], logger=False, evaluate_every=0
    )
    return trainer.fit(method, Quadratics.task([1.0, 1.0]), UnequalQuadratics(A, B, N)).server.x


@pytest.mark.parametrize("cohort_size", [1, 3])
def test_fednova_with_unequal_steps_follows_its_definition(cohort_size: int) -> None:
    x = torch.ones(2, dtype=torch.float64)
    steps, p = UnequalQuadratics.unequal, [1 / 6, 1 / 3, 1 / 2]
    for _ in range(3):
        normalised, mean = torch.zeros(2, dtype=torch.float64), 0.0
        for a, b, k, weight in zip(A, B, steps, p, strict=True):
            w = x
            for _ in range(k):
                w = w - 0.1 * a.double() @ (w - b.double())
            normalised, mean = normalised + weight * (w - x) / k, mean + weight * k
        x = x + mean * normalised
    close(unequal(FedNova(), 3, cohort_size), x)


def test_fednova_removes_the_inconsistency_of_unequal_steps() -> None:
    steps = UnequalQuadratics.unequal
    close(unequal(FedNova(), 100), rest(A, B, N, 0.1, steps, nova=True), atol=1e-9)
    close(unequal(FedAvg(), 100), rest(A, B, N, 0.1, steps), atol=1e-9)
    exact = minimiser([1 / 6, 1 / 3, 1 / 2])
    error = {
        nova: [float((rest(A, B, N, lr, steps, nova) - exact).norm()) for lr in (1e-3, 1e-5)] for nova in (True, False)
    }
    assert error[True][1] < 1e-4 < 0.2 < error[False][1]
    assert error[True][0] / error[True][1] == pytest.approx(100, rel=0.05)


# -- claims about FedAvg (arXiv:2511.00469) ---------------------------------------------------------------------------------
def test_the_loss_has_a_floor_and_fedavg_stays_above_it() -> None:
    """F(x*) > 0 since the optima differ, and FedAvg rests at F(x_∞) > F(x*)."""
    floor = {"uniform": (1.270175438596, 1.292337955721), "examples": (1.333333333333, 1.360264763162)}
    for weighting, losses in floor.items():
        name = "train_all_clients/loss_mean" if weighting == "uniform" else "train_all/loss"
        for cls, loss in zip((Scaffold, FedAvg), losses, strict=True):
            trainer = FederatedTrainer(180, callbacks=[], logger=False, evaluate_every=180, evaluate_on=("train",))
            trainer.fit(cls(weighting=weighting), Quadratics.task([1.0, 1.0]), Quadratics(A, B, N))
            assert trainer.metrics[name] == pytest.approx(loss, abs=1e-9)


def test_partial_participation_makes_fedavg_oscillate() -> None:
    """For equal curvatures, around the mean of the optima with variance M σ_S² / (2 − M)."""
    a, lr, steps, m, optima = 0.8, 0.3, 3, 2, [-1.0, 0.0, 0.5, 2.0, 3.5, -2.0]
    kept, n = Iterates(), len(optima)
    trainer = FederatedTrainer(1000, m, callbacks=[kept], logger=False, evaluate_every=0)
    curvature = torch.tensor([[a]], dtype=torch.float64)
    data = Quadratics([curvature] * n, [torch.tensor([b]) for b in optima], [1] * n, steps)
    trainer.fit(FedAvg(lr=lr), Quadratics.task([0.0]), data)
    b, shrink = torch.tensor(optima, dtype=torch.float64), 1 - (1 - lr * a) ** steps
    x = torch.zeros(1, dtype=torch.float64)
    for t, after in enumerate(kept.x[:50]):
        chosen = trainer.sampler.sample(t, n, m, 0)
        x = x + shrink * (b[chosen].mean() - x)
        close(after, x)
    sampled = torch.stack([b[list(chosen)].mean() for chosen in combinations(range(n), m)]).var(correction=0)
    assert float(sampled) == pytest.approx(float(b.var(correction=0)) / m * (n - m) / (n - 1))
    settled = torch.cat(kept.x[50:])
    assert float(settled.var()) == pytest.approx(float(shrink * sampled / (2 - shrink)), rel=0.15)
    assert float(settled.mean()) == pytest.approx(float(b.mean()), abs=0.1)


# -- composition, and the contract ------------------------------------------------------------------------------------------
def test_a_server_optimizer_over_scaffold_keeps_both() -> None:
    method = AdamScaffold()
    assert (method.weighting, method.server_lr, method.downlink) == ("uniform", 0.1, ("x", "c"))
    zero = torch.zeros(2, dtype=torch.float64)
    x, m, v, c, own = zero + 1, zero, zero + 1e-6, zero, [zero] * 3
    for after in iterates(method, 4, cohort_size=3):
        models = []
        for i, (a, b) in enumerate(zip(A, B, strict=True)):
            w = x
            for _ in range(5):
                w = w - 0.1 * (a.double() @ (w - b.double()) - own[i] + c)
            models.append(w)
        own = [ci - c + (x - w) / 0.5 for ci, w in zip(own, models, strict=True)]
        mean = sum(models, start=zero) / 3 - x
        m, v, c = 0.9 * m + 0.1 * mean, 0.99 * v + 0.01 * mean**2, sum(own, start=zero) / 3
        x = x + 0.1 * m / (v.sqrt() + 1e-3)
        close(after, x)


def test_adaptive_scaffold_comes_to_rest_at_the_exact_minimiser() -> None:
    close(run(AdamScaffold(server_lr=1.0, tau=1.0), 300), minimiser([1 / 3] * 3), atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [FedAvgM(nesterov=True), FedExP(), FedGM(stages=((1, 1.0, 0.5, 0.5), (1, 0.5, 0.9, 0.9))), FedAdam(bias_correction=True),
     FedYogi(), FedAdagrad(), FedAMS(), FedNova(), FedMPX(), AdamScaffold(), AutonomousGM()],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_every_method_keeps_the_contract(method: FedMethod) -> None:
    check_method(method)


@pytest.mark.parametrize(
    ("cls", "field", "value", "within"),
    [
        (FedAvgM, "beta", 1.0, r"\[0, 1\)"),
        (FedAvgM, "beta", -0.1, r"\[0, 1\)"),
        (FedExP, "eps", -1e-3, r"\[0, inf\)"),
        (FedExP, "eps_decay", 0.0, r"\(0, 1\]"),
        (FedExP, "eps_scale", "m", "'none' or 'participants'"),
        (FedGM, "beta", 1.0, r"\[0, 1\)"),
        (FedGM, "nu", 1.5, r"\[0, 1\]"),
        (FedGM, "stages", ((0, 1.0, 0.9, 0.9),), r"\[1, inf\)"),
        (FedGM, "stages", ((5, 1.0, 1.0, 0.9),), r"\[0, 1\)"),
        (FedAdam, "beta1", 1.0, r"\[0, 1\)"),
        (FedAdam, "beta2", 1.0, r"\[0, 1\)"),
        (FedAdam, "tau", 0.0, r"\(0, inf\)"),
        (FedAdam, "v_init", -1.0, r"\[0, inf\)"),
        (FedAdam, "server_lr", 0.0, r"\(0, inf\)"),
        (FedYogi, "tau", -1.0, r"\(0, inf\)"),
        (FedAdagrad, "beta2", 0.99, r"\[0, 0\]"),
        (FedAMS, "option", 3, "1 or 2"),
        (FedAMS, "max_init", -1.0, r"\[0, inf\)"),
        (MPX, "mpx", -0.5, r"\[0, inf\)"),
    ],
)
def test_impossible_hyperparameters_are_refused(cls: type[FedMethod], field: str, value: object, within: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`{field}` of {cls.__name__} must be .*{within}"):
        cls(**{field: value})


# -- the order of bases -------------------------------------------------------------------------------------------------
class NovaAdam(FedNova, FedAdam):
    """Adam over normalised updates."""


class DynAdam(FedDyn, FedAdam):
    """Adam over FedDyn, whose h sees the clients' mean."""


class ExPGM(FedExP, FedGM):
    """Momentum of extrapolated updates."""


def test_those_that_look_at_what_clients_did_stand_in_front_of_a_server_optimizer() -> None:
    for method in (NovaAdam(), DynAdam(), ExPGM()):
        check_method(method)
    for normalised, plain in zip(iterates(NovaAdam(), 3), iterates(FedAdam(), 3), strict=True):
        close(normalised, plain)  # equal K_i
