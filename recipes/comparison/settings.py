"""The data sets of a comparison with what is usual for each, and the methods as they are typed."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import yaml

from fedlightning import Classification, ConfigurationError, FederatedDataModule, FederatedTask, FedMethod
from fedlightning.cli.flags import conform, of_dataclass, wording
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.datasets import CIFAR10, CIFAR100, FakeImages, FashionMNIST, PowerLawMNIST, Shakespeare, Synthetic
from fedlightning.errors import nearest
from fedlightning.method import field_names
from fedlightning.methods import method_named
from fedlightning.models import CharLSTM, LogisticRegression, build_model
from fedlightning.participation import ClientSampler, UniformSampling

Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A data set.

    Attributes:
        title: over the figures.
        load: the data, from all values, the seed, and how they are batched.
        values: of the flags that are not given; None for one of `CHOICES` means that there is no choice.
        fields: of the methods that have no default of their own.
        sampler: draws the clients of a round, as the data set's own recipe does.
    """

    title: str
    load: Callable[..., FederatedDataModule]
    values: Values
    fields: Values
    sampler: Callable[[], ClientSampler] = UniformSampling


def images(kind: type[Any], shape: tuple[int, int, int], classes: int) -> Callable[..., FederatedDataModule]:
    """Images that a partition divides, or made-up ones of the same shape."""

    def load(values: Values, seed: int, **batching: Any) -> FederatedDataModule:
        if values["data"] == "fake":
            sized = {"shape": shape, "classes": classes, "augment": kind.augments}
            return FakeImages(values["partition"], seed=seed, **sized, **batching)
        return kind(values["partition"], root=values["data_dir"], seed=seed, **batching)

    return load


def synthetic(values: Values, seed: int, **batching: Any) -> FederatedDataModule:
    """FedProx's synthetic data."""
    return Synthetic(values["data_alpha"], values["data_beta"], seed=seed, **batching)


def mnist(values: Values, seed: int, **batching: Any) -> FederatedDataModule:
    """FedProx's MNIST."""
    return PowerLawMNIST(root=values["data_dir"], seed=seed, **batching)


def shakespeare(values: Values, seed: int, **batching: Any) -> FederatedDataModule:
    """A fiftieth of the roles' windows, as in a first look with `shakespeare.py`."""
    return Shakespeare(0.02, root=values["data_dir"], seed=seed, **batching)


def _values(
    partition: str | None, model: str | None, rounds: int, batch: int, steps: int, every: int, target: float
) -> Values:
    """The columns of the table below."""
    return {
        "partition": partition, "model": model, "rounds": rounds, "batch_size": batch, "local_steps": steps,
        "evaluate_every": every, "target": target, "clients_per_round": 10, "local_epochs": None,
        "data": None, "data_alpha": None, "data_beta": None,
    }  # fmt: skip


IMAGES, MADE = {"data": "real"}, {"data_alpha": 1.0, "data_beta": 1.0}
CLIPPED = {"lr": 0.1, "clip_norm": 10.0}
SETTINGS = {
    #                                                        partition    model   rounds batch steps every target
    "cifar10": Setting("CIFAR-10", images(CIFAR10, (3, 32, 32), 10),
                       _values("A0d10C100", "lenet",    200, 50, 10, 5, 0.4) | IMAGES, CLIPPED),
    "cifar100": Setting("CIFAR-100", images(CIFAR100, (3, 32, 32), 100),
                       _values("A0d10C100", "lenet",    200, 50, 10, 5, 0.2) | IMAGES, CLIPPED),
    "fashion_mnist": Setting("Fashion-MNIST", images(FashionMNIST, (1, 28, 28), 10),
                       _values("A0d10C100", "lenet",    60,  32, 10, 5, 0.7) | IMAGES, {"lr": 0.1}),
    "mnist": Setting("MNIST over 1,000 devices", mnist,
                       _values(None,        "logistic", 100, 10, 20, 5, 0.8), {"lr": 0.03}, RoundSeeded),
    "shakespeare": Setting("Shakespeare", shakespeare,
                       _values(None,        None,       40,  10, 20, 5, 0.3), {"lr": 0.8}, RoundSeeded),
    "synthetic": Setting("Synthetic", synthetic,
                       _values(None,        "logistic", 50,  10, 20, 1, 0.8) | MADE, {"lr": 0.01}, RoundSeeded),
}  # fmt: skip
CHOICES = ("partition", "model", "data", "data_alpha", "data_beta")
"""Flags that not every data set has."""


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
@lru_cache(maxsize=1)
def _loaded(dataset: str, key: tuple[tuple[str, Any], ...], seed: int) -> FederatedDataModule:
    values = dict(key)
    evaluate_on = ("test", "train") if values["evaluate_train"] else ("test",)
    batching = {"batch_size": values["batch_size"], "epochs": values["local_epochs"], "steps": values["local_steps"]}
    return setting_named(dataset).load(values, seed, evaluate_on=evaluate_on, **batching)


