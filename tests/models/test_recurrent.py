"""The recurrent models: sizes and start of the paper's program, its cell, and the same numbers in every runner."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import fit
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    Examples,
    FedProx,
    Natural,
    RoundState,
    TensorData,
)
from fedlightning.execution.model import Replica
from fedlightning.layout import Layout
from fedlightning.models import CharLSTM, LSTMLayer, SentimentLSTM

WORDS = torch.from_numpy(np.random.default_rng(0).normal(size=(41, 12)))


def characters(seed: int = 0) -> CharLSTM:
    """A small one in float64, with biases that are not zero."""
    return noisy(CharLSTM(11, embedding=4, hidden=6, seed=seed).double())


def sentiment() -> SentimentLSTM:
    return noisy(SentimentLSTM(WORDS, hidden=5, dense=3).double())


def noisy(model):
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.from_numpy(rng.normal(size=tuple(parameter.shape)))
    return model


def tokens(vocabulary: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(vocabulary, size=shape))


# -- size and start ---------------------------------------------------------------------------------------------------
def test_parameter_counts_are_the_papers():
    assert Layout.of(CharLSTM()).size == 817_872
    model = SentimentLSTM(torch.zeros(7, 300))
    assert Layout.of(model).size == 243_861
    assert sum(parameter.numel() for parameter in model.parameters()) == 243_861


def test_each_layer_has_one_trainable_bias():
    assert [name for name in Layout.of(CharLSTM()).names if "bias" in name] == [
        "lstm.0.bias",
        "lstm.1.bias",
        "linear.bias",
    ]


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        (CharLSTM, {"embedding": 0.2611, "lstm.0": 0.06825, "lstm.1": 0.0625, "linear": 0.1336}),
        (
            lambda seed: SentimentLSTM(torch.zeros(2, 300), seed=seed),
            {"lstm.0": 0.0866, "lstm.1": 0.1, "head.0": 0.2148, "head.1": 0.440},
        ),
    ],
)
def test_the_start_is_glorot_uniform_with_the_joint_fan_of_a_cell(model, limits):
    model = model(seed=3)
    for name, limit in limits.items():
        weights = [p for key, p in model.named_parameters() if key.startswith(name) and "weight" in key]
        assert len(weights) == (2 if name.startswith("lstm") else 1)
        for weight in map(torch.Tensor.detach, weights):
            few = weight.numel() < 100
            assert 0.9 * limit < float(weight.abs().max()) <= 1.001 * limit
            assert float(weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.2 if few else 0.03)
            assert float(weight.mean()) == pytest.approx(0, abs=0.2 * limit if few else 0.05 * limit)
    assert all(not p.any() for key, p in model.named_parameters() if "bias" in key)


def test_the_forget_gate_has_a_constant_bias_of_one_beside_the_trainable_one():
    layer = CharLSTM().lstm[0]
    assert layer.forget_bias.tolist() == [0] * 256 + [1] * 256 + [0] * 512
    assert not layer.forget_bias.requires_grad


def test_the_start_depends_on_the_seed_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (Layout.of(m).read(m) for m in (CharLSTM(seed=5), CharLSTM(seed=5), CharLSTM(seed=6)))
    assert torch.equal(first, again)
    changed = first != other
    assert changed[first != 0].all()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


# -- the cell ---------------------------------------------------------------------------------------------------------
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def basic_lstm_cell(sequence, kernel, bias):
    """TensorFlow 1's BasicLSTMCell in NumPy: kernel [inputs + h, 4h] with columns i, j, f, o, forget bias 1."""
    h = c = np.zeros((sequence.shape[1], kernel.shape[1] // 4))
    states = []
    for x in sequence:
        i, j, f, o = np.split(np.concatenate([x, h], 1) @ kernel + bias, 4, axis=1)
        c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        states.append(h)
    return np.stack(states)


def tensorflow_variables(layer: LSTMLayer):
    """Its kernel and bias with the columns i, j, f, o."""
    rows = torch.cat([layer.weight_ih, layer.weight_hh], 1).detach().numpy()
    i, f, j, o = np.split(np.concatenate([rows, layer.bias.detach().numpy()[:, None]], 1), 4)
    both = np.concatenate([i, j, f, o]).T
    return both[:-1], both[-1]


def by_hand(model, sequence):
    for layer in model.lstm:
        sequence = basic_lstm_cell(sequence, *tensorflow_variables(layer))
    return sequence[-1]


def affine(linear: nn.Linear, x):
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def transformed(model, inputs):
    """The model's outputs under a transform, where the native LSTM has no rule."""
    return vmap(lambda _: model(inputs))(torch.zeros(1))[0]


@pytest.mark.parametrize("how", [lambda model, inputs: model(inputs), transformed])
def test_char_lstm_is_the_papers_program(how):
    model, inputs = characters(), tokens(11, 3, 9)
    embedded = model.embedding.weight.detach().numpy()[inputs.numpy().T]
    expected = affine(model.linear, by_hand(model, embedded))
    np.testing.assert_allclose(how(model, inputs).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", [lambda model, inputs: model(inputs), transformed])
def test_sentiment_lstm_is_the_papers_program(how):
    model, inputs = sentiment(), tokens(41, 3, 9)
    last = by_hand(model, WORDS.numpy()[inputs.numpy().T])
    expected = affine(model.head[1], affine(model.head[0], last))
    logits = how(model, inputs).detach()
    np.testing.assert_allclose(logits[:, 1:], expected, rtol=0, atol=1e-12)
    assert not logits[:, 0].any()


def reference(layer: LSTMLayer) -> nn.LSTM:
    """torch's LSTM with the same weights: the constant is in a bias that is not trained."""
    lstm = nn.LSTM(layer.weight_ih.shape[1], layer.weight_hh.shape[1]).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(layer.weight_ih)
        lstm.weight_hh_l0.copy_(layer.weight_hh)
        lstm.bias_ih_l0.copy_(layer.bias)
        lstm.bias_hh_l0.zero_().view(4, -1)[1] = 1.0
    return lstm


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("how", ["eager", "transformed"])
def test_gradients_are_those_of_torchs_lstm(how, steps):
    layer = characters().lstm[0]
    lstm = reference(layer)
    rng = np.random.default_rng(4)
    sequence = torch.from_numpy(rng.normal(size=(steps, 3, 4))).requires_grad_()
    weight = torch.from_numpy(rng.normal(size=(steps, 3, 6)))
    expected = torch.autograd.grad(
        (lstm(sequence)[0] * weight).sum(), [sequence, lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0]
    )
    if how == "eager":
        found = torch.autograd.grad((layer(sequence) * weight).sum(), [sequence, *layer.parameters()])
    else:
        parameters = dict(layer.named_parameters())
        loss = lambda sequence, p: (functional_call(layer, p, (sequence,)) * weight).sum()  # noqa: E731
        first, rest = grad(loss, argnums=(0, 1))(sequence, parameters)
        found = [first, *rest.values()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# -- where it runs natively -------------------------------------------------------------------------------------------
def test_it_is_native_when_nothing_looks_on_and_a_loop_when_something_does(monkeypatch):
    calls, lstm = [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *a, **k: (calls.append(1), lstm(*a, **k))[1])
    layer, x = LSTMLayer(2, 3, np.random.default_rng(0)), torch.ones(4, 1, 2)

    def native(function):
        calls.clear()
        function()
        return bool(calls)

    assert native(lambda: layer(x))
    assert native(lambda: torch.autograd.grad(layer(x).sum(), layer.bias))
    assert native(lambda: functional_call(layer, dict(layer.named_parameters()), (x,)))
    assert not native(lambda: grad(lambda x: layer(x).sum())(x))
    assert not native(lambda: vmap(layer)(x[None]))
    assert not native(lambda: make_fx(layer)(x))


def test_a_traced_cohort_gives_the_same_gradients():
    task = Classification(characters(), 11)
    layout = Layout.of(task)
    model = Replica(task, layout, torch.device("cpu")).at(torch.tensor(0))
    w = torch.stack([layout.read(task), 0.5 * layout.read(task)])
    batch = tokens(11, 2, 3, 5), tokens(11, 2, 3)
    step = vmap(grad(lambda w, inputs, targets: model.loss(w, (inputs, targets)).mean()))
    traced = make_fx(step)(w, *batch)
    torch.testing.assert_close(traced(1.1 * w, *batch), step(1.1 * w, *batch), rtol=0, atol=1e-14)


def test_a_gradient_can_be_differentiated_under_a_transform():
    layer = characters().lstm[0]
    x = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 2, 4)))
    slope = grad(lambda x: layer(x).square().sum())
    curvature = grad(lambda x: slope(x)[0, 0, 0])(x).detach()
    step = torch.zeros_like(x)
    step[2, 0, 1] = 1e-5
    numeric = (slope(x + step) - slope(x - step))[0, 0, 0].detach() / 2e-5
    assert float(curvature[2, 0, 1]) == pytest.approx(float(numeric), rel=1e-6)
    assert abs(float(numeric)) > 1e-6


def test_float32_agrees_natively_and_in_the_loop():
    model = CharLSTM(seed=1)
    inputs = tokens(80, 4, 80)
    torch.testing.assert_close(model(inputs), transformed(model, inputs), rtol=0, atol=1e-6)


# -- the sentiment's task ---------------------------------------------------------------------------------------------
def test_two_logits_give_the_sigmoid_cross_entropy_and_its_prediction():
    task = Classification(sentiment(), 2)
    z = torch.tensor([-30.0, -1.0, 0.0, 1e-9, 2.0, 40.0], dtype=torch.float64)
    outputs = F.pad(z[:, None], (1, 0))
    for label in (0, 1):
        targets = torch.full((6,), label)
        expected = F.binary_cross_entropy_with_logits(z, targets.double(), reduction="none")
        scores = task.scores(outputs, targets)
        torch.testing.assert_close(scores["loss"], expected, rtol=0, atol=1e-14)
        assert scores["accuracy"].tolist() == [float((value > 0) == label) for value in z.tolist()]
        task.update_metrics(task.metrics, outputs, targets)
    assert float(task.metrics["accuracy"].compute()) == 0.5


def test_copies_share_the_word_vectors_and_no_method_sees_them():
    model = SentimentLSTM(WORDS.float())
    copied = copy.deepcopy(model).eval()
    assert copied.words.vectors.data_ptr() == model.words.vectors.data_ptr()
    assert copied.lstm[0].bias.data_ptr() != model.lstm[0].bias.data_ptr()
    assert not copy.deepcopy(copied).words.training
    assert all("words" not in name and "forget" not in name for name in model.state_dict())
    copied.double()
    assert model.words.vectors.dtype == torch.float32
    assert copied.words.vectors.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SentimentLSTM(torch.zeros(3)), r"`vectors` must be a table .*\[V, d\], but is float32 \[3\]"),
        (lambda: SentimentLSTM(torch.zeros(3, 2, dtype=torch.int64)), r"but is int64 \[3, 2\]"),
        (lambda: CharLSTM(layers=0), "`layers` of CharLSTM must be at least 1, but is 0"),
        (lambda: CharLSTM(hidden=0), "`hidden` of CharLSTM must be at least 1, but is 0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# -- trained ----------------------------------------------------------------------------------------------------------
def sequence_run(task: Classification, vocabulary: int, slots: int = 1, cohort_size: int | str = 1) -> RoundState:
    """Three rounds over clients of 1 to 13 sequences, as an uneven cohort."""
    owners = torch.arange(5).repeat_interleave(torch.tensor([1, 4, 13, 7, 9]))
    examples = Examples(tokens(vocabulary, 34, 8), tokens(task.classes, 34))
    data = TensorData(examples, Natural(owners).split(owners, seed=0), batching=Batching(4, epochs=2))
    return fit(FedProx(lr=0.5, mu=0.1), task, data, 3, slots=slots, cohort_size=cohort_size).state


@pytest.mark.parametrize("cohort_size", [2, 5])
@pytest.mark.parametrize(("model", "vocabulary", "classes"), [(characters, 11, 11), (sentiment, 41, 2)])
def test_a_cohort_gives_the_loops_numbers(model, vocabulary, classes, cohort_size):
    task = Classification(model(), classes)
    loop, cohort = sequence_run(task, vocabulary), sequence_run(task, vocabulary, cohort_size=cohort_size)
    assert float((loop.server.x - Layout.of(task).read(task)).abs().max()) > 1e-3
    torch.testing.assert_close(cohort.server.x, loop.server.x, rtol=0, atol=1e-12)


def test_slots_give_the_same_bits():
    task = Classification(CharLSTM(11, hidden=32), 11)
    assert torch.equal(sequence_run(task, 11).server.x, sequence_run(task, 11, slots=2).server.x)


def test_training_leaves_the_word_vectors_alone_and_learns_the_rest():
    words = WORDS.float()
    task = Classification(SentimentLSTM(words, hidden=5, dense=3), 2)
    state = sequence_run(task, 41)
    assert torch.equal(words, WORDS.float())
    assert state.buffers.numel() == 0
    assert state.server.x.numel() == Layout.of(task).size
    moved = state.server.x - Layout.of(task).read(task)
    assert all(bool(moved[part].any()) for part in Layout.of(task).slices().values())
