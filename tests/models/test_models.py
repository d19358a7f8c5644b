"""The models: their sizes, that they can be vmapped, and that dropout's masks are a pure function of a key."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedlightning.errors import ConfigurationError
from fedlightning.models import (
    CNN,
    MLP,
    FedAvgCNN,
    KeyedDropout,
    LeNet,
    LogisticRegression,
    build_model,
    dropout_key_names,
    key_dropout,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    set_dropout_key,
)
from fedlightning.randomness import keys

NAMES = ("logistic", "mlp", "cnn", "fedavg-cnn", "lenet", "resnet18", "resnet34", "resnet50")
KEYS = keys(4, 0, "dropout", (1, 2))[:, 0]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- sizes and shapes -------------------------------------------------------------------------------------------------
@pytest.mark.quick
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: LogisticRegression(60, 10), 610),
        (lambda: MLP(784, 10), 199_210),
        (lambda: MLP(784, 10, hidden=()), 7_850),
        (lambda: CNN(1, 10, 28), 421_834),
        (lambda: CNN(1, 62), 428_542),
        (lambda: FedAvgCNN(1, 10), 1_663_370),
        (lambda: LeNet(3, 10), 62_006),
        (lambda: resnet18(100), 11_220_132),
        (lambda: resnet18(10), 11_173_962),
        (lambda: resnet18(10, groups=32), 11_173_962),
        (lambda: resnet18(100, norm="batch"), 11_220_132),
        (lambda: resnet18(62, channels=1), 11_199_486),
        (lambda: resnet34(100), 21_328_292),
        (lambda: resnet50(100), 23_705_252),
    ],
)
def test_parameter_counts(model, parameters):
    with torch.device("meta"):
        assert size(model()) == parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 17)])
def test_logits_have_the_right_shape(name, shape):
    with torch.no_grad():
        assert build_model(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_flat_models_take_any_shape():
    assert build_model("mlp", (4, 5), 3)(torch.zeros(2, 4, 5)).shape == (2, 3)
    assert build_model("logistic", (20,), 3)(torch.zeros(2, 20)).shape == (2, 3)


def test_resnet_keeps_the_resolution_in_its_stem_and_takes_any_image():
    model = resnet18(5, channels=1)
    maps: dict[str, torch.Size] = {}
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _, __, output, name=name: maps.update({name: output.shape}))
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 8, 16)).shape == (2, 5)
    assert [tuple(s[1:]) for s in maps.values()] == [(64, 8, 16), (64, 8, 16), (128, 4, 8), (256, 2, 4), (512, 1, 2)]


def test_resnet_norms():
    groups = {m.num_groups for m in resnet18(10, groups=32).modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {32}
    assert not list(resnet18(10).buffers())
    assert any("running_mean" in name for name, _ in resnet18(10, norm="batch").named_buffers())


# -- initial values ---------------------------------------------------------------------------------------------------
@pytest.mark.quick
def test_logistic_regression_starts_glorot_uniform_with_zero_bias():
    model = LogisticRegression(600, 100)
    limit = math.sqrt(6 / 700)
    assert not model.linear.bias.any()
    assert 0.999 * limit < model.linear.weight.abs().max() <= limit
    assert model.linear.weight.var().item() == pytest.approx(limit**2 / 3, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_start_is_the_legacy_draw(seed):
    before = torch.get_rng_state()
    model = LogisticRegression.glorot(60, 10, seed)
    limit = np.sqrt(6 / 70)
    kernel = np.random.RandomState(123 + seed).uniform(-limit, limit, (60, 10)).astype(np.float32)
    assert model.linear.weight.dtype == torch.float32
    assert np.array_equal(model.linear.weight.detach().numpy(), kernel.T)
    assert not model.linear.bias.any()
    assert torch.equal(torch.get_rng_state(), before)


def test_reference_start_runs_along_the_classes_first():
    weight = LogisticRegression.glorot(60, 10, 0).linear.weight
    draws = (0.6964691855978616, 0.2861393349503795)  # the first two numbers of RandomState(123)
    expected = [math.sqrt(6 / 70) * (2 * u - 1) for u in draws]
    assert weight[:2, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES[:6])
def test_build_model_is_a_function_of_the_seed_alone(name):
    def build(seed: int) -> Tensor:
        return torch.cat([p.detach().flatten() for p in build_model(name, (3, 16, 16), 10, seed).parameters()])

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(build(0), first)
    assert not torch.equal(build(1), first)


# -- vmap against the loop --------------------------------------------------------------------------------------------
def gradients(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    def loss(p: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (inputs,)), targets)

    return grad(loss)(parameters)


@pytest.mark.parametrize("name", NAMES[:6])
def test_vmapped_gradients_equal_the_loop(name):
    shape = (1, 16, 16) if name == "lenet" else (1, 8, 8)
    models = [build_model(name, shape, 4, seed).double() for seed in range(2)]
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, *shape, generator=rng, dtype=torch.float64)
    targets = torch.randint(4, (2, 3), generator=rng)
    stacked = {n: torch.stack([m.get_parameter(n).detach() for m in models]) for n, _ in models[0].named_parameters()}
    together = vmap(lambda p, x, y: gradients(models[0], p, x, y))(stacked, inputs, targets)
    for c, model in enumerate(models):
        nn.functional.cross_entropy(model(inputs[c]), targets[c]).backward()
        for n, p in model.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(together[n][c], p.grad, rtol=1e-10, atol=1e-12)


# -- keyed dropout ----------------------------------------------------------------------------------------------------
class Net(nn.Module):
    """One layer called twice, one instance under two names, and channel dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.channels = nn.Dropout2d(0.5)
        self.hidden = nn.Linear(8 * 16, 16)
        self.drop = nn.Dropout(0.3)
        self.again = nn.Sequential(nn.Linear(16, 16), self.drop)
        self.last = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.drop(self.hidden(self.channels(self.conv(inputs)).flatten(1)))
        return self.last(self.again(self.drop(x)))


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return key_dropout(Net())


