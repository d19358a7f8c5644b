"""The vision transformers: their sizes, their blocks against torch's own, and the same numbers in every runner."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import fit
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    Examples,
    FedProx,
    Natural,
    TensorData,
)
from fedlightning.execution.model import Replica
from fedlightning.layout import Layout
from fedlightning.models import ViT, build_model, vit_base, vit_small
from fedlightning.models.vit import Attention


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tiny(positions: bool = True, seed: int = 0, **options: int) -> ViT:
    """Four patches of 4×4 pixels, in float64, with biases and norms that are not as they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = {"dim": 8, "heads": 2, "blocks": 2, "hidden": 12, "patch": 4, "size": 8, **options}
        model = ViT(5, 3, positions=positions, **given).double()
    rng = np.random.default_rng(seed + 1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.from_numpy(rng.normal(size=tuple(parameter.shape)))
    return model


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=shape))


# -- sizes ------------------------------------------------------------------------------------------------------------
def test_parameter_counts():
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        assert size(vit_base(100)) == 85_874_020
        assert size(vit_base(100)) == size(vit_b_16(num_classes=100)) - 2 * 768  # which has one more norm at its end
        assert size(vit_small(100)) == 11_315_556
        assert size(vit_small(100)) - size(vit_small(100, positions=False)) == 197 * 256
        assert size(vit_small(10, channels=1)) == 11_315_556 - 90 * 257 - 2 * 256 * 256
        assert [len(m.blocks) for m in (vit_base(2), vit_small(2))] == [12, 6]
        assert [m.blocks[0].attention.heads for m in (vit_base(2), vit_small(2))] == [12, 8]


def test_by_name():
    model = build_model("vitsmall", (3, 24, 24), 7, positions=False)
    assert model.positions is None
    assert size(model) == 11_265_124 - 93 * 257
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 24, 24)).shape == (1, 7)
    assert build_model("vitsmall", (1, 28, 28), 7).positions.shape == (1, 197, 256)


# -- what it computes -------------------------------------------------------------------------------------------------
def by_torch(model: ViT, inputs: Tensor, hidden: int = 12) -> Tensor:
    """The same from torch's convolution and its post-norm encoder layers."""
    dim, heads = model.head.in_features, model.blocks[0].attention.heads
    kernel = model.embedding.weight.view(dim, inputs.shape[1], model.patch, model.patch)
    tokens = F.conv2d(inputs, kernel, model.embedding.bias, stride=model.patch).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(inputs), -1, -1), tokens], 1)
    if model.positions is not None:
        tokens = tokens + model.positions
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=False).double()
        names = {
            "self_attn.in_proj_": block.attention.projections,
            "self_attn.out_proj.": block.attention.output,
            "linear1.": block.mlp[0],
            "linear2.": block.mlp[2],
            "norm1.": block.first_norm,
            "norm2.": block.second_norm,
        }
        layer.load_state_dict({f"{name}{k}": v for name, part in names.items() for k, v in part.state_dict().items()})
        tokens = layer(tokens)
    return model.head(tokens[:, 0])


@pytest.mark.parametrize("positions", [True, False])
def test_it_is_torchs_post_norm_encoder_on_a_convolutions_patches(positions):
    model, inputs = tiny(positions), images(3, 3, 8, 8)
    torch.testing.assert_close(model(inputs), by_torch(model, inputs), rtol=0, atol=1e-12)


def test_images_are_enlarged():
    model, inputs = tiny(), images(2, 3, 4, 4)
    larger = F.interpolate(inputs, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(inputs), by_torch(model, larger), rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", [True, False])
def test_only_positions_tell_where_a_patch_is(positions):
    model, inputs = tiny(positions), images(2, 3, 8, 8)
    swapped = inputs.roll(4, dims=-1)
    assert torch.allclose(model(inputs), model(swapped), rtol=0, atol=1e-12) is not positions


def test_the_start():
    model = ViT(5, 3, dim=64, heads=4, blocks=1, size=32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.abs().max() <= 0.04, name
            assert 0.014 < parameter.std() < 0.021, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert bool((parameter == 1).all()), name


# -- where it runs natively -------------------------------------------------------------------------------------------
def test_attention_is_native_when_nothing_looks_on(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: (calls.append(1), fused(*a))[1])
    layer, tokens = Attention(8, 2).double(), images(3, 5, 8)
    eager = layer(tokens)
    assert calls == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing batching rule would be one
        torch.testing.assert_close(vmap(layer)(tokens[:, None])[:, 0], eager, rtol=0, atol=1e-12)
    assert calls == [1]


def test_a_gradient_can_be_differentiated_under_a_transform():
    layer, x = Attention(4, 2).double(), images(1, 3, 4)
    slope = grad(lambda x: layer(x).pow(2).sum())
    curvature = grad(lambda x: slope(x)[0, 0, 0])(x).detach()[0, 2, 1]
    step = torch.zeros_like(x)
    step[0, 2, 1] = 1e-5
    numeric = float((slope(x + step) - slope(x - step))[0, 0, 0].detach()) / 2e-5
    assert float(curvature) == pytest.approx(numeric, rel=1e-6)
    assert abs(numeric) > 1e-6


# -- trained ----------------------------------------------------------------------------------------------------------
def image_run(task: Classification, **strategy: object) -> Tensor:
    """Two rounds over clients of 1 to 8 images."""
    owners = torch.arange(4).repeat_interleave(torch.tensor([1, 3, 8, 5]))
    examples = Examples(images(17, 3, 6, 6), torch.arange(17) % 5)
    data = TensorData(examples, Natural(owners).split(owners, seed=0), batching=Batching(3, epochs=1))
    return fit(FedProx(lr=0.1, mu=0.1), task, data, **strategy).state.server.x


def test_a_cohort_gives_the_loops_numbers():
    task = Classification(tiny(blocks=1), 5)
    loop = image_run(task, cohort_size=1)
    assert float((loop - Layout.of(task).read(task)).abs().max()) > 1e-3
    torch.testing.assert_close(image_run(task, cohort_size=3), loop, rtol=0, atol=1e-12)


def test_a_traced_cohort_gives_the_same_gradients():
    task = Classification(tiny(blocks=1), 5)
    layout = Layout.of(task)
    model = Replica(task, layout, torch.device("cpu")).at(torch.tensor(0))
    w = torch.stack([layout.read(task), 0.5 * layout.read(task)])
    batch = images(2, 3, 3, 6, 6), torch.arange(6).view(2, 3) % 5
    step = vmap(grad(lambda w, inputs, targets: model.loss(w, (inputs, targets)).mean()))
    traced = make_fx(step)(w, *batch)
    torch.testing.assert_close(traced(1.1 * w, *batch), step(1.1 * w, *batch), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "`dim` of ViT must be a multiple of `heads`, 2, but is 9"),
        ({"size": 10}, "`size` of ViT must be a multiple of `patch`, 4, but is 10"),
        ({"size": 0}, "`size` of ViT .* but is 0"),
        ({"heads": 0}, "`heads` of ViT must be at least 1, but is 0"),
        ({"blocks": 0}, "`blocks` of ViT"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options)
