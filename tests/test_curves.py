"""Training loss and test accuracy on the synthetic data sets against curves obtained independently of this library.

The reference draws its batches and stragglers in its own way, on the same data, the same start and the same participants:
hence tolerances, and those are the reference's own. `tests/test_replay.py` compares to rounding.
"""

import pytest
from fedprox_curves import CURVES, check_curve

CLEAN = sorted(name for name in CURVES if name.endswith("|clean"))
FEW = ["1_1|fedprox|mu1|drop0|clean", "iid|fedavg|mu0|drop0|clean"]


def tolerance(name: str) -> float:
    """Of the loss: by how much the reference's own two ways to draw differ, and some."""
    _, _, mu, drop, _ = name.split("|")
    return 0.02 if mu == "mu1" else 0.03 if drop == "drop0" else 0.1


@pytest.mark.parametrize("name", FEW)
def test_the_first_twenty_rounds(name: str) -> None:
    check_curve(name, 1, 20, tolerance(name), 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_hundred_rounds(name: str, seed: int) -> None:
    """About ten seconds a run, once the steps are compiled."""
    check_curve(name, seed, 200, tolerance(name), 0.02)
