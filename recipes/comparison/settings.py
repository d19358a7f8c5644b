"""The data sets of a comparison with what is usual for each, the methods as they are typed, and the points of a sweep."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import yaml

from fedlightning import Classification, ConfigurationError, FederatedDataModule, FederatedTask, FedMethod
from fedlightning.data import CIFAR10, CIFAR100, FakeImages, FashionMNIST, PowerLawMNIST, Shakespeare, Synthetic
from fedlightning.data.partition_names import parse_partition
from fedlightning.errors import nearest
from fedlightning.method import field_names
from fedlightning.methods import method_named, method_names
from fedlightning.models import CharLSTM, LogisticRegression, build_model

Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A data set.

    Attributes:
        title: over the figures.
        load: the data, from all values, the seed, and how they are batched.
        values: of the flags that are not given; None for one of `CHOICES` means that there is no choice.
        fields: of the methods that have no default of their own.
    """

    title: str
    load: Callable[..., FederatedDataModule]
    values: Values
    fields: Values


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
                       _values(None,        "logistic", 100, 10, 20, 5, 0.8), {"lr": 0.03}),
    "shakespeare": Setting("Shakespeare", shakespeare,
                       _values(None,        None,       40,  10, 20, 5, 0.3), {"lr": 0.8}),
    "synthetic": Setting("Synthetic", synthetic,
                       _values(None,        "logistic", 50,  10, 20, 1, 0.8) | MADE, {"lr": 0.1}),
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
        name, *assignments = text.split()
        known, fields = field_names(method_named(name)), {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals or key not in known:
                raise ConfigurationError(
                    f"A method of `--methods` must be like 'fedprox mu=0.01', but is {text!r}, and {key!r} is no field of "
                    f"{name} with a value. {nearest(key, known)}"
                )
            fields[key] = number(value)
        return cls(text, name.lower(), fields)

    def swept(self, fields: Values) -> "Spec":
        """The same with those of the swept fields that the method has, which are added to its name."""
        own = {key: value for key, value in fields.items() if key in field_names(method_named(self.method))}
        return Spec(" ".join([self.text, *assigned(own)]), self.method, {**self.fields, **own})

    def build(self, usual: Values, given: Values) -> FedMethod:
        """The method, with the data set's fields where the paper has none, and those that flags give."""
        cls = method_named(self.method)
        base, own = FedMethod.__dataclass_fields__, cls.__dataclass_fields__
        weak = {key: value for key, value in usual.items() if own[key].default == base[key].default}
        return cls(**{**weak, **given, **self.fields})


def number(text: str) -> Any:
    """A value as it is typed: a number, true, false, null or a word; 1e-3 is a number."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)


def assigned(values: Values) -> list[str]:
    """Each as "name=value"."""
    return [f"{key}={value}" for key, value in values.items()]


# -- sweeps ------------------------------------------------------------------------------------------------------------
SWEPT = ("alpha", "batch_size", "clients_per_round", "data_alpha", "data_beta", "local_epochs", "local_steps", "model",
         "partition", "rounds")  # fmt: skip
"""The flags that can be swept, and alpha, which is that of the partition; further every field of a method."""


class Point(NamedTuple):
    """A point of a sweep.

    Attributes:
        swept: all that is swept, by name.
        values: of the flags.
        specs: the methods.
        place: the folder of the runs, for all points that share data and trainer.
    """

    swept: Values
    values: Values
    specs: list[Spec]
    place: str

    @property
    def name(self) -> str:
        """E.g. "lr=0.1_alpha=0.01"; empty if nothing is swept."""
        return "_".join(assigned(self.swept))


def points(sweeps: Sequence[str], values: Values, specs: Sequence[Spec]) -> list[Point]:
    """All points of the grid, the last name fastest.

    Args:
        sweeps: each "name=value,value".
        values: of the flags.
        specs: the methods.

    Raises:
        ConfigurationError: there is nothing of a name, a value is given twice, or a method names a swept field itself.
    """
    grid: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, several = sweep.partition("=")
        key = name.replace("-", "_")
        _check_sweep(key, sweep, specs, taken=grid)
        grid[key] = [number(value) for value in several.split(",") if value]
        if not grid[key] or len(set(map(repr, grid[key]))) < len(grid[key]):
            raise ConfigurationError(f"`--sweep` must be like lr=0.01,0.1, each value once, but is {sweep!r}.")
    return [_point(dict(zip(grid, chosen, strict=True)), values, specs) for chosen in product(*grid.values())]


def _check_sweep(key: str, sweep: str, specs: Sequence[Spec], taken: Values) -> None:
    fields = {name for spec in specs for name in field_names(method_named(spec.method))}
    if key not in {*SWEPT, *fields}:
        everywhere = {name for method in method_names() for name in field_names(method_named(method))}
        why = "no chosen method has that field" if key in everywhere else "there is none"
        raise ConfigurationError(
            f"`--sweep` must name a flag or a field of a chosen method, but is {sweep!r}: {why}. "
            f"{nearest(key, {*SWEPT, *fields})}"
        )
    fixed = [spec.text for spec in specs if key in spec.fields and key not in SWEPT]
    if fixed or key in taken:
        where = f"`--methods` has {fixed[0]!r}" if fixed else "it is swept twice"
        raise ConfigurationError(f"`--sweep {sweep}` must be the only one to set {key}, but {where}; leave one out.")


def _point(swept: Values, values: Values, specs: Sequence[Spec]) -> Point:
    flags = {key: value for key, value in swept.items() if key in SWEPT}
    changed = {key: value for key, value in flags.items() if key != "alpha"}
    if {"local_steps", "local_epochs"} & set(changed):
        changed = {"local_steps": None, "local_epochs": None, **changed}
    merged = {**values, **changed}
    if "alpha" in flags:
        merged["partition"] = with_alpha(merged["partition"], flags["alpha"])
    own = {key: value for key, value in swept.items() if key not in SWEPT}
    return Point(swept, merged, [spec.swept(own) for spec in specs], "_".join(assigned(flags)))


def with_alpha(partition: str | None, alpha: float) -> str:
    """The name of the same partition with another alpha.

    Raises:
        ConfigurationError: it has no alpha.
    """
    parsed: Any = parse_partition(partition) if partition else None
    if not hasattr(parsed, "alpha"):
        given = f"the partition is {partition!r}" if partition else "this data set comes with its clients"
        raise ConfigurationError(
            f"`--sweep alpha=…` needs a partition with an alpha, such as A0d10C100, but {given}; choose such a "
            "`--partition`, or sweep data_beta with `--dataset synthetic`."
        )
    return str(replace(parsed, alpha=alpha).name)
