"""The data sets of a comparison, with what is usual for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from fedlightning.compare.specs import Values
from fedlightning.compare.tuning import Tune
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.data import Batching
from fedlightning.data.module import FederatedDataModule
from fedlightning.datasets import CIFAR10, CIFAR100, FakeImages, FashionMNIST, PowerLawMNIST, Shakespeare, Synthetic
from fedlightning.errors import ConfigurationError, nearest
from fedlightning.models import CharLSTM, LogisticRegression, build_model
from fedlightning.participation import ClientSampler, UniformSampling
from fedlightning.task import Classification, FederatedTask


@dataclass(frozen=True)
class Setting:
    """A data set.

    Attributes:
        title: over the figures.
        load: the data, from all values, the seed, and how clients batch.
        values: of the flags that are not given; None for one of `CHOICES` means that there is no choice.
        fields: of the methods that have no default of their own.
        sampler: draws the clients of a round, as the data set's own recipe does.
        grids: what is usually tried to tune a method; see `tune` of `Comparison`.
    """

    title: str
    load: Callable[..., FederatedDataModule]
    values: Values
    fields: Values
    sampler: Callable[[], ClientSampler] = UniformSampling
    grids: Tune = field(default_factory=dict)

    def title_with(self, values: Values) -> str:
        """The title, which says so where images are made up."""
        return f"{self.title} (made-up images)" if values["data"] == "fake" else self.title


def images(kind: type[Any], shape: tuple[int, int, int], classes: int) -> Callable[..., FederatedDataModule]:
    """Images that a partition divides, or made-up ones of the same shape."""

    def load(values: Values, seed: int, batching: Batching) -> FederatedDataModule:
        shared: Values = {"validation": values["validation"], "seed": seed, "batching": batching}
        if values["data"] == "fake":
            sized = {"shape": shape, "classes": classes, "augment": kind.augments}
            return FakeImages(values["partition"], **sized, **shared)
        made: FederatedDataModule = kind(values["partition"], root=values["data_dir"], **shared)
        return made

    return load


def synthetic(values: Values, seed: int, batching: Batching) -> FederatedDataModule:
    """FedProx's synthetic data."""
    return Synthetic(values["data_alpha"], values["data_beta"], seed=seed, batching=batching)


def mnist(values: Values, seed: int, batching: Batching) -> FederatedDataModule:
    """FedProx's MNIST."""
    return PowerLawMNIST(root=values["data_dir"], seed=seed, batching=batching)


def shakespeare(values: Values, seed: int, batching: Batching) -> FederatedDataModule:
    """A fiftieth of the roles' windows, as in a first look with `shakespeare.py`."""
    return Shakespeare(0.02, root=values["data_dir"], seed=seed, batching=batching)


def _values(
    partition: str | None, model: str | None, rounds: int, batch: int, steps: int, every: int, target: float
) -> Values:
    """The columns of the table below."""
    return {
        "partition": partition, "model": model, "rounds": rounds, "batch_size": batch, "local_steps": steps,
        "evaluate_every": every, "target": target, "clients_per_round": 10, "local_epochs": None,
        "data": None, "validation": None, "data_alpha": None, "data_beta": None,
    }  # fmt: skip


GRIDS: dict[str, Tune] = {
    "fashion_mnist": {
        "lr": (0.03, 0.1, 0.3),
        "deltasgd": {"lr": (0.02, 0.06, 0.2)},  # η_0, 0.2 in the paper
        "fedadam": {"lr": (0.03, 0.1), "server_lr": (0.003, 0.01, 0.03)},
        "fedavgm": {"lr": (0.01, 0.03, 0.1)},  # its server's steps add up to 1 / (1 − β) = 10 times as much
        "fednar": {"weight_decay": (0.005,)},  # η u as in the paper, whose η is 0.01
        # Without clipping SCAFFOLD diverges at each rate of the grid.
        "scaffold": {"lr": (0.03, 0.1), "clip_norm": (10.0,)},
        # 1 / p steps, as the others.
        "scaffnew": {"lr": (0.03, 0.1), "p": (0.1,), "clip_norm": (10.0,), "allow_partial": (True,)},
    },
    "synthetic": {
        "lr": (0.03, 0.1, 0.3),
        "deltasgd": {"lr": (0.02, 0.06, 0.2)},
        "fedadam": {"lr": (0.03, 0.1), "server_lr": (0.03, 0.1, 0.3)},
        "fedavgm": {"lr": (0.01, 0.03, 0.1)},
        "fednar": {"weight_decay": (0.005,)},
        "scaffnew": {"p": (0.05,), "allow_partial": (True,)},
    },
}
"""What `--tune usual` tries; a list of one value is taken as it is."""

