"""Wrong values, given to everything public that takes values: each works, or is refused in one line before the first round.

The values are made from the signatures: for each parameter, one wrong value after another, and valid ones for the others.
What comes back must run, where it is part of a run. Refusals name the parameter, who has it, and what was given.
"""

from __future__ import annotations

import faulthandler
import inspect
import math
import numbers
import re
import resource
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor, nn

import fedlightning
from fedlightning import (
    Batching,
    Callback,
    Classification,
    Examples,
    FedAvg,
    FederatedTask,
    FederatedTrainer,
    FedLightningError,
    FedMethod,
    NextToken,
    Partition,
    Reconstruction,
    Regression,
    SlotStrategy,
    TensorData,
    analysis,
    callbacks,
    compare,
    data,
    datasets,
    hyper,
    keyed_uniform,
    methods,
    models,
    participation,
    stream,
    testing,
)
from fedlightning.contrib.fedprox_program import ReplayedStragglers, RoundSeeded, RoundSeededStragglers
from fedlightning.data import IID
from fedlightning.datasets import FakeImages, LeafData
from fedlightning.loggers import run_loggers
from fedlightning.participation import UniformSampling

SECONDS = 20
"""After which a call has hung."""

BYTES = 2 * 2**30
"""What a call may take of the address space; a slot's thread takes some hundred MiB of it."""

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


# -- what is tried -----------------------------------------------------------------------------------------------------
class Stranger:
    """An object that nothing takes."""


def a_function(*arguments: Any, **options: Any) -> None:
    """A function that does nothing."""