_OF_DATA = ("partition", "batch_size", "local_epochs", "local_steps", "data_alpha", "data_beta", "data", "data_dir",
            "evaluate_train")  # fmt: skip


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


# -- methods -----------------------------------------------------------------------------------------------------------
class Spec(NamedTuple):
    """A method as it is typed, "fedprox mu=0.01": its name and its fields."""

    text: str
    method: str
    fields: Values

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Read it.

        Raises:
            ConfigurationError: there is no such method, or it has no such field.
        """
        name, *assignments = text.split() or [""]
        known, fields = field_names(method_named(name)), {}
        for assignment in assignments:
            key, _, value = assignment.partition("=")
            if not value or key not in known:
                raise ConfigurationError(
                    f"A method of `--methods` must be like 'fedprox mu=0.01', but is {text!r}, and {key!r} is no field of "
                    f"{name} with a value. {nearest(key, known)}"
                )
            fields[key] = number(value)
        return cls(text, name if ":" in name else name.lower(), fields)

    def swept(self, fields: Values) -> "Spec":
        """The same with those of the swept fields that the method has, which are added to its name."""
        own = {key: value for key, value in fields.items() if key in field_names(method_named(self.method))}
        return Spec(" ".join([self.text, *assigned(own)]), self.method, {**self.fields, **own})

    def build(self, usual: Values, given: Values) -> FedMethod:
        """The method, with the data set's fields where the paper has none, and those that flags give.

        Raises:
            ConfigurationError: a field has not its type, or is outside its interval.
        """
        cls = method_named(self.method)
        base, own = FedMethod.__dataclass_fields__, cls.__dataclass_fields__
        weak = {key: value for key, value in usual.items() if own[key].default == base[key].default}
        return build_method(cls, {**weak, **given, **self.fields})


def build_method(cls: type[FedMethod], fields: Values) -> FedMethod:
    """A method whose fields come from a command line.

    Raises:
        ConfigurationError: one has not its type, or is outside its interval.
    """
    kinds, typed = {flag.name: flag.kind for flag in of_dataclass(cls)}, {}
    for key, value in fields.items():
        try:
            taken = conform(value, kinds[key])
        except ValueError:
            raise ConfigurationError(
                f"`{key}` of {cls.__name__} must be {wording(kinds[key])}, but is {value!r}; give such a value, or leave it out."
            ) from None
        typed[key] = value if taken == value else taken  # 1 stays 1 for a float; a list becomes a tuple
    return cls(**typed)


def number(text: str) -> Any:
    """A value as it is typed: a number, true, false, null or a word, as which all else is taken; 1e-3 is a number."""
    for read in (real, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text


def real(text: str) -> int | float:
    """A number, a whole one where it is typed as one."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def assigned(values: Values) -> list[str]:
    """Each as "name=value"."""
    return [f"{key}={value}" for key, value in values.items()]
