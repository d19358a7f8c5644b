"""The methods that change what clients do, in float64: golden numbers, an independent program, closed forms, identities."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_runner
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import fit
from torch import Tensor, nn

from fedlightning import (
    Batching,
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    RoundState,
    SlotStrategy,
    State,
)
from fedlightning.callbacks.base import Callback
from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.data.partition import Partition
from fedlightning.data.tensors import TensorData
from fedlightning.layout import Layout
from fedlightning.method import ClientContext, hyper
from fedlightning.methods.adaptive_fedprox import AdaptiveFedProx
from fedlightning.methods.deltasgd import DeltaSGD
from fedlightning.methods.dualprox import DualProx
from fedlightning.methods.fedcm import FedCM
from fedlightning.methods.feddane import FedDane
from fedlightning.methods.feddyn import FedDyn
from fedlightning.methods.fedinit import FedInit
from fedlightning.methods.fedlesam import FedLESAM
from fedlightning.methods.fedlesam_variants import FedLESAMDyn, FedLESAMScaffold
from fedlightning.methods.fednar import FedNAR
from fedlightning.methods.fedred import FedRed
from fedlightning.methods.fedsam import FedSAM
from fedlightning.methods.scaffnew import Scaffnew
from fedlightning.methods.scaffold import Scaffold
from fedlightning.participation import FixedSchedule
from fedlightning.server.client_memory import ClientMemory
from fedlightning.task import Classification
from fedlightning.testing import Quadratics, check_method

A = [torch.tensor(a) for a in ([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [0.5, 2.0]], [[3.0, -1.0], [-1.0, 1.0]])]
B = [torch.tensor(b) for b in ([1.0, 0.0], [0.0, 2.0], [-1.0, -1.0])]
N = [10, 20, 30]
SCHEDULE = ((0, 1), (1, 2), (0, 2))
FULL = ((0, 1, 2),)
UNIFORM: dict[str, Any] = {"weighting": "uniform"}


class Iterates(Callback):
    """The global model after each round."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []

    def on_round_end(self, trainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.x.append(trainer.state.server.x)


def trajectory(
    method: FedMethod,
    data: FederatedDataModule,
    start: list[float],
    rounds: int,
    *,
    schedule: tuple[tuple[int, ...], ...] | None = None,
    **options: Any,
) -> tuple[RoundState, list[Tensor], FederatedTrainer]:
    """A run on quadratics: its end, x after each round, and its trainer."""
    iterates = Iterates()
    if schedule:
        options |= {"clients_per_round": len(schedule[0]), "sampler": FixedSchedule(schedule)}
    trainer = fit(method, Quadratics.task(start), data, rounds, callbacks=[iterates], **{"cohort_size": 1, **options})
    return trainer.state, iterates.x, trainer


def run(method: FedMethod, rounds: int, steps: int = 5, **options: Any) -> Tensor:
    return trajectory(method, Quadratics(A, B, N, steps), [1.0, 1.0], rounds, **options)[1][-1]


def close(actual: Tensor, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def minimiser(weights: list[float], curvatures: list[Tensor] = A, optima: list[Tensor] = B) -> Tensor:
    total = sum(w * a.double() for w, a in zip(weights, curvatures, strict=True))
    right = sum(w * a.double() @ b.double() for w, a, b in zip(weights, curvatures, optima, strict=True))
    return torch.linalg.solve(total, right)


# -- golden numbers ---------------------------------------------------------------------------------------------------
GOLDEN = {
    "DualProx explicit": (DualProx(mu=0.5, lam=0.8, clip_norm=None, weighting="uniform"), [(0.565252281156, 0.956266822927), (0.379747452416, 0.919909212191), (0.300111460500, 0.894474254205)]),
    "DualProx implicit": (DualProx(mu=0.5, lam=0.8, clip_norm=None, weighting="uniform", variant="implicit"), [(0.570876919671, 0.960402108403), (0.384999454985, 0.926119159362), (0.304014170433, 0.901544676607)]),
    "FedInit": (FedInit(beta=0.1), [(0.534165312500, 0.949964062500), (0.354055078756, 0.921285220903), (0.286360901135, 0.900567052166)]),
    "FedLESAM": (FedLESAM(rho=0.5), [(0.534165312500, 0.949964062500), (0.049105969143, 0.899229212726), (-0.138171555072, 0.859336531770)]),
    "FedNAR A=.5": (FedNAR(weight_decay=0.05, clip_norm=0.5, weighting="uniform"), [(0.879737304437, 0.989641003022), (0.784786698344, 0.980347250498), (0.709216793969, 0.973410326728)]),
    "FedNAR A=∞": (FedNAR(weight_decay=0.05, clip_norm=None, weighting="uniform"), [(0.521073734445, 0.930861221382), (0.341134907180, 0.882135834200), (0.272898914910, 0.852165157823)]),
    "Scaffold II": (Scaffold(), [(0.534165312500, 0.949964062500), (0.344516352567, 0.973609600565), (0.276733606598, 0.999672784758)]),
    "Scaffold II W": (Scaffold(weighting="examples"), [(0.344725312500, 0.973869062500), (0.089191494725, 0.987217509576), (0.011589404676, 0.995661891962)]),
    "Scaffold I": (Scaffold(option="I"), [(0.534165312500, 0.949964062500), (0.305958408150, 1.010179484088), (0.251708612015, 1.029969532182)]),
    "Scaffnew": (Scaffnew(p=0.2), [(0.534165312500, 0.949964062500), (0.344516352567, 0.973609600565), (0.276733606598, 0.999672784758)]),
    "Scaffnew W": (Scaffnew(p=0.2, weighting="examples"), [(0.344725312500, 0.973869062500), (0.089191494725, 0.987217509576), (0.011589404676, 0.995661891962)]),
    "FedCM": (FedCM(beta=0.3), [(0.806970185772, 1.009517476109), (0.543889865485, 1.018773353886), (0.305280043407, 1.020940079403)]),
    "DeltaSGD γ=2": (DeltaSGD(), [(0.317770001356, 0.761393114485), (0.209370089075, 0.685640092291), (0.191466710181, 0.663533273435)]),
    "DeltaSGD γ=1": (DeltaSGD(gamma=1.0), [(0.348202546510, 0.826148241936), (0.230314350452, 0.738053479336), (0.207453494477, 0.705229723798)]),
    "DeltaSGD γ=.5": (DeltaSGD(gamma=0.5), [(0.463216572403, 0.897235369438), (0.328252912906, 0.852980518721), (0.285833689928, 0.829729702607)]),
    "DeltaSGD reuse": (DeltaSGD(gamma=0.5, grad_diff="reuse"), [(0.463216572403, 0.897235369438), (0.328252912906, 0.852980518721), (0.285833689928, 0.829729702607)]),
}  # fmt: skip
GOLDEN_PARTIAL = {
    "Scaffold": (Scaffold(), [(0.869567968750, 1.057986093750), (0.317502164351, 0.992254725139), (0.297912282157, 0.902791912594)]),
    "FedInit": (FedInit(beta=0.1), [(0.869567968750, 1.057986093750), (0.256473608339, 1.144484874997), (0.242573408650, 0.704677300422)]),
    "FedLESAM": (FedLESAM(rho=0.5), [(0.869567968750, 1.057986093750), (0.173808094815, 1.189462843986), (-0.138488440593, 0.782373611372)]),
}  # fmt: skip


@pytest.mark.parametrize(("cohort_size", "slots"), [(1, 1), (1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("name", GOLDEN)
def test_full_participation_gives_the_golden_numbers(name: str, cohort_size: int, slots: int) -> None:
    method, expected = GOLDEN[name]
    data = Quadratics(A, B, N, 5)
    for x, known in zip(
        trajectory(method, data, [1.0, 1.0], 3, cohort_size=cohort_size, slots=slots)[1], expected, strict=True
    ):
        close(x, known, 1e-9)


@pytest.mark.parametrize("cohort_size", [1, 2])
@pytest.mark.parametrize("name", GOLDEN_PARTIAL)
def test_scheduled_partial_participation_gives_the_golden_numbers(name: str, cohort_size: int) -> None:
    method, expected = GOLDEN_PARTIAL[name]
    data = Quadratics(A, B, N, 5)
    found = trajectory(method, data, [1.0, 1.0], 3, schedule=SCHEDULE, cohort_size=cohort_size)[1]
    for x, known in zip(found, expected, strict=True):
        close(x, known, 1e-9)


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        (DualProx(mu=0.5, lam=0.8, clip_norm=None, weighting="uniform"), (0.238349992353, 0.853255924459)),
        (DualProx(mu=0.5, lam=0.8, clip_norm=None, weighting="uniform", variant="implicit"), (0.239572523613, 0.860024556056)),
        (FedInit(beta=0.1), (0.244010790953, 0.871147193981)),
        (FedNAR(weight_decay=0.05, clip_norm=None, weighting="uniform"), (0.229534928719, 0.814280708591)),
        (FedCM(beta=0.3), (0.250219030860, 0.976263476981)),
    ],
)  # fmt: skip
def test_the_golden_limits(method: FedMethod, limit: tuple[float, float]) -> None:
    close(run(method, 100, cohort_size=3), limit, 1e-9)


# -- an independent program ---------------------------------------------------------------------------------------------
LR, K = 0.1, 5
A_, B_ = [a.double().numpy() for a in A], [b.double().numpy() for b in B]


def gradient(i: int, w: np.ndarray) -> np.ndarray:
    return A_[i] @ (w - B_[i])


def descend(w: np.ndarray, direction: Any, lr: float = LR, steps: int = K) -> np.ndarray:
    for _ in range(steps):
        w = w - lr * direction(w)
    return w


def feddyn(x: np.ndarray, schedule: Any, alpha: float) -> list[np.ndarray]:
    g, h, found = [np.zeros(2)] * 3, np.zeros(2), []
    for clients in schedule:
        new = {i: descend(x, lambda w, i=i, x=x: gradient(i, w) - g[i] + alpha * (w - x)) for i in clients}
        for i, w in new.items():
            g[i] = g[i] - alpha * (w - x)
        h = h - alpha / 3 * sum(w - x for w in new.values())
        x = sum(new.values()) / len(clients) - h / alpha
        found.append(x)
    return found


def fedcm(x: np.ndarray, schedule: Any, beta: float) -> list[np.ndarray]:
    momentum, found = np.zeros(2), []
    for clients in schedule:
        new = [descend(x, lambda w, i=i, m=momentum: beta * gradient(i, w) + (1 - beta) * m) for i in clients]
        momentum = sum(x - w for w in new) / len(clients) / (K * LR)
        x = x - LR * K * momentum
        found.append(x)
    return found


def fedsam(x: np.ndarray, schedule: Any, rho: float) -> list[np.ndarray]:
    def sharp(i: int, w: np.ndarray) -> np.ndarray:
        g = gradient(i, w)
        return gradient(i, w + rho * g / np.linalg.norm(g))

    found = []
    for clients in schedule:
        x = sum(descend(x, lambda w, i=i: sharp(i, w)) for i in clients) / len(clients)
        found.append(x)
    return found


def feddane(x: np.ndarray, schedule: Any, mu: float, implicit: bool) -> list[np.ndarray]:
    found = []
    for clients in schedule:
        mean = sum(gradient(i, x) for i in clients) / len(clients)
        new = []
        for i in clients:
            w, h = x, mean - gradient(i, x)
            for _ in range(K):
                if implicit:
                    w = (w / LR + mu * x - gradient(i, w) - h) / (1 / LR + mu)
                else:
                    w = w - LR * (gradient(i, w) + h + mu * (w - x))
            new.append(w)
        x = sum(new) / len(clients)
        found.append(x)
    return found


def fedinit_delta(x: np.ndarray, schedule: Any, beta: float) -> list[np.ndarray]:
    last, found = [x] * 3, []
    for clients in schedule:
        start = {i: x + beta * (x - last[i]) for i in clients}
        for i in clients:
            last[i] = descend(start[i], lambda w, i=i: gradient(i, w))
        x = x + sum(last[i] - start[i] for i in clients) / len(clients)
        found.append(x)
    return found


def fedlesam_server(x: np.ndarray, schedule: Any, rho: float) -> list[np.ndarray]:
    old, found = x, []
    for clients in schedule:
        delta = rho * (old - x) / (np.linalg.norm(old - x) + 1e-7)
        old, x = x, sum(descend(x, lambda w, i=i, d=delta: gradient(i, w + d)) for i in clients) / len(clients)
        found.append(x)
    return found


def scaffold_one(x: np.ndarray, schedule: Any) -> list[np.ndarray]:
    c, server, found = [np.zeros(2)] * 3, np.zeros(2), []
    for clients in schedule:
        new = [descend(x, lambda w, i=i, s=server: gradient(i, w) - c[i] + s) for i in clients]
        for i in clients:
            server, c[i] = server + (gradient(i, x) - c[i]) / 3, gradient(i, x)
        x = sum(new) / len(clients)
        found.append(x)
    return found


@pytest.mark.parametrize("schedule", [SCHEDULE * 2, FULL * 4], ids=["partial", "full"])
@pytest.mark.parametrize(
    ("method", "program"),
    [
        (FedDyn(alpha=0.7), lambda x, s: feddyn(x, s, 0.7)),
        (FedCM(beta=0.6), lambda x, s: fedcm(x, s, 0.6)),
        (FedSAM(rho=0.3), lambda x, s: fedsam(x, s, 0.3)),
        (FedDane(mu=0.4, weighting="uniform"), lambda x, s: feddane(x, s, 0.4, False)),
        (FedRed(mu=2.0), lambda x, s: feddane(x, s, 2.0, True)),
        (FedInit(beta=0.2, aggregate="delta"), lambda x, s: fedinit_delta(x, s, 0.2)),
        (FedLESAM(rho=0.2, reference="server"), lambda x, s: fedlesam_server(x, s, 0.2)),
        (Scaffold(option="I"), scaffold_one),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedMethod) else "",
)
def test_methods_agree_with_an_independent_program(method: FedMethod, program: Any, schedule: Any) -> None:
    data = Quadratics(A, B, N, K)
    found = trajectory(method, data, [1.0, 1.0], len(schedule), schedule=schedule, cohort_size=2)[1]
    for x, expected in zip(found, program(np.ones(2), schedule), strict=True):
        close(x, expected)


# -- Δ-SGD's step sizes -------------------------------------------------------------------------------------------------
def step_sizes(method: DeltaSGD, a: Tensor, b: Tensor, x: Tensor, steps: int) -> tuple[list[float], Tensor]:
    """η_0 … η_{K−1} and w_K of one client."""
    one, empty = torch.ones((), dtype=torch.float64), State()
    layout = Layout.of(Quadratics.task([0.0] * len(x)))
    client = ClientContext(
        x, State(x=x), empty, one * method.lr, one, one, one, torch.tensor(0), 0 * one, layout, x[:0]
    )
    local, sizes = method.on_client_start(client), []
    for k in range(steps):
        client = dataclasses.replace(client, step=k * one)
        local = method.on_local_step(local, lambda w: a @ (w - b), client)
        sizes.append(float(local.eta))
    return sizes, local.w


@pytest.mark.parametrize(
    ("gamma", "clients", "expected"),
    [
        (2.0, (0, 1, 2), [0.2, 0.209761769634, 0.220487548247, 0.231786145764, 0.243664944014]),
        (1.0, (2,), [0.2, 0.158113883008, 0.164245010693, 0.172564977448, 0.181403927485]),
        (0.5, (1,), [0.2, 0.143149583578, 0.148184006667, 0.155664946575, 0.163636988913]),
        (0.5, (2,), [0.2, 0.079056941504, 0.080604298534, 0.084613679254, 0.088943996467]),
    ],
)
@pytest.mark.parametrize("grad_diff", ["same_batch", "reuse"])
def test_step_sizes_of_delta_sgd(gamma: float, clients: tuple[int, ...], expected: list[float], grad_diff: Any) -> None:
    method = DeltaSGD(gamma=gamma, grad_diff=grad_diff)
    for i in clients:
        sizes, _ = step_sizes(method, A[i].double(), B[i].double(), torch.ones(2, dtype=torch.float64), 5)
        close(torch.tensor(sizes, dtype=torch.float64), expected, 1e-9)


@given(curvature=st.floats(4.8, 9.9), optimum=st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_delta_sgd_solves_a_parabola_in_two_steps(curvature: float, optimum: float) -> None:
    a, b = torch.tensor([[curvature]], dtype=torch.float64), torch.tensor([optimum], dtype=torch.float64)
    sizes, w = step_sizes(DeltaSGD(), a, b, torch.full((1,), 5.0, dtype=torch.float64), 2)
    assert sizes[1] == pytest.approx(1 / curvature, abs=1e-9)
    close(w, b, 1e-9)


def test_delta_sgd_grows_where_nothing_moves() -> None:
    """At the optimum both differences are 0; the step grows by √(1 + δ θ) and nothing becomes a NaN."""
    b = torch.ones(2, dtype=torch.float64)
    sizes, w = step_sizes(DeltaSGD(), A[0].double(), b, b, 4)
    expected, theta = [0.2], 1.0
    for _ in range(3):
        theta = (1 + 0.1 * theta) ** 0.5
        expected.append(theta * expected[-1])
    close(torch.tensor(sizes, dtype=torch.float64), expected)
    assert torch.equal(w, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_steps_of_delta_sgd_stay_finite_for_a_client_that_fits_its_data_exactly(dtype: torch.dtype) -> None:
    """Nothing is left to learn, so η grows with every step; in float32 it would be infinite after 1,800 of them, and w a NaN."""
    method, state = DeltaSGD(delta=1.0), State()
    x, one = torch.ones(2, dtype=dtype), torch.ones((), dtype=dtype)
    layout = Layout.of(Quadratics.task([0.0, 0.0]))
    client = ClientContext(x, State(x=x), state, one, one, one, one, torch.tensor(0), one, layout, x[:0])
    local = method.on_client_start(client)
    for _ in range(2000):
        local = method.on_local_step(local, torch.zeros_like, client)
    assert torch.equal(local.w, x)
    assert local.theta == 1
    assert torch.isfinite(local.eta * 1e10)


def test_delta_sgd_takes_both_gradients_on_one_batch_unless_told_to_reuse() -> None:
    count = {}
    for grad_diff in ("same_batch", "reuse"):
        calls = []
        method = DeltaSGD(grad_diff=grad_diff)  # type: ignore[arg-type]
        one = torch.ones((), dtype=torch.float64)
        x = torch.ones(2, dtype=torch.float64)
        layout = Layout.of(Quadratics.task([0.0, 0.0]))
        client = ClientContext(x, State(x=x), State(), one, one, one, one, torch.tensor(0), one, layout, x[:0])
        method.on_local_step(method.on_client_start(client), lambda w, calls=calls: calls.append(w) or w, client)
        count[grad_diff] = len(calls)
    assert count == {"same_batch": 2, "reuse": 1}


# -- closed forms on random quadratics ------------------------------------------------------------------------------------
SIZES = [20, 30, 50]
SHARES = [0.2, 0.3, 0.5]


def random_problem(dim: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(dim, dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    curvatures = [r @ r.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64) for r in roots]
    return curvatures, [torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(3)]


def fixed_point(maps: list[Tensor], optima: list[Tensor], shares: list[float] = SHARES) -> Tensor:
    """Of Σ p_i M_i (x − b_i) = 0."""
    total = sum(p * m for p, m in zip(shares, maps, strict=True))
    return torch.linalg.solve(total, sum(p * m @ b for p, m, b in zip(shares, maps, optima, strict=True)))


def shrink(a: Tensor, lr: float, steps: int) -> Tensor:
    """(I − ηA)^K."""
    return torch.linalg.matrix_power(torch.eye(len(a), dtype=torch.float64) - lr * a, steps)


PROBLEM = {"dim": st.integers(1, 20), "steps": st.integers(1, 6), "seed": st.integers(0, 10**6)}


@pytest.mark.parametrize("name", ["DualProx explicit", "DualProx implicit", "FedNAR", "FedCM"])
@settings(max_examples=5, deadline=None)
@given(**PROBLEM)
def test_fixed_points_on_random_quadratics(name: str, dim: int, steps: int, seed: int) -> None:
    curvatures, optima = random_problem(dim, seed)
    eye, centres = torch.eye(dim, dtype=torch.float64), optima
    lr = 1 / (max(float(torch.linalg.eigvalsh(a).max()) for a in curvatures) + 1.0)
    common: dict[str, Any] = {"lr": lr, "weighting": "examples", "clip_norm": None}
    method: FedMethod
    if name.startswith("DualProx"):
        mu, lam, implicit = 0.6, 0.4, name.endswith("implicit")
        steps = steps if implicit else 400
        shifted, short = [a + mu / 2 * eye for a in curvatures], lr / (1 + lr * (mu + lam) / 2)
        maps = [
            (eye - shrink(s, short, steps)) @ torch.linalg.solve(s, a) for s, a in zip(shifted, curvatures, strict=True)
        ]
        method = DualProx(mu=mu, lam=lam, variant="implicit" if implicit else "explicit", **common)
    elif name == "FedNAR":
        shifted = [a + 0.3 * eye for a in curvatures]
        maps = [eye - shrink(s, lr, steps) for s in shifted]
        centres = [torch.linalg.solve(s, a @ b) for s, a, b in zip(shifted, curvatures, optima, strict=True)]
        method = FedNAR(weight_decay=0.3, **common)
    else:
        maps = [eye - shrink(a, 0.4 * lr, steps) for a in curvatures]
        method = FedCM(beta=0.4, **common)
    fixed = fixed_point(maps, centres)
    close(trajectory(method, Quadratics(curvatures, optima, SIZES, steps), fixed.tolist(), 1)[1][0], fixed, 1e-10)


@settings(max_examples=5, deadline=None)
@given(beta=st.floats(0, 0.5), **PROBLEM)
def test_fixed_point_of_fedinit(beta: float, dim: int, steps: int, seed: int) -> None:
    """M_i = (I + β P_i)⁻¹ (I − P_i), where the clients remember b_i + (1 + β) (I + β P_i)⁻¹ P_i (x − b_i)."""
    curvatures, optima = random_problem(dim, seed)
    eye, lr = torch.eye(dim, dtype=torch.float64), 1 / max(float(torch.linalg.eigvalsh(a).max()) for a in curvatures)
    powers = [shrink(a, lr, steps) for a in curvatures]
    x = fixed_point([torch.linalg.solve(eye + beta * p, eye - p) for p in powers], optima)
    last = [
        b + (1 + beta) * torch.linalg.solve(eye + beta * p, p @ (x - b)) for p, b in zip(powers, optima, strict=True)
    ]
    memory = ClientMemory({i: State(trained=w - 1.0) for i, w in enumerate(last)})
    state = RoundState(0, State(x=x, x0=torch.ones_like(x)), memory)
    method = FedInit(lr=lr, beta=beta, weighting="examples")
    data = Quadratics(curvatures, optima, SIZES, steps)
    close(trajectory(method, data, [1.0] * dim, 1, state=state)[1][0], x, 1e-10)


EXACT: list[FedMethod] = [
    Scaffold(), Scaffold(option="I"), Scaffnew(), Scaffnew(coin="geometric", p=0.4), FedRed(mu=2.0), FedDane(mu=0.5, **UNIFORM), FedDyn(alpha=1.0),
]  # fmt: skip
BIASED: list[FedMethod] = [
    DualProx(clip_norm=None, **UNIFORM), FedInit(), FedNAR(weight_decay=0.0, clip_norm=None, **UNIFORM), FedCM(beta=0.5), FedSAM(rho=0.01), FedLESAM(rho=0.01),
]  # fmt: skip


def names(method: object) -> str:
    return f"{type(method).__name__}-{getattr(method, 'option', getattr(method, 'coin', ''))}"


def exact_case(
    method: FedMethod, dim: int, seed: int, weighting: Any
) -> tuple[FedMethod, list[Tensor], list[Tensor], Tensor]:
    """The method at a safe learning rate, a random problem, and its minimiser."""
    curvatures, optima = random_problem(dim, seed)
    lr = 0.5 / max(float(torch.linalg.eigvalsh(a).max()) for a in curvatures)
    tried: FedMethod = dataclasses.replace(method, lr=lr, weighting=weighting)  # type: ignore[type-var]
    shares = SHARES if weighting == "examples" else [1 / 3] * 3
    return tried, curvatures, optima, minimiser(shares, curvatures, optima)


WEIGHTINGS = st.sampled_from(["uniform", "examples"])


@pytest.mark.parametrize("method", EXACT, ids=names)
@settings(max_examples=5, deadline=None)
@given(weighting=WEIGHTINGS, **PROBLEM)
def test_the_minimiser_is_a_fixed_point(method: FedMethod, weighting: Any, dim: int, steps: int, seed: int) -> None:
    """With c_i = h_i = g_i' = ∇f_i(x*) at the clients, a round leaves x* where it is."""
    tried, curvatures, optima, x = exact_case(method, dim, seed, weighting)
    gradients = [a @ (x - b) for a, b in zip(curvatures, optima, strict=True)]
    known = {"c": gradients, "g": gradients, "h": gradients}
    kept = tried.configure_client(x)
    memory = ClientMemory({i: State(**{name: known[name][i] for name in kept}) for i in range(3 if kept else 0)})
    state = RoundState(0, tried.configure_server(x), memory)
    data = Quadratics(curvatures, optima, SIZES, steps)
    close(trajectory(tried, data, x.tolist(), 2, state=state, cohort_size=3)[1][-1], x, 1e-11)


@pytest.mark.parametrize("method", EXACT, ids=names)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(weighting=WEIGHTINGS, dim=st.integers(1, 20), steps=st.integers(3, 6), seed=st.integers(0, 10**6))
def test_they_reach_the_minimiser(method: FedMethod, weighting: Any, dim: int, steps: int, seed: int) -> None:
    tried, curvatures, optima, exact = exact_case(method, dim, seed, weighting)
    found = trajectory(tried, Quadratics(curvatures, optima, SIZES, steps), (exact + 1).tolist(), 60, cohort_size=3)[1]
    assert (found[-1] - exact).norm() < 1e-2 * dim**0.5


@pytest.mark.parametrize("method", EXACT, ids=names)
def test_on_the_golden_problem_they_are_exact_and_their_variates_are_the_gradients(method: FedMethod) -> None:
    data = Quadratics(A, B, N, 5)
    state, found, _ = trajectory(method, data, [1.0, 1.0], 90, cohort_size=3)
    exact = minimiser([1 / 3] * 3)
    close(found[-1], exact, 1e-9)
    if not isinstance(method, FedDane):
        for i, row in state.memory.rows().items():
            close(next(row[name] for name in "hcg" if name in row), A[i].double() @ (exact - B[i]), 1e-8)


@pytest.mark.parametrize("method", BIASED, ids=names)
def test_the_others_are_not_exact(method: FedMethod) -> None:
    assert (run(method, 30, cohort_size=3) - minimiser([1 / 3] * 3)).norm() > 0.02


def test_under_partial_participation_scaffold_stays_exact() -> None:
    for option in ("I", "II"):
        close(run(Scaffold(option=option), 60, schedule=SCHEDULE), minimiser([1 / 3] * 3), 1e-8)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:All clients must take part")
def test_under_partial_participation_scaffnew_stays_exact() -> None:
    """h_i moves by the mean of the round that its client took part in: with that of its next round the sum of the h_i grows."""
    for coin in ("fixed", "geometric"):
        method = Scaffnew(coin=coin, allow_partial=True)  # type: ignore[arg-type]
        state, found, _ = trajectory(method, Quadratics(A, B, N, 5), [1.0, 1.0], 150, schedule=SCHEDULE)
        close(found[-1], minimiser([1 / 3] * 3), 1e-8)
        close(sum(row.h for row in state.memory.rows().values()), [0.0, 0.0], 1e-10)


@pytest.mark.parametrize("coin", ["fixed", "geometric"])
def test_scaffnew_is_exact_where_clients_take_unequal_numbers_of_steps(coin: Any) -> None:
    """p is that of the coin, which all share, and not 1 / K_i."""

    class Unequal(Quadratics):
        def num_steps(self, client: int, steps: int | None = None) -> int:
            return (2, 5, 3)[client]

    close(trajectory(Scaffnew(coin=coin), Unequal(A, B, N), [1.0, 1.0], 150)[1][-1], minimiser([1 / 3] * 3), 1e-8)


def test_scaffold_with_weight_decay_minimises_the_regularised_objective() -> None:
    exact = minimiser([1 / 3] * 3, [a + 0.2 * torch.eye(2) for a in A], [torch.linalg.solve(a + 0.2 * torch.eye(2), a @ b) for a, b in zip(A, B, strict=True)])  # fmt: skip
    close(run(Scaffold(weight_decay=0.2), 60, cohort_size=3), exact, 1e-6)


def test_fedlesam_ends_near_fedavg() -> None:
    x = run(FedAvg(weighting="uniform"), 60, cohort_size=3)
    assert 1e-5 < (run(FedLESAM(rho=1e-3), 60, cohort_size=3) - x).norm() < 2e-3


# -- identities -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        DualProx(mu=0.0, lam=0.0, clip_norm=None, **UNIFORM),
        FedInit(beta=0.0),
        FedLESAM(rho=0.0),
        FedLESAM(rho=0.0, reference="server"),
        FedNAR(weight_decay=0.0, clip_norm=None, **UNIFORM),
        FedNAR(weight_decay=0.0, clip_norm=float("inf"), **UNIFORM),
        FedCM(beta=1.0),
        FedSAM(rho=0.0),
    ],
    ids=names,
)
def test_switched_off_each_method_is_fedavg_bit_for_bit(method: FedMethod, partial: bool) -> None:
    schedule = SCHEDULE if partial else None
    assert torch.equal(run(method, 3, schedule=schedule), run(FedAvg(weighting="uniform"), 3, schedule=schedule))


def test_first_rounds() -> None:
    fedavg = run(FedAvg(weighting="uniform"), 1)
    for method in (Scaffold(), Scaffold(option="I"), FedInit(), FedLESAM(rho=0.5), Scaffnew(p=0.2)):
        assert torch.equal(run(method, 1), fedavg)
    close(run(FedCM(beta=0.3), 1), run(FedAvg(lr=0.03, weighting="uniform"), 1))


def test_proximal_identities() -> None:
    for half, c in ((True, 0.5), (False, 1.0)):
        common: dict[str, Any] = {"clip_norm": None, "half_factor": half}
        assert torch.equal(run(DualProx(mu=0.6, lam=0.0, **common), 3), run(FedProx(mu=c * 0.6), 3))
        close(run(DualProx(mu=0.6, lam=0.9, **common), 3, steps=1), run(FedAvg(), 3, steps=1))
        short = 0.1 / (1 + 0.1 * c * 1.5)
        implicit = DualProx(mu=0.6, lam=0.9, variant="implicit", **common)
        close(run(implicit, 3), run(FedProx(mu=c * 0.6, lr=short), 3))
        close(run(implicit, 3, steps=1), run(FedAvg(lr=short), 3, steps=1))
    clipped = DualProx(mu=0.6, lam=0.0, clip_norm=0.3)
    assert torch.equal(run(clipped, 3), run(FedProx(mu=0.3, clip_norm=0.3), 3))
    assert DualProx().clip_norm == 1.0


def test_dualprox_explicit_is_fedprox_with_heavy_ball() -> None:
    x = total = torch.ones(2, dtype=torch.float64)
    total = torch.zeros(2, dtype=torch.float64)
    for a, b, n in zip(A, B, N, strict=True):
        w, momentum = x, torch.zeros(2, dtype=torch.float64)
        for _ in range(5):
            momentum = -0.1 * 0.4 * momentum - 0.1 * (a.double() @ (w - b) + 0.25 * (w - x))
            w = w + momentum
        total += n / 60 * w
    close(run(DualProx(mu=0.5, lam=0.8, clip_norm=None), 1), total)


def test_one_local_step_is_gradient_descent_for_every_corrected_method() -> None:
    descent = run(FedAvg(weighting="uniform"), 6, steps=1)
    for method in (
        Scaffold(),
        Scaffold(option="I"),
        Scaffnew(p=1.0),
        Scaffnew(p=1.0, coin="geometric"),
        FedDane(**UNIFORM),
    ):
        close(run(method, 6, steps=1), descent)


@pytest.mark.parametrize(("p", "steps"), [(0.2, 5), (0.5, 2), (1 / 3, 3), (0.15, 7)])
def test_scaffnew_with_a_fixed_period_is_scaffold(p: float, steps: int) -> None:
    data = Quadratics(A, B, N, steps)
    pair = (trajectory(method, data, [1.0, 1.0], 7)[1] for method in (Scaffnew(p=p), Scaffold()))
    for x, y in zip(*pair, strict=True):
        close(x, y)


def test_the_coin_of_scaffnew() -> None:
    tossed = [Scaffnew(p=0.25, coin="geometric").local_steps(t) for t in range(2000)]
    assert min(tossed) == 1
    assert np.mean(tossed) == pytest.approx(4, abs=0.3)
    assert tossed != [Scaffnew(p=0.25, coin="geometric", coin_seed=1).local_steps(t) for t in range(2000)]
    assert tossed[7] == Scaffnew(p=0.25, coin="geometric", lr=3.0).local_steps(7)
    assert [Scaffnew(p=p).local_steps(0) for p in (1.0, 0.5, 0.3, 0.1)] == [1, 2, 3, 10]


def test_scaffnew_follows_the_learning_rate() -> None:
    """h_i moves by p / η of the round in which w_i was made; SCAFFOLD divides by that η as well."""
    method = {"lr": 0.12, "lr_decay": 0.7}
    close(run(Scaffnew(p=0.2, **method), 5), run(Scaffold(**method), 5))


def test_relaxed_starts_average_the_same_both_ways_under_full_participation() -> None:
    close(run(FedInit(beta=0.2, aggregate="delta"), 5), run(FedInit(beta=0.2), 5))
    both = [run(FedInit(beta=0.2, aggregate=how), 5, schedule=SCHEDULE) for how in ("delta", "model")]  # type: ignore[arg-type]
    assert (both[0] - both[1]).norm() > 1e-3


def test_lesam_perturbs_by_the_same_under_full_participation() -> None:
    assert torch.equal(run(FedLESAM(rho=0.5, reference="server"), 4), run(FedLESAM(rho=0.5), 4))


def test_lesam_moves_a_quadratics_end_by_minus_m_delta() -> None:
    """y_K = y_K of FedAvg − [I − (I − ηA)^K] δ."""
    x, old = torch.ones(2, dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    expected = run(FedAvg(), 1)
    ahead = old - x
    for a, n in zip(A, N, strict=True):
        m = torch.eye(2, dtype=torch.float64) - shrink(a.double(), 0.1, 5)
        expected = expected - n / 60 * m @ (0.3 * ahead / (ahead.norm() + 1e-7))
    memory = ClientMemory({i: State(x_old=old) for i in range(3)})
    state = RoundState(0, State(x=x), memory)
    method = FedLESAM(rho=0.3, weighting="examples")
    close(trajectory(method, Quadratics(A, B, N), [1.0, 1.0], 1, state=state)[1][0], expected)


def test_lesam_may_divide_by_the_sum_of_the_layers_norms() -> None:
    task = Classification(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double(), 2)
    layout = Layout.of(task)
    old, x = torch.arange(float(layout.size), dtype=torch.float64), torch.zeros(layout.size, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    client = ClientContext(x, State(x=x), State(x_old=old), one, one, one, one, torch.tensor(0), 0 * one, layout, x[:0])
    total = sum(old[where].norm() for where in layout.slices().values())
    close(FedLESAM(rho=0.5, norm="sum_layers").on_client_start(client).delta, 0.5 * old / (total + 1e-7))
    close(FedLESAM(rho=0.5).on_client_start(client).delta.norm(), 0.5, 1e-8)


def test_fednar_clips_gradient_and_decay_together_and_anneals() -> None:
    method = FedNAR(weight_decay=0.4, clip_norm=0.6, wd_anneal=0.5, lr_decay=0.9)
    x = torch.ones(2, dtype=torch.float64)
    for t in range(3):
        total = torch.zeros(2, dtype=torch.float64)
        for a, b, n in zip(A, B, N, strict=True):
            w = x
            for _ in range(5):
                v = a.double() @ (w - b) + 0.4 * 0.5**t * w
                w = w - 0.1 * 0.9**t * v * min(1.0, 0.6 / (float(v.norm()) + 1e-6))
            assert (w - x).norm() <= 5 * 0.1 * 0.9**t * 0.6
            total += n / 60 * w
        x = total
    close(run(method, 3), x)
    assert torch.equal(run(FedNAR(weight_decay=0.0, clip_norm=0.3), 3), run(FedAvg(clip_norm=0.3), 3))
    close(run(FedNAR(weight_decay=0.3, clip_norm=None), 3), run(FedAvg(weight_decay=0.3), 3))


EVERY: list[FedMethod] = [
    *EXACT, *BIASED, DualProx(variant="implicit"), DeltaSGD(), DeltaSGD(grad_diff="reuse"), FedLESAM(reference="server", norm="sum_layers"),
    FedInit(aggregate="delta"), FedNAR(wd_anneal=0.9, clip_norm=0.5), FedLESAMScaffold(), FedLESAMDyn(alpha=1.0),
]  # fmt: skip


@pytest.mark.parametrize("method", EVERY, ids=names)
def test_symmetries(method: FedMethod) -> None:
    """Other ids, twice the examples, and a crowd of identical clients instead of one change nothing."""
    start, steps = [1.0, 1.0], 5
    usual = run(method, 3)
    order = [2, 0, 1]
    moved = Quadratics([A[i] for i in order], [B[i] for i in order], [N[i] for i in order], steps)
    close(trajectory(method, moved, start, 3)[1][-1], usual)
    close(trajectory(method, Quadratics(A, B, [2 * n for n in N], steps), start, 3)[1][-1], usual)
    alone, crowd = (Quadratics([A[1]] * k, [B[1]] * k, [N[1]] * k, steps) for k in (1, 3))
    close(trajectory(method, crowd, start, 3)[1][-1], trajectory(method, alone, start, 3)[1][-1])


@pytest.mark.parametrize("method", EVERY, ids=names)
def test_every_method_keeps_the_contract(method: FedMethod) -> None:
    check_method(method)


# -- on top of other methods ------------------------------------------------------------------------------------------------
class InitScaffold(FedInit, Scaffold):
    """Relaxed starts for SCAFFOLD."""


class InitScaffnew(FedInit, Scaffnew):
    """Relaxed starts for Scaffnew."""


class LesamInitScaffold(FedLESAM, FedInit, Scaffold):
    """Three at once."""


class NarProx(FedNAR, FedProx):
    """Co-clipping for FedProx."""


class SamDane(FedSAM, FedDane):
    """Sharpness-aware FedDANE."""


class ProxScaffold(FedProx, Scaffold):
    """A proximal term on SCAFFOLD."""


class AdaptiveProxScaffold(AdaptiveFedProx, Scaffold):
    """One that follows the loss."""


class DeltaProx(DeltaSGD, FedProx):
    """Clients of FedProx with step sizes of their own."""


class CmScaffold(FedCM, Scaffold):
    """Client momentum on SCAFFOLD, which option II does not allow."""


STACKED: list[FedMethod] = [
    InitScaffold(), InitScaffold(option="I", aggregate="delta"), InitScaffnew(), LesamInitScaffold(reference="server"), LesamInitScaffold(option="I"),
    NarProx(), SamDane(), DeltaProx(), ProxScaffold(mu=0.4), CmScaffold(option="I"),
]  # fmt: skip


@pytest.mark.parametrize("method", STACKED, ids=names)
def test_methods_stack(method: FedMethod) -> None:
    check_method(method)


def test_what_is_stacked_is_there() -> None:
    assert torch.equal(run(InitScaffold(beta=0.0), 3), run(Scaffold(), 3))
    assert torch.equal(run(LesamInitScaffold(beta=0.0, rho=0.0), 3), run(Scaffold(), 3))
    assert torch.equal(run(FedLESAMScaffold(rho=0.0, option="I"), 3), run(Scaffold(option="I"), 3))
    assert torch.equal(run(FedLESAMDyn(rho=0.0, alpha=0.5), 3), run(FedDyn(alpha=0.5), 3))
    assert torch.equal(run(SamDane(rho=0.0), 3), run(FedDane(weighting="uniform"), 3))
    assert torch.equal(run(NarProx(mu=0.4, weight_decay=0.0, clip_norm=0.3), 3), run(FedProx(mu=0.4, clip_norm=0.3), 3))
    assert torch.equal(run(DeltaProx(mu=0.0), 3), run(DeltaSGD(), 3))
    assert torch.equal(run(ProxScaffold(mu=0.0), 3), run(Scaffold(), 3))
    assert (run(ProxScaffold(mu=0.4), 3) - run(Scaffold(), 3)).norm() > 1e-4
    close(run(ProxScaffold(mu=0.4, option="I"), 60), minimiser([1 / 3] * 3), 1e-6)
    for stacked, base in ((InitScaffold(), Scaffold()), (FedLESAMScaffold(rho=0.5), Scaffold())):
        assert (run(stacked, 3) - run(base, 3)).norm() > 1e-4


def test_an_adaptive_term_stacks_as_a_constant_one_does() -> None:
    """As long as the loss falls, mu stays for five rounds."""

    def trained(method: FedMethod) -> Tensor:
        trainer = FederatedTrainer(4, callbacks=[], logger=False, evaluate_on=("train",))
        return trainer.fit(method, Quadratics.task([1.0, 1.0]), Quadratics(A, B, N)).server.x

    adaptive, constant = (trained(cls(mu=0.4)) for cls in (AdaptiveProxScaffold, ProxScaffold))
    close(adaptive, constant, 1e-15)


def test_scaffold_from_a_relaxed_start_keeps_the_mean_gradient_and_is_exact() -> None:
    """c_i⁺ is the mean of the gradients along the path, which begins at w_0 and not at x."""
    for option in ("I", "II"):
        close(run(InitScaffold(beta=0.1, option=option), 60, cohort_size=3), minimiser([1 / 3] * 3), 1e-8)  # type: ignore[arg-type]


def test_a_mix_in_keeps_its_neighbours_defaults_and_intervals() -> None:
    class Plain(FedMethod):
        strength: float = hyper(0.5, "[0, 1]")

    class Mixed(Plain, Scaffold):
        pass

    class Other(Plain, DualProx):
        strength: float = 0.25

    assert Mixed().weighting == "uniform"
    assert Mixed.downlink == ("x", "c")
    assert (Other().clip_norm, Other().strength, Other().mu) == (1.0, 0.25, 0.01)
    assert LesamInitScaffold.downlink == ("x", "c", "x_old")
    with pytest.raises(ConfigurationError, match=r"`strength` of Other must be in \[0, 1\], but is 2"):
        Other(strength=2.0)
    with pytest.raises(ConfigurationError, match=r"`weighting` of Mixed must be 'examples' or 'uniform', but is 'all'"):
        Mixed(weighting="all")  # type: ignore[arg-type]


# -- the gradient pass ------------------------------------------------------------------------------------------------------
def uneven(batch_size: int | None, seed: int = 0) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    sizes = [7, 30, 12]
    inputs = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (sum(sizes),), generator=generator)
    clients = Partition.of(torch.arange(sum(sizes)).split(sizes))
    return TensorData(Examples(inputs, targets), clients, batching=Batching(batch_size, epochs=2))


def classifier() -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), 3)


def fit_classifier(
    method: FedMethod, cohort_size: int, batch_size: int | None = 5, rounds: int = 1
) -> FederatedTrainer:
    strategy = SlotStrategy(2, cohort_size=cohort_size)
    trainer = FederatedTrainer(rounds, strategy=strategy, callbacks=[], logger=False, evaluate_every=0)
    trainer.fit(method, classifier(), uneven(batch_size))
    return trainer


@pytest.mark.parametrize("cohort_size", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_gradient_pass_gives_the_gradient_over_all_the_clients_data(
    cohort_size: int, batch_size: int | None
) -> None:
    """Batches of uneven size count by their size; SCAFFOLD's option I remembers the result."""
    rows = fit_classifier(Scaffold(option="I"), cohort_size, batch_size).state.memory.rows()
    data, task = uneven(None), classifier()
    data.setup()
    for c in range(3):
        index = data.clients.client(c)
        loss = task.loss((data.train.inputs[index], data.train.targets[index])).mean()
        gradients = torch.autograd.grad(loss, [p for p in task.parameters() if p.requires_grad])
        close(rows[c].c, Layout.of(task).flatten(gradients))


class SeesMean(FedAvg):
    """Uploads what the gradient pass gave."""

    def gradient_pass(self) -> Any:
        return "mean"

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload, state = super().on_client_end(local, client)
        return upload.replace(own=client.gradient, mean=client.server.gradient), state

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        close(mean.own, mean.mean)
        return super().on_aggregate(server, mean, round)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_mean_gradient_has_the_weights_of_the_uploads(weighting: Any) -> None:
    for cohort_size in (1, 2):
        fit_classifier(SeesMean(weighting=weighting), cohort_size)


def test_the_pass_changes_neither_the_batches_nor_the_loss_that_is_logged() -> None:
    class Blind(SeesMean):
        def on_client_end(self, local, client):  # type: ignore[no-untyped-def]
            return FedAvg.on_client_end(self, local, client)

        def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
            return FedAvg.on_aggregate(self, server, mean, round)

    for cohort_size in (1, 3):
        plain, blind = (fit_classifier(method, cohort_size, rounds=2) for method in (FedAvg(), Blind()))
        assert torch.equal(plain.state.server.x, blind.state.server.x)
        assert plain.metrics["train/loss"] == blind.metrics["train/loss"]


@pytest.mark.parametrize(
    ("method", "down", "up"),
    [
        (FedAvg(), 1, 1), (DeltaSGD(), 1, 1), (DualProx(), 1, 1), (FedInit(), 1, 1), (FedLESAM(), 1, 1), (FedNAR(), 1, 1), (FedSAM(), 1, 1),
        (FedDyn(alpha=1.0), 1, 1), (Scaffnew(), 1, 1), (Scaffold(), 2, 2), (Scaffold(option="I"), 2, 2), (FedDane(), 2, 2), (FedRed(), 2, 2),
        (FedCM(), 2, 2), (FedLESAM(reference="server"), 2, 1), (FedLESAMScaffold(), 2, 2), (FedLESAMDyn(), 1, 1),
    ],
    ids=names,
)  # fmt: skip
def test_what_travels_is_what_the_docstring_says(method: FedMethod, down: int, up: int) -> None:
    trainer = trajectory(method, Quadratics(A, B, N), [1.0, 1.0], 2, cohort_size=2)[2]
    model = 2 * 8 * 3
    assert trainer.metrics["communication/down_bytes"] == down * model
    assert trainer.metrics["communication/up_bytes"] == up * model


@pytest.mark.filterwarnings("ignore:All clients must take part")
def test_scaffnew_with_some_of_the_clients_sends_them_the_mean_as_well() -> None:
    trainer = trajectory(Scaffnew(allow_partial=True), Quadratics(A, B, N), [1.0, 1.0], 2, schedule=SCHEDULE)[2]
    assert trainer.metrics["communication/down_bytes"] == 2 * trainer.metrics["communication/up_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "losses"), [(0, (0.5667, 0.39971)), (1, (0.85429, 0.63535)), (2, (0.42042, 0.33158))])
def test_feddane_follows_its_reference_on_identical_devices(
    seed: int, losses: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training loss after 20 and 50 rounds, of an independent program with other batches (see test_curves.py)."""
    monkeypatch.chdir(tmp_path)
    argv = ["--method", "feddane", "--mu", "0", "--rounds", "50", "--iid", "true", "--evaluate-every", "10"]
    recipe_runner.run("synthetic", *argv, "--seed", str(seed))
    (table,) = tmp_path.rglob("metrics.csv")
    found = {int(row["step"]): row["train_all/loss"] for row in csv.DictReader(table.read_text().splitlines())}
    assert (float(found[20]), float(found[50])) == pytest.approx(losses, abs=0.002)


# -- what is refused --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeltaSGD(gamma=0.0), r"`gamma` of DeltaSGD must be in \(0, inf\), but is 0"),
        (lambda: DeltaSGD(delta=-0.1), r"`delta` of DeltaSGD must be in \[0, inf\)"),
        (lambda: DeltaSGD(lr=0.0), r"`lr` of DeltaSGD must be in \(0, inf\)"),
        (lambda: DeltaSGD(grad_diff="new"), r"`grad_diff` of DeltaSGD must be 'same_batch' or 'reuse', but is 'new'"),
        (lambda: DualProx(lam=-1.0), r"`lam` of DualProx must be in \[0, inf\)"),
        (lambda: DualProx(clip_norm=0.0), r"`clip_norm` of DualProx must be in \(0, inf\)"),
        (
            lambda: DualProx(variant="fedred"),
            r"`variant` of DualProx must be 'explicit' or 'implicit', but is 'fedred'",
        ),
        (lambda: FedInit(beta=-0.1), r"`beta` of FedInit must be in \[0, inf\)"),
        (lambda: FedInit(aggregate="sum"), r"`aggregate` of FedInit must be 'model' or 'delta'"),
        (lambda: FedLESAM(rho=-0.1), r"`rho` of FedLESAM must be in \[0, inf\), but is -0.1"),
        (lambda: FedLESAM(norm="l1"), r"`norm` of FedLESAM must be 'global' or 'sum_layers'"),
        (lambda: FedLESAMScaffold(rho=-0.1), r"`rho` of FedLESAMScaffold must be in \[0, inf\)"),
        (lambda: FedNAR(weight_decay=-1.0), r"`weight_decay` of FedNAR must be in \[0, inf\)"),
        (lambda: FedNAR(wd_anneal=1.1), r"`wd_anneal` of FedNAR must be in \(0, 1\]"),
        (lambda: FedSAM(rho=float("nan")), r"`rho` of FedSAM must be in \[0, inf\)"),
        (lambda: FedCM(beta=0.0), r"`beta` of FedCM must be in \(0, 1\]"),
        (lambda: FedDyn(alpha=0.0), r"`alpha` of FedDyn must be in \(0, inf\)"),
        (lambda: FedRed(mu=-1.0), r"`mu` of FedRed must be in \[0, inf\)"),
        (lambda: FedDane(mu=-1.0), r"`mu` of FedDane must be in \[0, inf\)"),
        (lambda: Scaffnew(p=0.0), r"`p` of Scaffnew must be in \(0, 1\]"),
        (lambda: Scaffnew(p=1.2), r"`p` of Scaffnew must be in \(0, 1\]"),
        (lambda: Scaffnew(coin="fair"), r"`coin` of Scaffnew must be 'fixed' or 'geometric'"),
        (lambda: Scaffnew(server_lr=0.5), r"`server_lr` of Scaffnew must be in \[1, 1\]"),
        (lambda: Scaffold(option="III"), r"`option` of Scaffold must be 'I' or 'II', but is 'III'"),
    ],
)
def test_hyperparameters_outside_of_their_interval_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_scaffnew_asks_for_all_clients_unless_told_otherwise() -> None:
    with pytest.raises(
        ConfigurationError, match=r"All clients must take part .* of Scaffnew.* but 2 of 3 do; .*allow_partial"
    ):
        run(Scaffnew(), 1, schedule=SCHEDULE)
    with pytest.warns(
        UserWarning, match=r"All clients must take part .* of Scaffnew.* but 2 of 3 do: it is a heuristic"
    ):
        run(Scaffnew(allow_partial=True), 3, schedule=SCHEDULE)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (Scaffold(clip_norm=1.0), "`clip_norm`"),
        (CmScaffold(), "momentum"),
        (FedLESAMScaffold(clip_norm=1.0), "`clip_norm`"),
    ],
)
def test_option_two_of_scaffold_warns_where_steps_are_not_plain_sgd(method: FedMethod, what: str) -> None:
    message = rf"\(x − w_i\) / \(K η\) .* option II of SCAFFOLD.* plain SGD alone, but it has {what}.* `option='I'`"
    with pytest.warns(UserWarning, match=message):
        run(method, 1)
    run(dataclasses.replace(method, option="I"), 1)  # type: ignore[call-arg, type-var]