def drop(p: float, key: Tensor = KEYS[0], salt: int = 0, channels: bool = False) -> KeyedDropout:
    dropout = KeyedDropout(p, salt, channels)
    set_dropout_key(dropout, key)
    return dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_scaling(p):
    outputs = drop(p)(torch.full((100, 1000), 2.0, dtype=torch.float64))
    assert outputs.unique().tolist() == pytest.approx([0.0, 2 / (1 - p)], rel=1e-15)
    assert (outputs == 0).double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 1e5))


def test_all_or_nothing_and_evaluation():
    inputs = torch.randn(4, 5)
    assert drop(0.0)(inputs) is inputs
    assert drop(0.5).eval()(inputs) is inputs
    assert torch.equal(drop(1.0)(inputs), torch.zeros(4, 5))


@pytest.mark.quick
def test_masks_depend_on_key_and_salt_and_on_nothing_else():
    ones = torch.ones(64, 64)
    first = drop(0.5)(ones)
    torch.rand(3)
    assert torch.equal(drop(0.5)(ones), first)
    for other in (drop(0.5, key=KEYS[1]), drop(0.5, salt=1)):
        agreement = (other(ones) == first).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("shape", [(16, 8, 5), (16, 8, 5, 5), (16, 8, 2, 2, 2)])
def test_channel_dropout_drops_whole_channels(shape):
    outputs = drop(0.5, channels=True)(torch.ones(shape)).flatten(2)
    assert torch.equal(outputs.amin(2), outputs.amax(2))
    assert outputs.amax(2).unique().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_padded_batch_has_the_masks_of_the_batch_it_was_made_from(batch, channels):
    inputs = torch.randn(8, 6, 5)
    dropout = drop(0.4, channels=channels)
    assert torch.equal(dropout(inputs)[:batch], dropout(inputs[:batch]))


def test_gradient_is_the_mask():
    inputs = torch.randn(8, 6, requires_grad=True)
    outputs = drop(0.25)(inputs)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, drop(0.25)(torch.ones(8, 6)))


def test_key_dropout_replaces_every_layer_in_a_copy():
    original = Net()
    state = copy.deepcopy(original.state_dict())
    keyed = key_dropout(original)
    assert not any(isinstance(m, nn.Dropout | nn.Dropout2d) for m in keyed.modules())
    assert isinstance(original.drop, nn.Dropout)
    assert original.again[1] is original.drop
    found = [m for m in keyed.modules() if isinstance(m, KeyedDropout)]
    assert [(m.p, m.salt, m.channels) for m in found] == [(0.5, 0, True), (0.3, 1, False), (0.3, 2, False)]
    assert dropout_key_names(keyed) == ["channels.key", "drop.key", "again.1.key"]
    assert keyed.state_dict().keys() == state.keys()
    assert next(keyed.parameters()) is not next(original.parameters())


