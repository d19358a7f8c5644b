"""Recurrent models of the FedProx paper (Li et al., MLSys 2020): the next character, and the sentiment of a tweet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError
from fedlightning.models.size import require_size
from fedlightning.randomness import stream


class LSTMLayer(nn.Module):
    """An LSTM as TensorFlow's `BasicLSTMCell` computes it: c' = σ(f + 1) c + σ(i) tanh(g), h' = σ(o) tanh(c').

    The gates i, f, g, o come from one kernel and one trainable bias, which starts at zero. The forget gate's constant 1
    lies outside of it. `torch.nn.LSTM` has two trainable biases, whose sum learns twice as fast.

    Eagerly it runs as torch's native LSTM, three times as fast on a CPU as a loop over the steps. Under `torch.func`
    and while a graph is traced, where that has no rule, it is the loop, which may also be differentiated twice.

    Args:
        inputs: features of a step.
        hidden: width of the state.
        rng: draws the kernel [inputs + hidden, 4 · hidden], Glorot-uniform over all of it.
    """

    forget_bias: Tensor

    @checked(inputs=COUNT, hidden=COUNT)
    def __init__(self, inputs: int, hidden: int, rng: np.random.Generator) -> None:
        super().__init__()
        require_size("LSTMLayer", 4 * hidden * (inputs + hidden), inputs=inputs, hidden=hidden)
        kernel = _glorot(rng, inputs + hidden, 4 * hidden)
        self.weight_ih = nn.Parameter(kernel[:, :inputs].clone())
        self.weight_hh = nn.Parameter(kernel[:, inputs:].clone())
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        constant = torch.zeros(4, hidden)
        constant[1] = 1.0
        self.register_buffer("forget_bias", constant.flatten(), persistent=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """The states [T, B, hidden] after each step, from inputs [T, B, inputs] and a zero state."""
        return self._steps(sequence) if _is_transformed() else self._native(sequence)

    def _native(self, sequence: Tensor) -> Tensor:
        zero = sequence.new_zeros(1, sequence.shape[1], self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, self.forget_bias]
        states, _, _ = torch.lstm(
            sequence,
            (zero, zero),
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=torch.is_grad_enabled(),
            bidirectional=False,
            batch_first=False,
        )
        return states

    def _steps(self, sequence: Tensor) -> Tensor:
        projected = F.linear(sequence, self.weight_ih, self.bias + self.forget_bias).unbind(0)
        hidden = cell = None
        states = []
        for gates in projected:
            if hidden is not None:
                gates = gates + F.linear(hidden, self.weight_hh)
            i, f, g, o = gates.chunk(4, -1)
            new = i.sigmoid() * g.tanh()
            cell = new if cell is None else f.sigmoid() * cell + new
            hidden = o.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states)


class CharLSTM(nn.Module):
    """The next character of Shakespeare: 817,872 parameters for the paper's 80 characters.

    An embedding, LSTM layers and a linear layer on the last state. All weights are Glorot-uniform and all biases zero,
    as in the paper's program; the forget gates have a constant bias of 1.

    Args:
        vocabulary: number of characters.
        embedding: features of a character.
        hidden: width of each LSTM layer.
        layers: how many there are.
        seed: of the start; the global generators are left alone.
    """

    @checked(vocabulary=COUNT, embedding=COUNT, hidden=COUNT, layers=COUNT)
    def __init__(
        self, vocabulary: int = 80, embedding: int = 8, hidden: int = 256, layers: int = 2, *, seed: int = 0
    ) -> None:
        super().__init__()
        parameters = vocabulary * (embedding + hidden) + 4 * hidden * (embedding + hidden) + 8 * layers * hidden**2
        sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden, "layers": layers}
        require_size("CharLSTM", parameters, **sizes)
        rng = stream(seed, "init")
        self.embedding = nn.Embedding.from_pretrained(_glorot(rng, embedding, vocabulary), freeze=False)
        self.lstm = _stacked(embedding, hidden, layers, rng)
        self.linear = _linear(hidden, vocabulary, rng)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, vocabulary] of the character after tokens [B, T]."""
        logits: Tensor = self.linear(self.lstm(self.embedding(tokens.T))[-1])
        return logits


class SentimentLSTM(nn.Module):
    """Whether a tweet is positive: 243,861 trainable parameters on word vectors of 300 features.

    Frozen word vectors, LSTM layers, and two linear layers with nothing between them on the last state. They give one
    logit z, and the model gives (0, z): the softmax cross-entropy of `Classification(model, classes=2)` is then the
    paper's sigmoid cross-entropy of z, and class 1 is predicted if and only if z > 0.

    Args:
        vectors: the words' vectors [V + 1, d], the last one for unknown words and padding. They are no parameters: no
            method sees them, no checkpoint holds them, and all copies of the model share them.
        hidden: width of each LSTM layer.
        layers: how many there are.
        dense: width of the first linear layer.
        seed: of the start; the global generators are left alone.

    Raises:
        ConfigurationError: `vectors` is not a table of floating-point numbers.
    """

    @checked(hidden=COUNT, layers=COUNT, dense=COUNT)
    def __init__(self, vectors: Tensor, hidden: int = 100, layers: int = 2, dense: int = 30, *, seed: int = 0) -> None:
        super().__init__()
        rng = stream(seed, "init")
        self.words = FrozenEmbedding(vectors)
        parameters = 4 * hidden * (vectors.shape[1] + 2 * layers * hidden) + hidden * dense
        require_size("SentimentLSTM", parameters, hidden=hidden, layers=layers, dense=dense)
        self.lstm = _stacked(vectors.shape[1], hidden, layers, rng)
        self.head = nn.Sequential(_linear(hidden, dense, rng), _linear(dense, 1, rng))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (0, z) [B, 2] of tokens [B, T]."""
        words = self.words(tokens.T).to(self.head[0].weight.dtype)
        return F.pad(self.head(self.lstm(words)[-1]), (1, 0))


class FrozenEmbedding(nn.Module):
    """Rows of a table that is never trained. Deep copies share it: it may fill half a gigabyte.

    Args:
        vectors: the table [V, d].

    Raises:
        ConfigurationError: it is not a table of floating-point numbers.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        if vectors.dim() != 2 or not len(vectors) or not vectors.is_floating_point() or vectors.is_meta:
            raise ConfigurationError(
                "`vectors` must be a table of floating-point numbers [V, d], but is "
                f"{str(vectors.dtype).removeprefix('torch.')} {list(vectors.shape)}."
            )
        self.register_buffer("vectors", vectors.detach(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors [..., d] of tokens [...]."""
        return F.embedding(tokens, self.vectors)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEmbedding:
        return FrozenEmbedding(self.vectors).train(self.training)


def _stacked(inputs: int, hidden: int, layers: int, rng: np.random.Generator) -> nn.Sequential:
    return nn.Sequential(*(LSTMLayer(hidden if layer else inputs, hidden, rng) for layer in range(layers)))


def _linear(inputs: int, outputs: int, rng: np.random.Generator) -> nn.Linear:
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(_glorot(rng, inputs, outputs))
        linear.bias.zero_()
    return linear


def _glorot(rng: np.random.Generator, inputs: int, outputs: int) -> Tensor:
    """A kernel [outputs, inputs] (float32), uniform in ±√(6 / (inputs + outputs))."""
    limit = math.sqrt(6 / (inputs + outputs))
    return torch.from_numpy(rng.uniform(-limit, limit, (outputs, inputs)).astype(np.float32))


def _is_transformed() -> bool:
    """Whether a `torch.func` transform, a tracer or a compiler looks on."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
