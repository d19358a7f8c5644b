"""The synthetic data sets of FedProx (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.datasets._fedprox import BATCHING, splits_of
from fedlightning.randomness import stream

Array = np.ndarray[Any, np.dtype[Any]]

DEVICES, FEATURES, CLASSES = 30, 60, 10

# Python's power is the C library's and the same everywhere; NumPy's differs by an ulp between its builds.
_SCALE = np.sqrt([float(j) ** -1.2 for j in range(1, FEATURES + 1)])


class _Device(NamedTuple):
    weight: Array  # [60, 10]
    bias: Array  # [10]
    inputs: Array  # [n, 60]


@checked(alpha="[0, inf)", beta="[0, inf)", seed="[0, 4294967295]")
def generate(
    alpha: float, beta: float, iid: bool, labels: Literal["argmax", "sample"] = "argmax", seed: int = 0
) -> list[tuple[Array, Array]]:
    """The examples of each of the 30 devices, (inputs [n_k, 60] float64, labels [n_k] int64), as they are drawn.

    A device has n_k = ⌊LogNormal(4, 2)⌋ + 50 examples x ~ N(v_k, Σ), Σ = diag(j^−1.2), and the labels
    y = argmax(x W_k + b_k) or y ~ Categorical(softmax(x W_k + b_k)). `iid`: v_k = 0 and all devices share one W, b.
    Otherwise u_k ~ N(0, α²), B_k ~ N(0, β²), and every entry of W_k and b_k is N(u_k, 1), of v_k N(B_k, 1). (A shift of
    all logits by u_k changes no label: α has no effect on the problem.)

    The inputs are the bits that the authors' program gives when NumPy's legacy generator is seeded with `seed`.
    """
    rng = np.random.RandomState(seed)
    sizes = [int(size) + 50 for size in rng.lognormal(4, 2, DEVICES)]
    devices = _identical(rng, sizes) if iid else _different(rng, sizes, alpha, beta)
    found = []
    for k, device in enumerate(devices):
        logits = device.inputs @ device.weight + device.bias
        if labels == "sample":
            logits = logits + stream(seed, "synthetic-labels", k).gumbel(size=logits.shape)
        found.append((device.inputs, logits.argmax(1).astype(np.int64)))
    return found


def _identical(rng: np.random.RandomState, sizes: list[int]) -> list[_Device]:
    weight, bias = rng.normal(0, 1, (FEATURES, CLASSES)), rng.normal(0, 1, CLASSES)
    return [_Device(weight, bias, _inputs(rng, np.zeros(FEATURES), size)) for size in sizes]


def _different(rng: np.random.RandomState, sizes: list[int], alpha: float, beta: float) -> list[_Device]:
    alpha, beta = alpha + 0.0, beta + 0.0  # NumPy refuses -0.0
    shifts, spreads = rng.normal(0, alpha, DEVICES), rng.normal(0, beta, DEVICES)
    centres = [rng.normal(spread, 1, FEATURES) for spread in spreads]
    devices = []
    for shift, centre, size in zip(shifts, centres, sizes, strict=True):
        weight, bias = rng.normal(shift, 1, (FEATURES, CLASSES)), rng.normal(shift, 1, CLASSES)
        devices.append(_Device(weight, bias, _inputs(rng, centre, size)))
    return devices


def _inputs(rng: np.random.RandomState, centre: Array, size: int) -> Array:
    """What `rng.multivariate_normal(centre, Σ, size)` returns for this diagonal Σ, without its decomposition."""
    return centre + rng.standard_normal((size, FEATURES)) * _SCALE


class Synthetic(FederatedDataModule):
    """FedProx's synthetic(α, β) and IID sets: 30 devices, 60 features, 10 classes, sizes that follow a power law.

    Nine tenths of each device's examples, in the order of `random.Random(seed).shuffle`, are for training. The data of
    a seed are the same bits on every machine; see `generate` for how they are made.

    Args:
        alpha: standard deviation of the devices' models.
        beta: standard deviation of the devices' inputs.
        iid: the same model and the same inputs' distribution on all devices; alpha and beta do not matter then.
        labels: "argmax" as in the authors' program, or "sample" as in their files of (0.5, 0.5) and (1, 1).
        seed: of the data and of the partition, not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.

    Raises:
        ConfigurationError: alpha or beta is negative, or `labels` is unknown.
    """

    classes = CLASSES
    shape = (FEATURES,)

    @checked(alpha="[0, inf)", beta="[0, inf)", seed="[0, 4294967295]")
    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        iid: bool = False,
        labels: Literal["argmax", "sample"] = "argmax",
        *,
        seed: int = 0,
        batching: Batching = BATCHING,
    ) -> None:
        super().__init__(batching=batching)
        self.alpha, self.beta, self.iid, self.labels, self.seed = alpha, beta, iid, labels, seed
        self.name = "synthetic_iid" if iid else f"synthetic_{alpha + 0.0:g}_{beta + 0.0:g}"
        self.name += "_sample" if labels == "sample" else ""

    def load(self) -> Splits:
        """Generate the data set and split it."""
        inputs, targets = zip(*generate(self.alpha, self.beta, self.iid, self.labels, self.seed), strict=True)
        examples = Examples(
            torch.from_numpy(np.concatenate(inputs).astype(np.float32)), torch.from_numpy(np.concatenate(targets))
        )
        ends = np.cumsum([len(labels) for labels in targets])
        return splits_of(examples, np.split(np.arange(ends[-1]), ends[:-1]), self.seed)