def test_key_dropout_of_a_lone_layer_of_a_frozen_one_and_of_none():
    lone = key_dropout(nn.Dropout(0.2))
    assert isinstance(lone, KeyedDropout)
    assert dropout_key_names(lone) == ["key"]
    assert not key_dropout(nn.Sequential(nn.Dropout(0.2).eval()))[0].training
    assert dropout_key_names(key_dropout(nn.Linear(2, 2))) == []
    assert isinstance(key_dropout(nn.AlphaDropout(0.0)), nn.AlphaDropout)


def test_keys_survive_a_change_of_dtype(net):
    set_dropout_key(net, KEYS[3])
    net = net.double()
    assert all(net.get_buffer(name).dtype == torch.int64 for name in dropout_key_names(net))
    assert all(torch.equal(net.get_buffer(name), KEYS[3]) for name in dropout_key_names(net))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(32, 32)

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = self.drop(inputs)
        return torch.stack([dropped, self.drop(inputs), self.linear(dropped)])


def test_a_layer_called_twice_draws_twice_and_the_next_pass_repeats():
    model = copy.deepcopy(key_dropout(Twice()))
    ones = torch.ones(32, 32)
    first, second, _ = model(ones)
    assert not torch.equal(first, second)
    assert torch.equal(model(ones)[1], second)
    assert torch.equal(model.drop(ones), first)
    assert torch.equal(model.drop(ones), first)


def test_a_pass_that_fails_leaves_no_trace():
    model = key_dropout(Twice())
    ones = torch.ones(32, 32)
    first = model(ones)[0]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(4, 4))
    assert torch.equal(model.drop(ones), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmapped_masks_are_the_looped_ones_bit_for_bit(dtype):
    inputs = torch.ones(4, 5, 6, dtype=dtype)
    model = key_dropout(nn.Sequential(nn.Dropout(0.3), nn.Unflatten(1, (3, 2)), nn.Dropout1d(0.5)))
    names = dropout_key_names(model)
    together = vmap(lambda key, x: functional_call(model, dict.fromkeys(names, key), (x,)))(KEYS, inputs)
    for c, key in enumerate(KEYS):
        set_dropout_key(model, key)
        assert torch.equal(together[c], model(inputs[c]))


def test_vmapped_gradients_with_dropout_equal_the_loop(net):
    net = net.double()
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6, 1, 4, 4, generator=rng, dtype=torch.float64)
    targets = torch.randint(3, (4, 6), generator=rng)
    names = dropout_key_names(net)
    parameters = {n: p.detach() for n, p in net.named_parameters()}

    def client(key: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        def loss(p: dict[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(functional_call(net, {**p, **dict.fromkeys(names, key)}, (x,)), y)

        return grad(loss)(parameters)

    together = vmap(client)(KEYS, inputs, targets)
    for c, key in enumerate(KEYS):
        net.zero_grad()
        set_dropout_key(net, key)
        nn.functional.cross_entropy(net(inputs[c]), targets[c]).backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(together[name][c], p.grad, rtol=1e-11, atol=1e-12)


def test_a_transformer_layer_without_attention_dropout_is_keyed():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    layer.self_attn.dropout = 0.0
    keyed = key_dropout(layer)
    inputs = torch.randn(2, 5, 8)
    before = torch.get_rng_state()
    assert torch.equal(keyed(inputs), keyed(inputs))
    assert torch.equal(torch.get_rng_state(), before)
    assert keyed.eval()(inputs).shape == inputs.shape


# -- mistakes ---------------------------------------------------------------------------------------------------------
class Unknown(nn.Dropout):
    pass


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.LSTM(4, 4, num_layers=2, dropout=0.2), r"`1` \(LSTM\).*p=0.2; set `dropout=0`.*nn.Dropout"),
        (nn.GRU(4, 4, num_layers=2, dropout=0.2), r"`1` \(GRU\)"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), r"`1` \(MultiheadAttention\).*p=0.1"),
        (nn.TransformerEncoderLayer(8, 2, 16), r"`1.self_attn` \(MultiheadAttention\)"),
        (nn.AlphaDropout(0.2), r"`1` \(AlphaDropout\).*use `nn.Dropout`"),
        (Unknown(0.2), r"`1` \(Unknown\)"),
    ],
)
def test_hidden_dropout_is_refused(layer, named):
    with pytest.raises(ConfigurationError, match=named):
        key_dropout(nn.Sequential(nn.Linear(4, 4), layer))


