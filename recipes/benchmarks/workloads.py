"""The work that every framework is given: whose data, which model, how much of it in a round.

Only NumPy is needed here, so that a framework without PyTorch does the same work. Everything is drawn from fixed seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Weights = dict[str, Array]


class Data(NamedTuple):
    """Examples and who owns them: client c owns the examples at `positions[offsets[c]:offsets[c + 1]]`.

    Attributes:
        inputs: floats, or uint8 pixels [n, …].
        targets: classes [n] (int64).
        positions: [m] (int64).
        offsets: [N + 1] (int64).
    """

    inputs: Array
    targets: Array
    positions: Array
    offsets: Array

    def client(self, number: int) -> tuple[Array, Array]:
        """The inputs and targets of a client; views where its examples lie side by side."""
        owned = self.positions[self.offsets[number] : self.offsets[number + 1]]
        start = int(owned[0])
        if owned[-1] - start == len(owned) - 1:
            return self.inputs[start : start + len(owned)], self.targets[start : start + len(owned)]
        return self.inputs[owned], self.targets[owned]

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        return sum(array.nbytes for array in self)


@dataclass(frozen=True)
class Workload:
    """Federated averaging with plain SGD, and no evaluation.

    Attributes:
        name: what `--workloads` calls it.
        title: what it is, in a few words.
        clients: N.
        participants: clients of a round.
        examples: of each client; 0 for sizes by the power law of FedProx's synthetic data.
        shape: of an example.
        model: "lenet" or "logistic".
        batch, epochs, lr: of a client's local training; the last batch of an epoch may be smaller.
        rounds: of a measurement, the first included.
        pixels: whether inputs lie in memory as uint8, to be cropped at random, mirrored and standardised.
        distinct: so many different examples, which clients then share; 0 for no example shared.
        classes: number of outputs.
    """

    name: str
    title: str
    clients: int
    participants: int
    examples: int
    shape: tuple[int, ...]
    model: str
    batch: int
    epochs: int
    lr: float
    rounds: int
    pixels: bool = False
    distinct: int = 0
    classes: int = 10

    def sizes(self) -> Array:
        """Examples of each client [N] (int64)."""
        if self.examples:
            return np.full(self.clients, self.examples, dtype=np.int64)
        drawn = np.random.RandomState(1).lognormal(4, 2, self.clients).astype(np.int64) + 50
        return (drawn * 9) // 10  # the tenth that is the test set is left out

    def participants_of(self, round: int) -> list[int]:
        """Who takes part in a round, counted from 0; `RoundSeeded` of this library draws the same."""
        chosen: list[int] = np.random.RandomState(round).choice(self.clients, self.participants, replace=False).tolist()
        return chosen

    def steps_of(self, round: int) -> int:
        """Local steps of all participants of a round."""
        if self.examples:
            return self.participants * self.epochs * -(-self.examples // self.batch)
        return int(sum(self.epochs * -(-size // self.batch) for size in self.sizes()[self.participants_of(round)]))

    def data(self) -> Data:
        """The examples: noise around a prototype for each class, written in place, so that nothing is held twice."""
        rng, offsets = np.random.default_rng(1), np.concatenate([[0], self.sizes().cumsum()])
        owned = int(offsets[-1])
        count = min(owned, self.distinct or owned)
        positions = np.arange(owned, dtype=np.int64)
        positions %= count
        targets = rng.integers(0, self.classes, count)
        prototypes = rng.standard_normal((self.classes, *self.shape), dtype=np.float32)
        inputs = np.empty((count, *self.shape), dtype=np.uint8 if self.pixels else np.float32)
        for start in range(0, count, 1000):
            part = slice(start, start + 1000)
            drawn = rng.standard_normal(inputs[part].shape, dtype=np.float32) + 0.5 * prototypes[targets[part]]
            inputs[part] = np.clip(128 + 48 * drawn, 0, 255) if self.pixels else drawn
        return Data(inputs, targets, positions, offsets)

    def start(self) -> Weights:
        """The first global model, by parameter name in PyTorch's layout; uniform in ±1/√fan-in as PyTorch has it."""
        rng, weights = np.random.default_rng(2), {}
        for name, shape in self._shapes().items():
            bound = float(np.prod(shape[1:])) ** -0.5
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                weights[f"{name}.{kind}"] = rng.uniform(-bound, bound, size).astype(np.float32)
        return weights

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's weight, by the layer's name in `networks.network`."""
        if self.model == "logistic":
            return {"linear": (self.classes, int(np.prod(self.shape)))}
        inner = 16 * (((self.shape[-1] - 4) // 2 - 4) // 2) ** 2
        convolutions = {"conv1": (6, self.shape[0], 5, 5), "conv2": (16, 6, 5, 5)}
        return convolutions | {"linear1": (120, inner), "linear2": (84, 120), "linear3": (self.classes, 84)}


_CNN = Workload(
    "cnn", "small CNN: 100 clients of 100 images 3x32x32, LeNet", 100, 10, 100, (3, 32, 32), "lenet", 50, 1, 0.05, 20
)
_FEDPROX = Workload(
    "fedprox", "FedProx's own: 30 clients by a power law, 60x10, E=20, batch 10", 30, 10, 0, (60,), "logistic", 10, 20,
    0.01, 40,
)  # fmt: skip
_ALL = (
    _CNN,
    _FEDPROX,
    replace(_FEDPROX, name="fedprox_run", title="FedProx's own: a whole run, compiling included", rounds=200),
    replace(_CNN, name="crop", title="the small CNN from uint8 with random crop and flip", pixels=True, rounds=30),
    Workload(
        "regression", "784x10 regression: 1,000 clients of 50, 50 a round, batch 10", 1000, 50, 50, (784,), "logistic", 10,
        1, 0.05, 60,
    ),
    Workload(
        "scale", "registered clients, 10 a round", 100, 10, 4, (60,), "logistic", 2, 1, 0.05, 20, distinct=400
    ),
)  # fmt: skip
WORKLOADS = {work.name: work for work in _ALL}


def resized(work: Workload, sizes: dict[str, Any]) -> Workload:
    """The workload with other sizes, by attribute.

    Raises:
        ValueError: an attribute is unknown, or its value is no positive number.
    """
    for name, value in sizes.items():
        if name not in ("clients", "participants", "examples", "batch", "epochs", "rounds", "distinct"):
            raise ValueError(
                f"A size must be that of clients, participants, examples, batch, epochs, rounds or distinct, not {name!r}."
            )
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"The size {name!r} must be a whole number from 1 on, but is {value!r}.")
    return replace(work, **sizes)


@cache
def shared_data(work: Workload) -> Data:
    """The same data, made once in a process; for frameworks whose workers are processes of their own."""
    return work.data()


def parse_sizes(words: Sequence[str]) -> dict[str, int]:
    """Sizes from words such as `clients=1000`.

    Raises:
        ValueError: a word is not of this form.
    """
    sizes = {}
    for word in words:
        name, _, number = word.partition("=")
        if not number.isdecimal():
            raise ValueError(f"A size must be written like clients=1000, but is {word!r}.")
        sizes[name] = int(number)
    return sizes
