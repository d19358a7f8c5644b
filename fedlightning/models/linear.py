"""Models of flat features: logistic regression and the multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError, shown
from fedlightning.models.size import dense, require_size


class LogisticRegression(nn.Module):
    """One linear layer on the flattened input: Glorot-uniform weights and zero biases, as in the FedProx paper's code.

    Args:
        features: entries of one example.
        classes: number of outputs.
    """

    @checked(features=COUNT, classes=COUNT)
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        require_size("LogisticRegression", features * classes, features=features, classes=classes)
        self.linear = nn.Linear(features, classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    @checked(features=COUNT, classes=COUNT, seed="[0, 4294967172]")
    def glorot(cls, features: int, classes: int, seed: int) -> LogisticRegression:
        """The model at which the FedProx reference curves of a seed start.

        The kernel [features, classes] is drawn row by row by numpy's legacy `RandomState(123 + seed)`, uniformly in
        ±√(6 / (features + classes)), and rounded to float32. The global generators are left alone.
        """
        require_size("LogisticRegression", features * classes, features=features, classes=classes)
        limit = math.sqrt(6 / (features + classes))
        kernel = np.random.RandomState(123 + seed).uniform(-limit, limit, (features, classes))
        with torch.random.fork_rng(devices=[]):
            model = cls(features, classes)
        with torch.no_grad():
            model.linear.weight.copy_(torch.from_numpy(kernel.astype(np.float32).T))
        return model

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, …]."""
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


class MLP(nn.Module):
    """A perceptron on the flattened input; by default the "2NN" of McMahan et al., AISTATS 2017.

    Args:
        features: entries of one example.
        classes: number of outputs.
        hidden: widths of the hidden layers, each followed by a ReLU.
        bias: whether the layers have biases.
    """

    @checked(features=COUNT, classes=COUNT)
    def __init__(self, features: int, classes: int, hidden: Sequence[int] = (200, 200), *, bias: bool = True) -> None:
        super().__init__()
        _check(type(self).__name__, features, classes, hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in itertools.pairwise((features, *hidden)):
            layers += [nn.Linear(width, following, bias), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], classes, bias))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, …]."""
        logits: Tensor = self.layers(inputs)
        return logits


class LayerNormMLP(nn.Module):
    """A perceptron with layer norm and without biases: 115,400 parameters for 784 features and 62 classes.

    FederatedX calls it `fullconnect`.

    Args:
        features: entries of one example.
        classes: number of outputs.
        hidden: widths of the hidden layers, each followed by a layer norm and a ReLU.
    """

    @checked(features=COUNT, classes=COUNT)
    def __init__(self, features: int, classes: int, hidden: Sequence[int] = (100, 100, 100, 100)) -> None:
        super().__init__()
        _check(type(self).__name__, features, classes, hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in itertools.pairwise((features, *hidden)):
            layers += [nn.Linear(width, following, bias=False), nn.LayerNorm(following), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], classes, bias=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, …]."""
        logits: Tensor = self.layers(inputs)
        return logits


def _check(model: str, features: int, classes: int, hidden: Sequence[int]) -> None:
    if min(hidden, default=1) < 1:
        raise ConfigurationError(f"`hidden` of {model} must be widths of at least 1, but is {shown(hidden)}.")
    require_size(model, dense((features, *hidden, classes)), features=features, classes=classes, hidden=hidden)