def test_hidden_dropout_of_zero_passes():
    keyed = key_dropout(nn.ModuleList([nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.AlphaDropout(0.0)]))
    assert dropout_key_names(keyed) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("resnet19", (3, 8, 8), 10), "'resnet19'. Did you mean 'resnet18'"),
        (lambda: build_model("cnn", (60,), 10), r"'cnn' must be a square image.*\(60,\); use 'mlp'"),
        (lambda: build_model("resnet18", (32, 32, 3), 10), r"shape \(32, 32, 3\)"),
        (lambda: build_model("mlp", (60,), 0), r"`classes` of build_model must be at least 1, but is 0"),
        (lambda: LeNet(1, 10, 15), "`size` of LeNet must be at least 16, but is 15"),
        (lambda: CNN(1, 10, 3), "`size` of CNN"),
        (lambda: FedAvgCNN(1, 10, 3), "`size` of FedAvgCNN"),
        (lambda: resnet18(10, norm="layer"), "'group' or 'batch', but is 'layer'"),
        (lambda: resnet18(10, groups=3), "`groups` of a ResNet must divide its 64 channels, but is 3"),
        (lambda: resnet18(10, groups=0), "but is 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


# -- the models of FederatedX -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("fullconnect", (1, 28, 28), 62, 115_400),
        ("logical", (1, 28, 28), 62, 846_000),
        ("cnn", (1, 28, 28), 10, 421_834),
        ("cnn", (1, 28, 28), 62, 428_542),
        ("resnet6", (1, 28, 28), 62, 4_928_766),
        ("resnet18", (3, 24, 24), 100, 11_220_132),
        ("resnet34", (3, 24, 24), 100, 21_328_292),
        ("resnet101", (3, 24, 24), 100, 42_697_380),
    ],
)
def test_parameter_counts_by_name(name, shape, classes, parameters):
    assert size(build_model(name, shape, classes)) == parameters


def test_resnet101_has_torchvisions_parameters_but_for_the_stem():
    from torchvision.models import resnet101 as torchvisions

    with torch.device("meta"):
        assert size(resnet101(100)) == size(torchvisions(num_classes=100)) - 64 * 3 * (7 * 7 - 3 * 3)


def test_groups_reach_the_norms():
    def groups(model: nn.Module) -> list[int]:
        return [module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)]

    assert groups(build_model("cnn", (1, 28, 28), 10)) == [8, 16]
    assert groups(build_model("cnn", (1, 28, 28), 62, groups=16)) == [16, 32]
    assert set(groups(build_model("resnet6", (3, 8, 8), 10))) == {2}
    assert set(groups(build_model("resnet6", (3, 8, 8), 10, groups=32))) == {32}


def test_fullconnect_normalises_before_each_relu_and_has_no_bias():
    model = build_model("fullconnect", (3, 5), 4)
    assert [type(layer) for layer in model.layers[1:4]] == [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert [layer.bias for layer in model.layers if isinstance(layer, nn.Linear)] == [None] * 5
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(model(7 * x), model(x), rtol=1e-3, atol=1e-3)  # the first norm takes the scale away


def test_logical_is_two_products():
    model = build_model("logical", (3, 5), 4)
    first, last = model.parameters()
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(model(x), (x.flatten(1) @ first.T).clamp(min=0) @ last.T)


@pytest.mark.parametrize("name", ["fullconnect", "logical", "resnet6"])
def test_their_vmapped_gradients_equal_the_loop(name):
    test_vmapped_gradients_equal_the_loop(name)


@pytest.mark.parametrize("name", ["fullconnect", "logical", "resnet6", "autoencoder", "cnnautoencoder"])
def test_they_are_a_function_of_the_seed_alone(name):
    test_build_model_is_a_function_of_the_seed_alone(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build_model("lenet", (3, 32, 32), 10, groups=2),
            "`groups` must be left out for model 'lenet'.*is 2.*cnn",
        ),
        (
            lambda: build_model("cnn", (1, 8, 8), 10, positions=False),
            "`positions` must be left out for model 'cnn'.*vitb",
        ),
        (lambda: build_model("cnn", (1, 8, 8), 10, groups=5), "`groups` of CNN must divide its 32 channels, but is 5"),
        (lambda: build_model("vitsmal", (1, 8, 8), 10), "Did you mean 'vitsmall'"),
    ],
)
def test_their_mistakes_are_named(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