def wrong_values(right: Any) -> dict[str, Any]:
    """Values by what they are; for a parameter whose right value is an array or an object, that one's likes, too."""
    found: dict[str, Any] = {
        "None": None, "''": "", "'abc'": "abc", "b'abc'": b"abc", "[]": [], "()": (), "{}": {}, "[None]": [None], "-1": -1, "0": 0,
        "10**9": 10**9, "10**30": 10**30, "1.5": 1.5, "-0.5": -0.5, "1e30": 1e30, "True": True, "nan": math.nan, "inf": math.inf,
        "-inf": -math.inf, "1j": 1j, "a class": Stranger, "an object": Stranger(), "a function": a_function,
        "a NumPy array": np.array([1.5, 2.5]), "a tensor": torch.tensor([1.5]), "torch.tensor(2)": torch.tensor(2),
    }  # fmt: skip
    if isinstance(right, int) and not isinstance(right, bool):
        found |= {"NumPy's int": np.int32(right), "a float": float(right), "in words": str(right)}
    if isinstance(right, float):
        found |= {"NumPy's float": np.float32(right), "in words": str(right)}
    if isinstance(right, Tensor):
        found |= {
            "its array": right.numpy(), "its list": right.tolist(), "as floats": right.to(torch.float64), "as bools": right > 0,
            "as bytes": right.to(torch.uint8), "as int32": right.to(torch.int32), "one more dimension": right[None],
            "negative": -right - 1, "complex": right.to(torch.complex64), "on no device": right.to("meta"),
        }  # fmt: skip
        if right.dim():
            found |= {"empty": right[:0], "one less dimension": right[0], "the first half": right[: len(right) // 2]}
    elif not isinstance(right, bool | int | float | str | tuple | list | dict | Path | None):
        found["its class"] = type(right)
    if isinstance(right, tuple | list) and right:
        found |= {
            "a list": list(right),
            "in words": str(right),
            "its first": right[0],
            "with a hole": [*right[:-1], None],
        }
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as a reader takes it: numbers of NumPy are numbers, a bool and a word are none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return fits(value, hint.__bound__ or Any)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin in FITS:
        return FITS[origin](value, inner)
    return hint is Any or (FITS[hint](value, inner) if hint in FITS else _is_one(value, origin or hint))


def _is_one(value: Any, kind: Any) -> bool:
    if getattr(kind, "_is_protocol", False):
        return isinstance(value, kind) and not isinstance(value, type | Tensor)
    return isinstance(value, kind)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and not math.isnan(value)


def _is_row(value: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple | list):
        return False
    wanted = inner[:1] * len(value) if Ellipsis in inner or len(inner) == 1 else inner
    return len(wanted) == len(value) and all(map(fits, value, wanted))


def _is_dictionary(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())


def _is_word(value: Any, words: tuple[Any, ...]) -> bool:
    plain = isinstance(value, str | numbers.Number)
    return plain and any(value == word and isinstance(value, bool) == isinstance(word, bool) for word in words)


FITS: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    types.NoneType: lambda value, _: value is None,
    int: lambda value, _: _is_number(value, numbers.Integral),
    float: lambda value, _: _is_number(value, numbers.Real),
    Literal: _is_word,
    tuple: _is_row,
    Sequence: _is_row,
    Mapping: _is_dictionary,
    dict: _is_dictionary,
    Callable: lambda value, _: callable(value),
}


# -- to whom -----------------------------------------------------------------------------------------------------------
@dataclass
class Case:
    """Something public that is called.

    Attributes:
        call: what.
        right: a valid value for each parameter that must be given, or whose wrong values need one to start from.
        then: what a run does with what comes back.
        owner: what a refusal calls it.
        only: the parameters that are tried; () for all.
    """

    call: Callable[..., Any]
    right: Callable[[], dict[str, Any]] = dict
    then: Callable[[Any], Any] = a_function
    owner: str = ""
    only: tuple[str, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """What a caller may give, with the type of each."""
        of_fields = isinstance(self.call, type) and issubclass(self.call, FedMethod)
        hints = typing.get_type_hints(self.call if of_fields or inspect.isroutine(self.call) else self.call.__init__)
        taken = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [name for name, p in inspect.signature(self.call).parameters.items() if p.kind in taken]
        return {name: hints.get(name, Any) for name in names if not self.only or name in self.only}


class Stop(Callback):
    """Ends a run after two rounds, however many were asked for."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        trainer.should_stop = trainer.should_stop or trainer.round > 1


def short_run(trainer: FederatedTrainer | None = None, **given: Any) -> None:
    """Two rounds of a small run, with some of it exchanged; or all of a trainer's."""
    parts: dict[str, Any] = {"method": FedAvg(), "task": Classification(nn.Linear(4, 3)), "data": tensors()}
    if trainer:
        trainer.fit(**parts)
        return
    callbacks = [*given.pop("callbacks", []), Stop()]
    fit(**{**parts, "evaluate_every": 1, "slots": "auto", "callbacks": callbacks, **given})


def fit_method(method: FedMethod) -> None:
    short_run(method=method, evaluate_on=("test", "train"))


def fit_slots(strategy: SlotStrategy) -> None:
    if strategy.runner != "compiled":  # a compiler takes half a minute
        short_run(strategy=strategy)


def tensors(**options: Any) -> TensorData:
    return TensorData(
        Examples(X, Y), Partition.of_sizes(torch.tensor([6, 6, 6, 6])), **{"batching": Batching(4), **options}
    )


def fit_images(images: Any) -> None:
    task = Classification(models.LogisticRegression(math.prod(images.shape), images.classes), images.classes)
    short_run(
        data=images, task=Reconstruction(models.DenseAutoencoder(images.shape)) if images.target == "image" else task
    )


def fit_split(partitioner: Any) -> None:
    short_run(data=TensorData(Examples(X, Y), partitioner.split(Y, 0), batching=Batching(4)))


def forward(example: Tensor) -> Callable[[nn.Module], Any]:
    return lambda model: model(example)


def of_methods() -> Iterator[Case]:
    for method in (getattr(methods, name) for name in methods.__all__ if not name.startswith("method")):
        # What all methods have is tried on one of them.
        usual = {
            f.name: f.default
            for f in fields(method)
            if method is FedAvg or f.name not in FedMethod.__dataclass_fields__
        }
        if usual:
            yield Case(method, lambda usual=usual: usual, fit_method, only=tuple(usual))
    yield Case(methods.method_named, lambda: {"name": "fedavg"}, owner="method")
    yield Case(hyper, lambda: {"default": 0.1, "within": "[0, 1]"})
    yield Case(testing.check_method, lambda: {"method": FedAvg()})


def of_tasks() -> Iterator[Case]:
    def linear() -> dict[str, Any]:
        return {"model": nn.Linear(4, 3), "classes": 3, "lr": 0.1}

    def plain() -> dict[str, Any]:
        return {"model": nn.Linear(4, 3), "lr": 0.1}

    yield Case(Classification, linear, lambda made: short_run(task=made))
    yield Case(NextToken, linear, lambda made: short_run(task=made))
    yield Case(
        Regression, plain, lambda made: short_run(task=made, data=TensorData(Examples(X, X[:, :3]), IID(4).split(Y, 0)))
    )
    yield Case(
        Reconstruction,
        lambda: {"model": nn.Linear(4, 4)},
        lambda made: short_run(task=made, data=TensorData(Examples(X, X), IID(4).split(Y, 0))),
    )
    yield Case(FederatedTask, plain)
    yield Case(Classification(nn.Linear(4, 3)).with_parameters, lambda: {"x": torch.zeros(15)})


def of_data() -> Iterator[Case]:
    labels, images = (
        {"labels": Y, "seed": 0},
        {"shape": (1, 4, 4), "classes": 3, "num_train": 24, "num_test": 6, "partition": "IIDC4"},
    )
    yield Case(data.IID, lambda: {"num_clients": 4}, fit_split)
    yield Case(data.Dirichlet, lambda: {"alpha": 0.5, "num_clients": 4}, fit_split)
    yield Case(data.Shards, lambda: {"num_clients": 4}, fit_split)
    yield Case(data.QuantitySkew, lambda: {"alpha": 0.5, "num_clients": 4}, fit_split)
    yield Case(data.Natural, lambda: {"owners": torch.arange(24) % 4}, fit_split)
    for made in (
        data.IID(4),
        data.Dirichlet(0.5, 4),
        data.Dirichlet(0.5, 4, form="client"),
        data.Shards(4),
        data.QuantitySkew(0.5, 4),
    ):
        yield Case(made.split, lambda: labels, own_partition, type(made).__name__)
    yield Case(data.Natural(torch.arange(24) % 4).split, lambda: labels, own_partition, "Natural")
    yield Case(data.parse_partition, lambda: {"name": "IIDC4"}, fit_split, "partition")
    sizes = torch.tensor([6, 6, 6, 6])
    yield Case(Partition, lambda: {"indices": torch.arange(24), "offsets": torch.arange(0, 25, 6)}, own_partition)
    yield Case(Partition.of, lambda: {"clients": list(torch.arange(24).split(6))}, own_partition, "Partition")
    yield Case(
        Partition.of_owners, lambda: {"owners": torch.arange(24) % 4, "num_clients": 4}, own_partition, "Partition"
    )
    yield Case(Partition.of_sizes, lambda: {"sizes": sizes, "indices": torch.arange(24)}, own_partition, "Partition")
    yield Case(Partition.of_sizes(sizes).check, lambda: {"num_examples": 24}, owner="artition")
    yield Case(Partition.of_sizes(sizes).mirror, lambda: {"labels": Y, "other": Y[:6]}, owner="Partition")
    yield Case(Partition.of_sizes(sizes).histogram, lambda: {"labels": Y, "classes": 3}, owner="Partition")
    yield Case(
        Examples,
        lambda: {"inputs": X, "targets": Y},
        lambda made: short_run(data=TensorData(made, Partition.of_sizes(sizes))),
    )
    yield Case(
        data.Splits,
        lambda: dict(zip(data.Splits._fields, (Examples(X, Y), Partition.of_sizes(sizes)) * 3, strict=True)),
        lambda made: short_run(data=Loads(made)),
    )
    yield Case(
        data.gather,
        lambda: {"examples": Examples(X, Y), "clients": Partition.of_sizes(sizes)},
        lambda made: short_run(data=TensorData(*made)),
    )
    yield Case(
        data.set_aside,
        lambda: {"clients": Partition.of_sizes(sizes), "fraction": 0.5, "seed": 0},
        lambda made: own_partition(made[0]),
    )
    yield Case(Batching, lambda: {"size": 4, "epochs": 1}, lambda made: short_run(data=tensors(batching=made)))
    options = {"batching": Batching(4)}
    yield Case(
        TensorData,
        lambda: {
            "train": Examples(X, Y),
            "clients": Partition.of_sizes(sizes),
            "test": Examples(X[:8], Y[:8]),
            **options,
        },
        lambda made: short_run(data=made),
    )
    yield Case(data.FederatedDataModule, lambda: options)
    yield Case(FakeImages, lambda: images, fit_images)
    yield Case(datasets.ImageData, lambda: {"partition": "IIDC4"})
    for known in (datasets.CIFAR10, datasets.CIFAR100, datasets.MNIST, datasets.FashionMNIST, datasets.EMNIST):
        yield Case(
            known, lambda: {"partition": "IIDC4", "root": "nowhere", "download": False}, lambda made: made.setup()
        )
    for known in (
        datasets.FEMNIST,
        datasets.OmniglotWriters,
        datasets.Sent140,
        datasets.Shakespeare,
        datasets.StackOverflow,
    ):
        yield Case(known, lambda: {"root": "nowhere"}, lambda made: made.setup())
    yield Case(datasets.PowerLawMNIST, lambda: {"root": "nowhere", "download": False}, lambda made: made.setup())
    yield Case(datasets.Synthetic, lambda: {"alpha": 0.5}, lambda made: made.setup())
    yield Case(datasets.generate, lambda: {"alpha": 0.5, "beta": 0.5, "iid": False})
    yield Case(
        data.statistics_table,
        lambda: {"name": "a name", "clients": Partition.of_sizes(sizes), "test_clients": Partition.of_sizes(sizes)},
    )
    yield Case(datasets.Glove.read, lambda: {"root": Path("nowhere")}, owner="Glove")
    yield Case(datasets.read_leaf, lambda: {"path": Path("nowhere")})
    yield Case(LeafData, lambda: {"train": "nowhere"}, lambda made: made.setup())
    yield Case(datasets.NextWord, lambda: {"model": nn.Embedding(9, 9), "vocab_size": 9})
    yield Case(data.RandomCropFlip, lambda: {"padding": 1}, lambda made: fit_crops(made))
    yield Case(data.RandomCropRotate, lambda: {"size": 4, "image_size": 4}, lambda made: fit_crops(made))
    yield Case(
        data.TFFCifar,
        lambda: {"size": 3, "image_size": 4},
        lambda made: fit_images(FakeImages(**images, transform=made)),
    )


class Loads(data.FederatedDataModule):
    """A data module that loads what it is given."""

    def __init__(self, loaded: Any) -> None:
        super().__init__(batching=Batching(4))
        self.loaded = loaded

    def load(self) -> Any:
        return self.loaded


def own_partition(partition: Partition) -> None:
    short_run(data=TensorData(Examples(X, Y), partition, batching=Batching(4)))


def fit_crops(augmentation: Any) -> None:
    images = Examples(torch.randn(24, 1, 4, 4), Y)
    task = Classification(models.LogisticRegression(16, 3), 3)
    short_run(data=TensorData(images, IID(4).split(Y, 0), augmentation=augmentation), task=task)


def of_rounds() -> Iterator[Case]:
    asked = {"round": 0, "num_clients": 4, "count": 2, "seed": 0}
    for sampler in (
        UniformSampling(),
        participation.SizeWeighted((6, 6, 6, 6)),
        RoundSeeded(),
        participation.FixedSchedule(((0, 1),)),
    ):
        name = type(sampler).__name__
        yield Case(sampler.sample, lambda: asked, owner=name)
        yield Case(sampler.check, lambda: {"num_clients": 4, "count": 2})
        yield Case(sampler.bind, lambda: {"clients": Partition.of_sizes(torch.tensor([6, 6]))}, owner=name)
    yield Case(
        participation.SizeWeighted,
        lambda: {"sizes": (6, 6, 6, 6)},
        lambda made: short_run(sampler=made, clients_per_round=2),
    )
    yield Case(participation.FixedSchedule, lambda: {"rounds": ((0, 1),)}, lambda made: short_run(sampler=made))
    yield Case(participation.Stragglers, lambda: {"fraction": 0.5}, lambda made: short_run(stragglers=made))
    yield Case(RoundSeededStragglers, lambda: {"fraction": 0.5}, lambda made: short_run(stragglers=made))
    yield Case(
        ReplayedStragglers,
        lambda: {"fraction": 0.5},
        lambda made: short_run(stragglers=made, sampler=RoundSeeded(), data=tensors(batching=Batching(4, epochs=3))),
    )
    yield Case(SlotStrategy, lambda: {"slots": 1, "cohort_size": 2, "runner": "vmap", "memory_bytes": 700}, fit_slots)
    yield Case(
        FederatedTrainer,
        lambda: {"max_rounds": 2, "callbacks": [Stop()], "logger": False, "strategy": SlotStrategy(1, runner="loop")},
        lambda made: short_run(trainer=made),
    )
    yield Case(
        FederatedTrainer(2, callbacks=[], logger=False).fit,
        lambda: {"method": FedAvg(), "task": Classification(nn.Linear(4, 3)), "data": tensors()},
    )
    yield Case(
        FederatedTrainer(2, callbacks=[], logger=False).save_checkpoint,
        lambda: {"path": Path("nowhere") / "x"},
    )


def of_callbacks() -> Iterator[Case]:
    right = {
        "EarlyStopping": {"monitor": "train/loss"},
        "ModelCheckpoint": {"dirpath": "checkpoints", "monitor": "train/loss"},
    }
    for module in (callbacks, analysis):
        for name in sorted(set(module.__all__) - {"CohortResult", "dissimilarity_at"}):
            call = getattr(module, name)
            if inspect.signature(call).parameters:
                yield Case(call, lambda name=name: right.get(name, {}), lambda made: short_run(callbacks=[made]))
    yield Case(run_loggers, lambda: {"root": "logs", "name": "a_run"}, lambda made: short_run(logger=made))
    yield Case(analysis.dissimilarity_at, lambda: {"task": Classification(nn.Linear(4, 3)), "data": tensors()})


def of_comparisons() -> Iterator[Case]:
    def right() -> dict[str, Any]:
        return {
            "methods": [FedAvg()],
            "task": Classification(nn.Linear(4, 3)),
            "data": tensors(),
            "seeds": (0,),
            "trainer": {"max_rounds": 1},
        }

    yield Case(compare.Comparison, right, owner="ompariso")
    yield Case(compare.name_methods, lambda: {"methods": [FedAvg()]}, owner="comparison")
    yield Case(compare.read_run, lambda: {"folder": Path("nowhere"), "name": "a", "seed": 0})
    yield Case(compare.Table, lambda: {"outcomes": ()})
    yield Case(compare.run_together, lambda: {"comparisons": []})
    eye = torch.eye(2)
    quadratics = {"curvatures": [eye, eye], "optima": [torch.zeros(2), torch.ones(2)], "num_examples": [3, 3]}
    yield Case(
        testing.Quadratics,
        lambda: quadratics,
        lambda made: short_run(data=made, task=testing.Quadratics.task([0.0, 0.0])),
    )
    yield Case(testing.Quadratics.task, lambda: {"start": [0.0, 0.0]}, owner="Quadratics")


def of_models() -> Iterator[Case]:
    image, flat, tokens = torch.zeros(2, 1, 16, 16), torch.zeros(2, 4), torch.zeros(2, 5, dtype=torch.int64)
    rng = np.random.default_rng(0)
    small: dict[str, tuple[dict[str, Any], Tensor]] = {
        "CNN": ({"channels": 1, "classes": 3, "size": 16, "groups": 8}, image),
        "FedAvgCNN": ({"channels": 1, "classes": 3, "size": 16}, image),
        "LeNet": ({"channels": 1, "classes": 3, "size": 16}, image),
        "MLP": ({"features": 4, "classes": 3, "hidden": (5,)}, flat),
        "LayerNormMLP": ({"features": 4, "classes": 3, "hidden": (5,)}, flat),
        "LogisticRegression": ({"features": 4, "classes": 3}, flat),
        "CharLSTM": ({"vocabulary": 9, "embedding": 4, "hidden": 4, "layers": 1}, tokens),
        "SentimentLSTM": ({"vectors": torch.zeros(9, 3), "hidden": 4, "layers": 1, "dense": 3}, tokens),
        "WordRNN": ({"vocabulary": 9, "embedding": 4, "hidden": 4, "layers": 1}, tokens),
        "LSTMLayer": ({"inputs": 3, "hidden": 4, "rng": rng}, torch.zeros(5, 2, 3)),
        "GRULayer": ({"inputs": 3, "hidden": 4, "rng": rng}, torch.zeros(5, 2, 3)),
        "ConvAutoencoder": ({"channels": 1, "size": 16}, image),
        "DenseAutoencoder": ({"shape": (1, 16, 16), "widths": (5, 3)}, image),
        "ViT": (
            {"classes": 3, "channels": 1, "dim": 4, "heads": 2, "blocks": 1, "hidden": 4, "patch": 4, "size": 8},
            image,
        ),
        "KeyedDropout": ({"p": 0.5, "salt": 0}, flat),
        "key_dropout": ({"module": nn.Linear(4, 3)}, flat),
    }
    for name, (right, example) in small.items():
        yield Case(getattr(models, name), lambda right=right: right, forward(example))
    for name in ("resnet6", "resnet18", "resnet34", "resnet50", "resnet101", "vit_small"):
        only = () if name in ("resnet6", "resnet18", "vit_small") else ("norm",)  # of the large ones few are built
        yield Case(getattr(models, name), lambda: {"classes": 3, "channels": 1}, only=only)
    yield Case(
        models.LogisticRegression.glorot, lambda: {"features": 4, "classes": 3, "seed": 0}, owner="LogisticRegression"
    )
    yield Case(models.build_model, lambda: {"name": "mlp", "shape": (4,), "classes": 3}, forward(flat))
    yield Case(models.dropout_key_names, lambda: {"module": nn.Linear(4, 3)})
    yield Case(models.set_dropout_key, lambda: {"module": nn.Linear(4, 3), "key": torch.tensor(7)})
    yield Case(keyed_uniform, lambda: {"key": torch.tensor(7), "shape": (2, 3)})
    yield Case(stream, lambda: {"seed": 0, "purpose": "a purpose"})


CASES = [*of_methods(), *of_tasks(), *of_data(), *of_rounds(), *of_callbacks(), *of_comparisons(), *of_models()]


# -- how it is judged --------------------------------------------------------------------------------------------------
@contextmanager
def guarded() -> Iterator[None]:
    """A call that hangs, or takes all memory, fails as any other."""

    def hang(*_: Any) -> None:
        raise TimeoutError(f"no end in {SECONDS} seconds")

    before, limits = signal.signal(signal.SIGALRM, hang), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    status = Path("/proc/self/status")  # of Linux alone
    if status.exists():
        used = int(re.search(r"VmSize:\s+(\d+)", status.read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, name: str, hint: Any, value: Any, optional: bool) -> str:
    """What is wrong with how a value is taken, or nothing."""
    right = fits(value, hint)
    try:
        with guarded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = case.call(**{**case.right(), name: value})
            if not right:
                return "is taken"
            case.then(made)
    except FedLightningError as error:
        return unclear(case, name, str(error), right)
    except Exception as error:  # noqa: BLE001 - the point of it
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    return ""


def unclear(case: Case, name: str, text: str, right: bool) -> str:
    """What a refusal lacks: it names a value of another type with its owner, and says of any other what must hold."""
    named = name in text and (case.owner or case.call.__name__) in text and re.search("must .*, but (is|holds) ", text)
    told = re.search("(must|needs|may|cannot|has no|Either).* but |configure_server.* failed: ", text) is not None
    return "" if "\n" not in text and (named or (right and told)) else f"is refused unclearly: {text[:300]}"


def faults(case: Case) -> Iterator[tuple[str, str]]:
    parameters = inspect.signature(case.call).parameters
    for name, hint in case.parameters().items():
        right = case.right().get(name, parameters[name].default)
        for what, value in wrong_values(None if right is inspect.Parameter.empty else right).items():
            yield f"{name}={what}", judge(case, name, hint, value, parameters[name].default is None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.__qualname__}")
def test_every_wrong_value_is_taken_rightly_or_refused_in_one_line(
    case: Case, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = dict(faults(case))
    wrong = {what: fault for what, fault in tried.items() if fault}
    assert tried
    assert not wrong, "\n".join(
        f"{len(wrong)} of {len(tried)}"[:0] + f"  {what} {fault}" for what, fault in wrong.items()
    )


UNTRIED = {
    "made by a run": {
        "ClientContext",
        "CohortResult",
        "Outcome",
        "Participation",
        "Progress",
        "Round",
        "RoundPlan",
        "RoundState",
        "Schedule",
        "State",
        "Tuned",
    },
    "looked at by whoever asked for it": {"Work"},
    "errors": {"ClientError", "ConfigurationError", "FedLightningError", "MethodError"},
    "to be subclassed": {
        "Augmentation",
        "BatchingPolicy",
        "Callback",
        "ClientSampler",
        "FedMethod",
        "Partitioner",
        "Transform",
    },
    "as large as vit_small is small": {"vit_base"},
}
"""What is public and not called with wrong values, by why."""


def test_everything_public_is_tried() -> None:
    modules = (fedlightning, data, datasets, participation, models, methods, callbacks, analysis, compare)
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    tried = {case.call.__qualname__.split(".")[0] for case in CASES}
    tried |= {type(getattr(case.call, "__self__", None)).__name__ for case in CASES}
    left = set(public) - tried - {name for names in UNTRIED.values() for name in names}
    own = {
        name for name in left if set(inspect.signature(public[name]).parameters) - set(FedMethod.__dataclass_fields__)
    }
    assert own == {"compare"}, "`compare` is `Comparison` in one call"
