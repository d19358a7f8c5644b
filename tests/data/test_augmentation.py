"""The transforms on the batch against torchvision's on one image after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as single

from fedlightning import Batching
from fedlightning.data import Augmentation, RandomCropRotate, TFFCifar, Transform
from fedlightning.data.transforms import centre_crop, standardise_each
from fedlightning.datasets import CIFAR100, MNIST, FakeImages
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8))


def one_by_one(images: Tensor, draws: Tensor, size: int) -> Tensor:
    """torchvision's crop, flip and rotation of each image."""
    found = []
    for image, (top, left, flip, turns) in zip(images, draws.tolist(), strict=True):
        window = single.crop(image, top, left, size, size)
        window = single.hflip(window) if flip else window
        found.append(single.rotate(window, turns / 64, InterpolationMode.NEAREST))
    return torch.stack(found)


@pytest.mark.parametrize(("size", "image_size", "degrees"), [(24, 32, 15), (7, 9, 180), (32, 32, 15), (24, 32, 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_cropped_mirrored_and_turned_as_torchvision_does(size, image_size, degrees, channels):
    change = RandomCropRotate(size, image_size, degrees)
    images = pixels(200, channels, image_size, image_size)
    draws = torch.from_numpy(change.draw(stream(0, "augment"), (200,)))
    found = change.apply(images, draws)
    assert found.dtype == torch.uint8
    assert torch.equal(found, one_by_one(images, draws, size))


def test_a_quarter_turn_is_exact_and_against_the_clock():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    turned = RandomCropRotate(4, 4, 90).apply(image, torch.tensor([[0, 0, 0, 90 * 64]]))
    assert torch.equal(turned, image.rot90(1, (2, 3)))


def test_floats_and_pixels_are_turned_alike():
    change, images = RandomCropRotate(), pixels(20, 3, 32, 32)
    draws = torch.from_numpy(change.draw(stream(0, "augment"), (20,)))
    assert torch.equal(change.apply(images.double(), draws), change.apply(images, draws).double())


def test_draws_are_uniform_and_within_their_bounds():
    draws = RandomCropRotate(24, 32, 15).draw(stream(0, "augment"), (50, 1000))
    assert draws.shape == (50, 1000, 4)
    assert draws.dtype == np.int64
    assert draws.min((0, 1)).tolist() == [0, 0, 0, -960]
    assert draws.max((0, 1)).tolist() == [8, 8, 1, 960]
    assert bool((np.abs(draws.mean((0, 1)) - [4, 4, 0.5, 0]) < [0.05, 0.05, 0.01, 10]).all())
    assert not RandomCropRotate(32, 32, 0, flip=False).draw(stream(0, "augment"), (9,)).any()


def test_it_is_an_augmentation():
    change: Augmentation = RandomCropRotate()
    assert np.array_equal(change.draw(stream(3, "augment", 1), (5, 2)), change.draw(stream(3, "augment", 1), (5, 2)))


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 5, 7)])
def test_each_image_is_standardised_by_itself(shape):
    images = pixels(6, *shape).float() / 255
    images[1] = 0.25  # no deviation at all
    images[2] = 0.25 + 1e-4 * images[2]  # less than the bound
    found = standardise_each(images)
    for image, result in zip(images.double().numpy(), found.numpy(), strict=True):
        expected = (image - image.mean()) / max(image.std(), image.size**-0.5)
        np.testing.assert_allclose(result, expected, atol=2e-5)
    assert float(found[2].std()) < 0.1
    assert float(found[0].std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("side", "size"), [(32, 24), (24, 24), (9, 4), (11, 4)])
def test_the_centre_is_torchvisions(side, size):
    images = pixels(2, 3, side, side)
    assert torch.equal(centre_crop(images, size), single.center_crop(images, [size, size]))


# -- in a data set ----------------------------------------------------------------------------------------------------
def fake(**options: object) -> FakeImages:
    data = FakeImages("IIDC2", shape=(3, 12, 12), classes=3, num_train=20, num_test=6, batching=Batching(10), **options)
    data.setup()
    return data


