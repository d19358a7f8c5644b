"""Recurrent models of sentences: the next word of Stack Overflow (Reddi et al., ICLR 2021)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.models.recurrent import LSTMLayer, _glorot, _is_transformed, _linear
from fedlightning.models.size import require_size
from fedlightning.randomness import stream


class GRULayer(nn.Module):
    """A gated recurrent unit as cuDNN and `torch.nn.GRU` compute it (Cho et al., EMNLP 2014), with one bias per gate.

    r = σ(W_r x + U_r h + b_r), z = σ(W_z x + U_z h + b_z), n = tanh(W_n x + b_n + r (U_n h + c)), h' = (1 − z) n + z h.

    Eagerly it runs as torch's native GRU. Under `torch.func` and while a graph is traced, where that has no rule, it is a
    loop over the steps, which may also be differentiated twice.

    Args:
        inputs: features of a step.
        hidden: width of the state.
        rng: draws the kernel [inputs + hidden, 3 · hidden], Glorot-uniform over all of it; biases start at zero.
    """

    zeros: Tensor

    @checked(inputs=COUNT, hidden=COUNT)
    def __init__(self, inputs: int, hidden: int, rng: np.random.Generator) -> None:
        super().__init__()
        require_size("GRULayer", 3 * hidden * (inputs + hidden), inputs=inputs, hidden=hidden)
        kernel = _glorot(rng, inputs + hidden, 3 * hidden)
        self.weight_ih = nn.Parameter(kernel[:, :inputs].clone())
        self.weight_hh = nn.Parameter(kernel[:, inputs:].clone())
        self.bias = nn.Parameter(torch.zeros(3 * hidden))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("zeros", torch.zeros(2 * hidden), persistent=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """The states [T, B, hidden] after each step, from inputs [T, B, inputs] and a zero state."""
        return self._steps(sequence) if _is_transformed() else self._native(sequence)

    def _native(self, sequence: Tensor) -> Tensor:
        zero = sequence.new_zeros(1, sequence.shape[1], self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.cat([self.zeros, self.inner_bias])]
        states, _ = torch.gru(
            sequence,
            zero,
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
        inner_bias = torch.cat([self.zeros, self.inner_bias])
        projected = F.linear(sequence, self.weight_ih, self.bias).unbind(0)
        state = torch.zeros_like(projected[0][..., : len(self.inner_bias)])
        states = []
        for gates in projected:
            r, z, n = gates.chunk(3, -1)
            own_r, own_z, own_n = F.linear(state, self.weight_hh, inner_bias).chunk(3, -1)
            update = (z + own_z).sigmoid()
            new = (n + (r + own_r).sigmoid() * own_n).tanh()
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states)


class WordRNN(nn.Module):
    """The next word after each word of a sentence: 4,050,748 parameters with an LSTM and 10,000 words + 4 tokens.

    An embedding, recurrent layers, a linear layer back to the embedding's width, and a linear layer to the logits: the
    model of Reddi et al., ICLR 2021, and of TensorFlow Federated. All weights start Glorot-uniform and all
    biases at zero, where Keras draws recurrent weights orthogonal; the LSTM's forget gates have a constant bias of 1.

    Args:
        vocabulary: number of tokens, the special ones among them.
        cell: "lstm" or "gru".
        embedding: features of a token.
        hidden: width of each recurrent layer.
        layers: how many there are.
        seed: of the start; the global generators are left alone.

    Raises:
        ConfigurationError: a number is not positive, or the cell is unknown.
    """

    @checked(vocabulary=COUNT, embedding=COUNT, hidden=COUNT, layers=COUNT)
    def __init__(
        self,
        vocabulary: int = 10_004,
        cell: Literal["lstm", "gru"] = "lstm",
        *,
        embedding: int = 96,
        hidden: int = 670,
        layers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        parameters = 2 * vocabulary * embedding + 4 * hidden * (embedding + hidden) + 8 * layers * hidden**2
        sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden, "layers": layers}
        require_size("WordRNN", parameters, **sizes)
        rng = stream(seed, "init")
        self.embedding = nn.Embedding.from_pretrained(_glorot(rng, embedding, vocabulary), freeze=False)
        widths = [embedding] + [hidden] * (layers - 1)
        self.cells = nn.Sequential(*(_CELLS[cell](width, hidden, rng) for width in widths))
        self.projection = _linear(hidden, embedding, rng)
        self.linear = _linear(embedding, vocabulary, rng)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of the token after each of tokens [B, T]."""
        states = self.cells(self.embedding(tokens.T)).transpose(0, 1)
        logits: Tensor = self.linear(self.projection(states))
        return logits


_CELLS: dict[str, type[LSTMLayer] | type[GRULayer]] = {"lstm": LSTMLayer, "gru": GRULayer}
