"""What the FedProx paper (Li et al., MLSys 2020) ran: its data sets, models and hyperparameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedlightning import Batching, Classification, FederatedDataModule, FederatedTask, FedMethod
from fedlightning.datasets import Synthetic
from fedlightning.datasets.femnist import FEMNIST
from fedlightning.datasets.power_law import PowerLawMNIST
from fedlightning.datasets.sent140 import Sent140
from fedlightning.datasets.shakespeare import Shakespeare
from fedlightning.methods import method_named
from fedlightning.models import LogisticRegression
from fedlightning.models.recurrent import CharLSTM, SentimentLSTM

CLIENTS, BATCH, EPOCHS = 10, 10, 20
"""K devices a round, B examples a step, E epochs."""


@dataclass(frozen=True)
class Options:
    """What all curves of a sitting share.

    Attributes:
        seed: of the data, the start and the batches.
        slots: as `SlotStrategy` takes them.
        data_dir: the folder of the data sets.
        rounds: in the place of the paper's number, or None.
        labels: of synthetic (0.5, 0.5) and (1, 1): "argmax" as in the authors' program, "sample" as in their files.
    """

    seed: int = 0
    slots: str = "auto"
    data_dir: str = "data"
    rounds: int | None = None
    labels: str = "argmax"


Loaded = tuple[FederatedDataModule, FederatedTask]


def synthetic(alpha: float, beta: float, iid: bool = False) -> Callable[[Options, Batching], Loaded]:
    """Logistic regression on 30 synthetic devices."""

    def load(options: Options, batching: Batching) -> Loaded:
        labels: Any = options.labels if alpha > 0 else "argmax"
        data = Synthetic(alpha, beta, iid, labels, seed=options.seed, batching=batching)
        return data, Classification(LogisticRegression.glorot(60, 10, options.seed))

    return load


def mnist(options: Options, batching: Batching) -> Loaded:
    """Logistic regression on 1,000 devices of two digits each."""
    data = PowerLawMNIST(root=options.data_dir, seed=options.seed, batching=batching, download=False)
    return data, Classification(LogisticRegression.glorot(784, 10, options.seed))


def femnist(options: Options, batching: Batching) -> Loaded:
    """Logistic regression on 200 devices of five letters each; the paper's model has 26 outputs."""
    data = FEMNIST(root=options.data_dir, seed=options.seed, batching=batching)
    return data, Classification(LogisticRegression.glorot(784, 26, options.seed))


def shakespeare(options: Options, batching: Batching) -> Loaded:
    """The next character: as many windows as the paper's 143 roles have, split at random as there."""
    data = Shakespeare(0.12236, "random", root=options.data_dir, seed=options.seed, batching=batching)
    return data, Classification(CharLSTM(seed=options.seed), 80)


def sent140(options: Options, batching: Batching) -> Loaded:
    """The sentiment of the tweets of 772 accounts or so."""
    data = Sent140(root=options.data_dir, seed=options.seed, batching=batching)
    return data, Classification(SentimentLSTM(data.glove.vectors, seed=options.seed), 2)


@dataclass(frozen=True)
class Setting:
    """A data set, with what the paper chose for it.

    Attributes:
        title: over its panels.
        lr: learning rate.
        mu: the μ > 0 that did best.
        rounds: T.
        stride: every so many rounds are drawn.
        measured: rounds between measurements of the dissimilarity, which is a pass over all the data.
        load: its data and the start model.
    """

    title: str
    lr: float
    mu: float
    rounds: int
    stride: int
    measured: int
    load: Callable[[Options, Batching], Loaded]


SETTINGS = {
    #                             title                   lr     best μ  rounds  stride  measured
    "synthetic_iid":     Setting("Synthetic-IID",         0.01,  1.0,    200,    1,      1,  synthetic(0, 0, iid=True)),
    "synthetic_0_0":     Setting("Synthetic (0,0)",       0.01,  1.0,    200,    1,      1,  synthetic(0, 0)),
    "synthetic_0.5_0.5": Setting("Synthetic (0.5,0.5)",   0.01,  1.0,    200,    1,      1,  synthetic(0.5, 0.5)),
    "synthetic_1_1":     Setting("Synthetic (1,1)",       0.01,  1.0,    200,    1,      1,  synthetic(1, 1)),
    "mnist":             Setting("MNIST",                 0.03,  1.0,    100,    1,      1,  mnist),
    "femnist":           Setting("FEMNIST",               0.003, 1.0,    200,    2,      2,  femnist),
    "shakespeare":       Setting("Shakespeare",           0.8,   0.001,  40,     1,      5,  shakespeare),
    "sent140":           Setting("Sent140",               0.3,   0.01,   800,    10,     10, sent140),
}  # fmt: skip
SYNTHETIC, REAL = tuple(SETTINGS)[:4], tuple(SETTINGS)[4:]


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        dataset: which setting.
        method: name of the method.
        mu: its μ, or the first one of a method that adapts it.
        drop: the fraction of stragglers, whom FedAvg drops and of whom FedProx keeps what they have done.
        epochs: E.
        sampling: "uniform", with a mean weighted by examples, or "sized", with an unweighted mean.
    """

    dataset: str
    method: str = "fedprox"
    mu: float = 0.0
    drop: float = 0.0
    epochs: int = EPOCHS
    sampling: str = "uniform"

    def name(self, seed: int) -> str:
        """The name of its folder."""
        parts = [self.method, f"mu{self.mu:g}" * (self.method != "fedavg"), f"drop{self.drop:g}"]
        parts += [f"E{self.epochs}" * (self.epochs != EPOCHS), self.sampling * (self.sampling != "uniform")]
        return "_".join([*filter(None, parts), f"seed{seed}"])

    def configured(self) -> FedMethod:
        """The method with its hyperparameters."""
        fields: dict[str, Any] = {} if self.method == "fedavg" else {"mu": self.mu}
        weighting = "examples" if self.sampling == "uniform" else "uniform"
        return method_named(self.method)(lr=SETTINGS[self.dataset].lr, weighting=weighting, **fields)