def standardised(images: Tensor) -> Tensor:
    flat = images.double().flatten(1) / 255
    scale = flat.std(1, correction=0).clamp(min=images[0].numel() ** -0.5)
    return ((flat - flat.mean(1, keepdim=True)) / scale[:, None]).view(images.shape)


def test_training_takes_turned_windows_and_evaluation_the_centre():
    data = fake(transform=TFFCifar(8, 12))
    assert data.shape == (3, 8, 8)
    schedule = data.schedule(1, 4, 7, 1)
    inputs, targets = data.batch(data.train, schedule.index[0], schedule.draws[0])
    windows = one_by_one(data.train.inputs[schedule.index[0]], schedule.draws[0], 8)
    torch.testing.assert_close(inputs.double(), standardised(windows), rtol=0, atol=1e-4)
    assert torch.equal(targets, data.train.targets[schedule.index[0]])
    tested, _ = data.batch(data.test, torch.arange(6))
    torch.testing.assert_close(tested.double(), standardised(data.test.inputs[:, :, 2:10, 2:10]), rtol=0, atol=1e-4)


def test_without_augmentation_training_takes_the_centre_too():
    data = fake(transform=TFFCifar(8, 12), augment=False)
    assert data.augmentation is None
    inputs, _ = data.batch(data.train, torch.arange(4))
    torch.testing.assert_close(inputs.double(), standardised(data.train.inputs[:4, :, 2:10, 2:10]), rtol=0, atol=1e-4)


def test_the_images_and_who_owns_them_do_not_depend_on_the_crop():
    data, whole = fake(transform=TFFCifar(8, 12)), fake()
    assert torch.equal(data.train.inputs, whole.train.inputs)
    assert data.clients.fingerprint == whole.clients.fingerprint
    assert whole.augmentation is None
    assert whole.shape == (3, 12, 12)


class Halves:
    """Every second pixel, and nothing by chance."""

    augmentation = None

    def preprocess(self, inputs: Tensor) -> Tensor:
        return inputs[..., ::2, ::2].float()

    def shape_of(self, images: tuple[int, int, int]) -> tuple[int, int, int]:
        return images[0], -(-images[1] // 2), -(-images[2] // 2)


def test_a_transform_of_ones_own_takes_the_place_of_the_usual_one():
    assert isinstance(Halves(), Transform)
    data = fake(transform=Halves())
    assert (data.shape, data.augmentation) == ((3, 6, 6), None)
    inputs, _ = data.batch(data.test, torch.arange(6))
    assert torch.equal(inputs, data.test.inputs[..., ::2, ::2].float())
    assert CIFAR100(transform=Halves()).augmentation is None  # which is otherwise augmented
    assert CIFAR100(transform=TFFCifar(24), augment=False).augmentation is None


def test_cifar_takes_windows_of_24():
    data = CIFAR100("A0d10C10", transform=TFFCifar(24))
    assert data.shape == (3, 24, 24)
    assert CIFAR100.shape == (3, 32, 32)
    change = data.augmentation
    assert isinstance(change, RandomCropRotate)
    assert (change.size, change.image_size, change.degrees, change.flip) == (24, 32, 15, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomCropRotate(33, 32), r"`size` of RandomCropRotate must be in \[1, 32\], but is 33"),
        (lambda: RandomCropRotate(degrees=-1), r"`degrees` of RandomCropRotate must be in \[0, 180\], but is -1"),
        (lambda: TFFCifar(33), r"`size` of TFFCifar must be in \[1, 32\], but is 33"),
        (lambda: TFFCifar(0), "`size` of TFFCifar .* but is 0"),
        (
            lambda: MNIST(transform=TFFCifar(24)),
            "Images for TFFCifar must have 32 × 32 pixels .`image_size`., but have 28 × 28",
        ),
        (lambda: CIFAR100(transform=24), "`transform` of CIFAR100 must be a Transform or None, but is 24"),
        (
            lambda: CIFAR100(transform=Halves(), augment=True),
            "`augment` of CIFAR100 must be False or None for Halves, which has no",
        ),
        (
            lambda: RandomCropRotate(4, 8).apply(pixels(1, 1, 9, 8), torch.zeros(1, 4, dtype=torch.int64)),
            "must have 8 × 8 pixels .* but have 9 × 8",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
