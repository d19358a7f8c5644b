"""The methods' mathematics, in float64, against numbers obtained independently of this library."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlightning import FedAvg, FederatedTrainer, FedMethod, FedProx, Scaffold, SlotStrategy
from fedlightning.participation import FixedSchedule
from fedlightning.testing import Quadratics, check_method

A = [torch.tensor(a) for a in ([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [0.5, 2.0]], [[3.0, -1.0], [-1.0, 1.0]])]
B = [torch.tensor(b) for b in ([1.0, 0.0], [0.0, 2.0], [-1.0, -1.0])]
N = [10, 20, 30]
PARTIAL = FixedSchedule(((0, 1), (1, 2), (0, 2)))


def run(
    method: FedMethod, rounds: int, *, cohort_size: int = 1, slots: int = 1, steps: int = 5, partial: bool = False
) -> Tensor:
    trainer = FederatedTrainer(
        rounds,
        clients_per_round=2 if partial else 1.0,
        sampler=PARTIAL if partial else None,
        strategy=SlotStrategy(slots, cohort_size=cohort_size),
        callbacks=[],
        logger=False,
        evaluate_every=0,
    )
    return trainer.fit(method, Quadratics.task([1.0, 1.0]), Quadratics(A, B, N, steps)).server.x


GOLDEN = {
    "FedAvg W": (FedAvg(), [(0.344725312500, 0.973869062500), (0.104573868212, 0.917425572665), (0.013527754123, 0.871565381819)]),
    "FedAvg U": (FedAvg(weighting="uniform"), [(0.534165312500, 0.949964062500), (0.354397783150, 0.910328095199), (0.284446580380, 0.884313236780)]),
    "FedProx U": (FedProx(mu=0.5, weighting="uniform"), [(0.576315416667, 0.955888541667), (0.389203881469, 0.919564585607), (0.306127562072, 0.893902305060)]),
    "FedProx W": (FedProx(mu=0.5), [(0.403770000000, 0.977999062500), (0.151386966492, 0.929778422211), (0.042239625681, 0.886802674435)]),
    "Scaffold U": (Scaffold(), [(0.534165312500, 0.949964062500), (0.344516352567, 0.973609600565), (0.276733606598, 0.999672784758)]),
    "Scaffold W": (Scaffold(weighting="examples"), [(0.344725312500, 0.973869062500), (0.089191494725, 0.987217509576), (0.011589404676, 0.995661891962)]),
}  # fmt: skip
GOLDEN_PARTIAL = {
    "FedAvg W": (FedAvg(), [(0.826090625000, 1.213818125000), (0.165728280169, 1.149609011990), (-0.030328499446, 0.656828076293)]),
    "Scaffold U": (Scaffold(), [(0.869567968750, 1.057986093750), (0.317502164351, 0.992254725139), (0.297912282157, 0.902791912594)]),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize(("cohort_size", "slots"), [(1, 1), (1, 3), (2, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("name", GOLDEN)
def test_full_participation_gives_the_golden_numbers(name: str, cohort_size: int, slots: int) -> None:
    method, expected = GOLDEN[name]
    for rounds, x in enumerate(expected, 1):
        result = run(method, rounds, cohort_size=cohort_size, slots=slots)
        torch.testing.assert_close(result, torch.tensor(x, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("cohort_size", [1, 2])
@pytest.mark.parametrize("name", GOLDEN_PARTIAL)
def test_scheduled_partial_participation_gives_the_golden_numbers(name: str, cohort_size: int) -> None:
    method, expected = GOLDEN_PARTIAL[name]
    for rounds, x in enumerate(expected, 1):
        result = run(method, rounds, cohort_size=cohort_size, partial=True)
        torch.testing.assert_close(result, torch.tensor(x, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_control_variate_of_scaffold_under_partial_participation() -> None:
    expected = [(0.173909375000, -0.077314791667), (0.794057530865, 0.061870227593), (0.290805686547, 0.139907159257)]
    for rounds, c in enumerate(expected, 1):
        trainer = FederatedTrainer(rounds, 2, sampler=PARTIAL, callbacks=[], logger=False, evaluate_every=0)
        server = trainer.fit(Scaffold(), Quadratics.task([1.0, 1.0]), Quadratics(A, B, N)).server
        torch.testing.assert_close(server.c, torch.tensor(c, dtype=torch.float64), rtol=0, atol=1e-9)


def minimiser(weights: list[float]) -> Tensor:
    curvature = sum(w * a.double() for w, a in zip(weights, A, strict=True))
    return torch.linalg.solve(
        curvature, sum(w * a.double() @ b.double() for w, a, b in zip(weights, A, B, strict=True))
    )


@pytest.mark.parametrize("partial", [False, True])
def test_scaffold_reaches_the_exact_minimiser_and_fedavg_does_not(partial: bool) -> None:
    exact = minimiser([1 / 3] * 3)
    torch.testing.assert_close(run(Scaffold(), 400, partial=partial), exact, rtol=0, atol=1e-9)
    assert (run(FedAvg(weighting="uniform"), 400) - exact).norm() > 0.1


def test_weighted_scaffold_reaches_the_weighted_minimiser() -> None:
    result = run(Scaffold(weighting="examples"), 400)
    torch.testing.assert_close(result, minimiser([1 / 6, 1 / 3, 1 / 2]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.5])
@settings(max_examples=10, deadline=None)
@given(dim=st.integers(1, 20), steps=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_fixed_point_of_fedprox_on_random_quadratics(mu: float, dim: int, steps: int, seed: int) -> None:
    """Σ p_i M_i (x − b_i) = 0 with M_i = [I − (I − η(A_i + μI))^K] (A_i + μI)⁻¹ A_i; μ = 0 is FedAvg."""
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(dim, dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    curvatures = [r @ r.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64) for r in roots]
    optima = [torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    largest = max(float(torch.linalg.eigvalsh(a).max()) for a in curvatures) + mu
    lr, eye, sizes = 1 / largest, torch.eye(dim, dtype=torch.float64), [20, 30, 50]
    maps = []
    for a in curvatures:
        shifted = a + mu * eye
        maps.append((eye - torch.linalg.matrix_power(eye - lr * shifted, steps)) @ torch.linalg.solve(shifted, a))
    total = sum(n * m for n, m in zip(sizes, maps, strict=True))
    fixed = torch.linalg.solve(total, sum(n * m @ b for n, m, b in zip(sizes, maps, optima, strict=True)))
    trainer = FederatedTrainer(1, callbacks=[], logger=False, evaluate_every=0)
    after = trainer.fit(
        FedProx(lr=lr, mu=mu), Quadratics.task(fixed.tolist()), Quadratics(curvatures, optima, sizes, steps)
    )
    torch.testing.assert_close(after.server.x, fixed, rtol=0, atol=1e-10)


@pytest.mark.quick
def test_identities_hold_bit_for_bit() -> None:
    fedavg = run(FedAvg(), 3)
    assert torch.equal(run(FedProx(mu=0.0), 3), fedavg)
    assert torch.equal(run(Scaffold(), 1), run(FedAvg(weighting="uniform"), 1))
    torch.testing.assert_close(run(FedProx(mu=0.7), 3, steps=1), run(FedAvg(), 3, steps=1), rtol=0, atol=1e-15)


def test_server_lr_scales_the_mean_update() -> None:
    x = torch.ones(2, dtype=torch.float64)
    half, full = run(FedAvg(server_lr=0.5), 1), run(FedAvg(), 1)
    torch.testing.assert_close(half - x, 0.5 * (full - x), rtol=0, atol=1e-15)


@pytest.mark.quick
def test_clipping_weight_decay_and_lr_decay_follow_their_definitions() -> None:
    method = FedAvg(lr=0.05, lr_decay=0.5, clip_norm=0.3, weight_decay=0.1)
    x = torch.ones(2, dtype=torch.float64)
    for t in range(2):
        lr, total = 0.05 * 0.5**t, torch.zeros(2, dtype=torch.float64)
        for a, b, n in zip(A, B, N, strict=True):
            w = x
            for _ in range(5):
                g = a.double() @ (w - b.double())
                w = w - lr * (g * min(1.0, 0.3 / (float(g.norm()) + 1e-6)) + 0.1 * w)
            total += n / 60 * w
        x = total
    torch.testing.assert_close(run(method, 2), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [FedAvg(), FedProx(mu=0.3), Scaffold(), FedAvg(clip_norm=0.5, weight_decay=0.01)])
def test_every_method_keeps_the_contract(method: FedMethod) -> None:
    check_method(method)
