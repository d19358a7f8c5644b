"""Models of the papers, each an ordinary `nn.Module`; any other works as well."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError, nearest
from fedlightning.models.autoencoder import ConvAutoencoder, DenseAutoencoder
from fedlightning.models.cnn import CNN, FedAvgCNN, LeNet
from fedlightning.models.dropout import KeyedDropout, dropout_key_names, key_dropout, set_dropout_key
from fedlightning.models.linear import MLP, LayerNormMLP, LogisticRegression
from fedlightning.models.recurrent import CharLSTM, LSTMLayer, SentimentLSTM
from fedlightning.models.resnet import resnet6, resnet18, resnet34, resnet50, resnet101
from fedlightning.models.text import GRULayer, WordRNN
from fedlightning.models.vit import ViT, vit_base, vit_small
from fedlightning.randomness import torch_stream

__all__ = [
    "CNN",
    "MLP",
    "CharLSTM",
    "ConvAutoencoder",
    "DenseAutoencoder",
    "FedAvgCNN",
    "GRULayer",
    "KeyedDropout",
    "LSTMLayer",
    "LayerNormMLP",
    "LeNet",
    "LogisticRegression",
    "SentimentLSTM",
    "ViT",
    "WordRNN",
    "build_model",
    "dropout_key_names",
    "key_dropout",
    "resnet6",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "set_dropout_key",
    "vit_base",
    "vit_small",
]

_OF_FEATURES: dict[str, Callable[..., nn.Module]] = {
    "fullconnect": LayerNormMLP,
    "logical": lambda features, classes: MLP(features, classes, (1000,), bias=False),
    "logistic": LogisticRegression,
    "mlp": MLP,
}
_OF_IMAGES: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "cnnautoencoder": ConvAutoencoder,
    "fedavg-cnn": FedAvgCNN,
    "lenet": LeNet,
    "resnet6": resnet6,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "vitbase": vit_base,
    "vitsmall": vit_small,
}
_OF_ANY: dict[str, Callable[..., nn.Module]] = {"autoencoder": DenseAutoencoder}
_KNOWN = {**_OF_FEATURES, **_OF_IMAGES, **_OF_ANY}


@checked(classes=COUNT, groups=COUNT)
def build_model(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    seed: int = 0,
    *,
    groups: int | None = None,
    positions: bool | None = None,
) -> nn.Module:
    """A model by name, initialised from the seed alone; the global generators are left as they were.

    | name | model |
    |---|---|
    | "logistic", "mlp", "logical", "fullconnect" | linear layers on the flattened input |
    | "cnn", "fedavg-cnn", "lenet" | small convolutional networks |
    | "resnet6", "resnet18", "resnet34", "resnet50", "resnet101" | residual networks with group norm |
    | "vitbase", "vitsmall" | vision transformers |
    | "autoencoder", "cnnautoencoder" | autoencoders, whose output has the shape of the input whatever `classes` is |

    Args:
        name: one of these.
        shape: the shape of one example, (channels, size, size) for a model of images.
        classes: number of outputs.
        seed: the run's seed.
        groups: groups of the group norms of "cnn" (its first) and the residual networks; None for the model's own.
        positions: whether a vision transformer has position embeddings; None for yes.

    Raises:
        ConfigurationError: the name is unknown, the shape does not fit the model, there is no class, or an option is
            given to a model that does not have it.
    """
    if not shape or min(shape) < 1:
        raise ConfigurationError(f"`shape` of build_model must hold numbers of at least 1, but is {shape}.")
    if name not in _KNOWN:
        raise ConfigurationError(f"`model` must be a known name, but is {name!r}. {nearest(name, _KNOWN)}")
    arguments = _options(name, {"groups": groups, "positions": positions}) | _sizes(name, tuple(shape), classes)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch_stream(seed, "init").get_state())
        return _KNOWN[name](**arguments)


def _sizes(name: str, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """What the model takes of the example's shape and the number of classes."""
    if name in _OF_IMAGES and (len(shape) != 3 or shape[1] != shape[2]):
        raise ConfigurationError(
            f"An example for model {name!r} must be a square image (channels, size, size), but has shape {shape}; use "
            "'mlp' or 'logistic', which flatten their input, or reshape the data."
        )
    known = {"features": math.prod(shape), "shape": shape, "classes": classes, "channels": shape[0], "size": shape[-1]}
    return {key: value for key, value in known.items() if key in inspect.signature(_KNOWN[name]).parameters}


def _options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are given, each of which the model must have."""
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        having = [known for known, make in _KNOWN.items() if option in inspect.signature(make).parameters]
        if name not in having:
            raise ConfigurationError(
                f"`{option}` must be left out for model {name!r}, which has none, but is {value!r}; models with "
                f"`{option}`: {', '.join(having)}."
            )
    return given
