"""The autoencoders and their task: shapes, layers, the loss of an image, and the same numbers in every runner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor, nn

from fedlightning import Batching, ConfigurationError, Examples, FedProx, Natural, TensorData
from fedlightning.data import TFFCifar
from fedlightning.datasets import FakeImages
from fedlightning.layout import Layout
from fedlightning.models import ConvAutoencoder, DenseAutoencoder, build_model
from fedlightning.task import Reconstruction


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(size=shape))


def dense() -> DenseAutoencoder:
    return DenseAutoencoder((1, 8, 8), (6, 3)).double()


# -- the models -------------------------------------------------------------------------------------------------------
def test_parameter_counts():
    conv = 32 * 9 + 32 + 64 * 32 * 9 + 64 + 64 * 32 * 9 + 32 + 32 * 9 + 1
    widths = (784, 512, 256, 64, 16, 64, 256, 512, 784)
    linear = sum(a * b + b for a, b in itertools.pairwise(widths))
    norms = 2 * (2 * (512 + 256 + 64))
    assert Layout.of(ConvAutoencoder()).size == conv == 37_569
    assert Layout.of(DenseAutoencoder()).size == linear + norms == 1_105_568


@pytest.mark.parametrize("name", ["autoencoder", "cnnautoencoder"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 24, 24)])
def test_outputs_are_images_like_the_inputs(name, shape):
    inputs = 100 * torch.randn(2, *shape)
    outputs = build_model(name, shape, 62)(inputs).detach()
    assert outputs.shape == inputs.shape
    assert float(outputs.abs().max()) <= 1
    assert float(outputs.min()) < 0


def test_the_convolutional_code_is_a_quarter_as_wide():
    model = ConvAutoencoder(3, 16)
    assert model.encoder(torch.zeros(2, 3, 16, 16)).shape == (2, 64, 4, 4)
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert channels == [32, 64, 32, 3]


def test_the_dense_one_is_symmetric_and_leaves_the_code_and_the_image_without_a_norm():
    model = DenseAutoencoder()
    widths = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [(784, 512), (512, 256), (256, 64), (64, 16), (16, 64), (64, 256), (256, 512), (512, 784)]
    norms = [m.normalized_shape[0] for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert norms == [512, 256, 64, 64, 256, 512]
    assert model.encoder(torch.zeros(2, 1, 28, 28)).shape == (2, 16)
    assert [type(m) for m in list(model.encoder)[-4:]] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("size", [0, 27, 30])
def test_the_size_is_a_multiple_of_four(size):
    with pytest.raises(ConfigurationError, match=f"`size` of ConvAutoencoder must be a multiple of 4, but is {size}"):
        ConvAutoencoder(1, size)


# -- the task ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flat", [False, True])
def test_the_loss_is_the_mean_over_an_images_entries(flat):
    outputs, targets = images(3, 2, 4, 4), images(6, 2, 4, 4)[3:]
    losses = Reconstruction(dense()).criterion(outputs.flatten(1) if flat else outputs, targets)
    expected = [((a - b) ** 2).mean() for a, b in zip(outputs.numpy(), targets.numpy(), strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-14)


def test_metrics_take_any_layout():
    task = Reconstruction(dense())
    outputs, targets = images(3, 2, 4, 4).contiguous(memory_format=torch.channels_last), images(6, 2, 4, 4)[3:]
    task.update_metrics(task.metrics, outputs, targets)
    assert float(task.metrics["mae"].compute()) == pytest.approx(float((outputs - targets).abs().mean()))


def test_labels_as_targets_are_named():
    data = FakeImages("IIDC2", shape=(1, 8, 8), classes=2, num_train=8, num_test=2, batching=Batching(4))
    with pytest.raises(
        ConfigurationError, match=r"as many entries as the targets, but are \[\d, 1, 8, 8\].*target='image'"
    ):
        fit(FedProx(), Reconstruction(dense().float()), data)


# -- trained ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("augment", [False, True])
def test_the_targets_are_the_inputs_as_the_model_takes_them(augment):
    options = {"shape": (3, 8, 8), "classes": 2, "num_train": 12, "num_test": 4, "augment": augment}
    data, labelled = FakeImages("IIDC2", target="image", **options), FakeImages("IIDC2", **options)
    for each in (data, labelled):
        each.setup()
    schedule = data.schedule(0, 0, 0, 1)
    draws = None if schedule.draws is None else schedule.draws[0, :6]
    index = schedule.index[0, :6]
    inputs, targets = data.batch(data.train, index, draws)
    assert torch.equal(inputs, targets)
    torch.testing.assert_close((inputs - 0.5) / 0.25, labelled.batch(labelled.train, index, draws)[0])
    assert 0 <= float(inputs.min()) < float(inputs.max()) <= 1
    assert data.clients.fingerprint == labelled.clients.fingerprint


def test_cropped_images_are_targets_too():
    data = FakeImages(
        "IIDC2",
        shape=(3, 12, 12),
        classes=2,
        num_train=4,
        num_test=4,
        transform=TFFCifar(8, 12, standardise=False),
        target="image",
    )
    data.setup()
    inputs, targets = data.batch(data.test, torch.arange(4))
    assert torch.equal(inputs, targets)
    torch.testing.assert_close(inputs, data.test.inputs[:, :, 2:10, 2:10] / 255)


def test_target_is_checked():
    with pytest.raises(ConfigurationError, match=r"`target` of FakeImages .*, but is 'images'\. Did you mean 'image'"):
        FakeImages("IIDC2", target="images")


def reconstruction_run(model: nn.Module, cohort_size: int) -> Tensor:
    """Two rounds over clients of 1 to 8 images."""
    owners = torch.arange(4).repeat_interleave(torch.tensor([1, 3, 8, 5]))
    inputs = images(17, 1, 8, 8)
    data = TensorData(Examples(inputs, inputs), Natural(owners).split(owners, seed=0), batching=Batching(3, epochs=1))
    return fit(FedProx(lr=0.5, mu=0.1), Reconstruction(model), data, cohort_size=cohort_size).state.server.x


@pytest.mark.parametrize("make", [dense, lambda: ConvAutoencoder(1, 8).double()])
def test_a_cohort_gives_the_loops_numbers(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    loop = reconstruction_run(model, 1)
    assert float((loop - Layout.of(Reconstruction(model)).read(Reconstruction(model))).abs().max()) > 1e-3
    torch.testing.assert_close(reconstruction_run(model, 3), loop, rtol=0, atol=1e-12)


def test_it_learns_and_its_loss_is_logged():
    data = FakeImages(
        "IIDC2", shape=(1, 8, 8), classes=2, num_train=64, num_test=8, target="image", batching=Batching(steps=10)
    )
    model = build_model("autoencoder", (1, 8, 8), 2)
    before = Reconstruction(model)
    data.setup()
    batch = data.batch(data.test, torch.arange(8))
    start = float(before.loss(batch).mean().detach())
    trainer = fit(FedProx(lr=1.0, mu=0.0), before, data, 5, evaluate_every=1)
    after = float(before.with_parameters(trainer.state.server.x).loss(batch).mean().detach())
    assert after < 0.5 * start
    assert trainer.metrics["test/loss"] == pytest.approx(after, rel=1e-5)
    assert trainer.metrics["test/mae"] > 0
    assert "test/accuracy" not in trainer.metrics
