"""Models of the papers, each an ordinary `nn.Module`; any other works as well."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fedlightning.errors import ConfigurationError, nearest, require_within
from fedlightning.models.cnn import CNN, FedAvgCNN, LeNet
from fedlightning.models.dropout import KeyedDropout, dropout_key_names, key_dropout, set_dropout_key
from fedlightning.models.linear import MLP, LogisticRegression
from fedlightning.models.recurrent import CharLSTM, LSTMLayer, SentimentLSTM
from fedlightning.models.resnet import resnet18, resnet34, resnet50
from fedlightning.streams import torch_stream

__all__ = [
    "CNN",
    "MLP",
    "CharLSTM",
    "FedAvgCNN",
    "KeyedDropout",
    "LSTMLayer",
    "LeNet",
    "LogisticRegression",
    "SentimentLSTM",
    "build_model",
    "dropout_key_names",
    "key_dropout",
    "resnet18",
    "resnet34",
    "resnet50",
    "set_dropout_key",
]

_OF_FEATURES: dict[str, Callable[[int, int], nn.Module]] = {"logistic": LogisticRegression, "mlp": MLP}
_OF_IMAGES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": CNN,
    "fedavg-cnn": FedAvgCNN,
    "lenet": LeNet,
    "resnet18": lambda channels, classes, _: resnet18(classes, channels),
    "resnet34": lambda channels, classes, _: resnet34(classes, channels),
    "resnet50": lambda channels, classes, _: resnet50(classes, channels),
}


def build_model(name: str, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """A model by name, initialised from the seed alone; the global generators are left as they were.

    Args:
        name: "logistic", "mlp", "cnn", "fedavg-cnn", "lenet", "resnet18", "resnet34" or "resnet50".
        shape: the shape of one example, (channels, size, size) for a model of images.
        classes: number of outputs.
        seed: the run's seed.

    Raises:
        ConfigurationError: the name is unknown, the shape does not fit the model, or there is no class.
    """
    if name not in {**_OF_FEATURES, **_OF_IMAGES}:
        raise ConfigurationError(
            f"`model` must be a known name, but is {name!r}. {nearest(name, [*_OF_FEATURES, *_OF_IMAGES])}"
        )
    require_within(classes, "[1, inf)", "`classes` of a model")
    if name in _OF_IMAGES and (len(shape) != 3 or shape[1] != shape[2]):
        raise ConfigurationError(
            f"An example for model {name!r} must be a square image (channels, size, size), but has shape "
            f"{tuple(shape)}; use 'mlp' or 'logistic', which flatten their input, or reshape the data."
        )
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch_stream(seed, "init").get_state())
        if name in _OF_FEATURES:
            return _OF_FEATURES[name](math.prod(shape), classes)
        return _OF_IMAGES[name](shape[0], classes, shape[1])