IMAGES, MADE = {"data": "real", "validation": 0.0}, {"data_alpha": 1.0, "data_beta": 1.0}
CLIPPED = {"lr": 0.1, "clip_norm": 10.0}
SETTINGS = {
    #                                                        partition    model   rounds batch steps every target
    "cifar10": Setting("CIFAR-10", images(CIFAR10, (3, 32, 32), 10),
                       _values("A0d10C100", "lenet",    200, 50, 10, 5, 0.4) | IMAGES, CLIPPED),
    "cifar100": Setting("CIFAR-100", images(CIFAR100, (3, 32, 32), 100),
                       _values("A0d10C100", "lenet",    200, 50, 10, 5, 0.2) | IMAGES, CLIPPED),
    "fashion_mnist": Setting("Fashion-MNIST", images(FashionMNIST, (1, 28, 28), 10),
                       _values("A0d10C100", "lenet",    60,  32, 10, 5, 0.7) | IMAGES, {"lr": 0.1}, grids=GRIDS["fashion_mnist"]),
    "mnist": Setting("MNIST over 1,000 devices", mnist,
                       _values(None,        "logistic", 100, 10, 20, 5, 0.8), {"lr": 0.03}, RoundSeeded),
    "shakespeare": Setting("Shakespeare", shakespeare,
                       _values(None,        None,       40,  10, 20, 5, 0.3), {"lr": 0.8}, RoundSeeded),
    "synthetic": Setting("Synthetic", synthetic,
                       _values(None,        "logistic", 50,  10, 20, 1, 0.8) | MADE, {"lr": 0.01}, RoundSeeded,
                       GRIDS["synthetic"]),
}  # fmt: skip
CHOICES = ("partition", "model", "data", "validation", "data_alpha", "data_beta")
"""Flags that not every data set has."""


def values_of_all(options: SimpleNamespace) -> Values:
    """The values of all flags that decide what is run: those that are given, or else the data set's own.

    Raises:
        ConfigurationError: the data set has no such choice.
    """
    usual = {
        "dataset": options.dataset,
        "data_dir": "data",
        "evaluate_train": options.dataset == "synthetic",
        "runner": options.runner,
        **setting_named(options.dataset).values,
    }
    given = {key: value for key in usual if (value := getattr(options, key)) is not None}
    require_choice(options.dataset, given)
    if "local_steps" in given or "local_epochs" in given:
        given = {"local_steps": None, "local_epochs": None, **given}
    return {**usual, **given}


def require_choice(dataset: str, flags: Iterable[str]) -> None:
    """Check that a data set has these flags.

    Raises:
        ConfigurationError: it has not.
    """
    for flag in flags:
        if flag in CHOICES and SETTINGS[dataset].values[flag] is None:
            having = [name for name, setting in SETTINGS.items() if setting.values[flag] is not None]
            raise ConfigurationError(
                f"`{flag}` must be one of the data set's choices, but {dataset} has none; leave it out, or use `--dataset` "
                f"{', '.join(having)}."
            )


def usual_grids(dataset: str) -> Tune:
    """What `--tune usual` tries on a data set.

    Raises:
        ConfigurationError: nobody has said.
    """
    if not SETTINGS[dataset].grids:
        raise ConfigurationError(
            f"`--tune usual` must be used with a `--dataset` that has usual grids ({', '.join(GRIDS)}), but is with {dataset}; "
            "name a field and its values, e.g. `--tune lr=0.01,0.03,0.1`."
        )
    return SETTINGS[dataset].grids


def check_seeds(seeds: Sequence[int]) -> None:
    """Check the seeds of a comparison.

    Raises:
        ConfigurationError: there is none, one is given twice, or one is no seed.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ConfigurationError(
            f"`--seeds` must hold numbers from 0 to {2**32 - 1}, at least one and none twice, but is {list(seeds)}; give e.g. "
            "0 and 1."
        )


def setting_named(name: str) -> Setting:
    """The data set of this name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in SETTINGS:
        raise ConfigurationError(f"`--dataset` must be a known name, but is {name!r}. {nearest(name, SETTINGS)}")
    return SETTINGS[name]


# -- data and model ----------------------------------------------------------------------------------------------------
_OF_DATA = ("partition", "batch_size", "local_epochs", "local_steps", "data_alpha", "data_beta", "data", "validation",
            "data_dir")  # fmt: skip


@lru_cache(maxsize=1)
def _loaded(dataset: str, key: tuple[tuple[str, Any], ...], seed: int) -> FederatedDataModule:
    values = dict(key)
    batching = Batching(values["batch_size"], epochs=values["local_epochs"], steps=values["local_steps"])
    return setting_named(dataset).load(values, seed, batching=batching)


def data_of(dataset: str, values: Values, seed: int) -> FederatedDataModule:
    """The data of a point and a seed; the last one that was asked for is kept."""
    return _loaded(dataset, tuple((key, values[key]) for key in _OF_DATA), seed)


def task_of(dataset: str, values: Values, seed: int) -> FederatedTask:
    """The start model of a point and a seed."""
    data: Any = data_of(dataset, values, seed)
    if values["model"] is None:
        data.setup("fit")
        return Classification(CharLSTM(data.vocab_size, seed=seed), data.vocab_size)
    if values["model"] == "logistic" and len(data.shape) == 1:
        return Classification(LogisticRegression.glorot(data.shape[0], data.classes, seed=seed), data.classes)
    return Classification(build_model(values["model"], data.shape, data.classes, seed=seed), data.classes)
