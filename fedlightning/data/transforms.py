"""What becomes of a batch of images: random changes in training, and what the model is given of every image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.data.module import Augmentation
from fedlightning.errors import ConfigurationError, require_within


@runtime_checkable
class Transform(Protocol):
    """What a paper makes of images: by chance in training, and of every image that reaches the model.

    Attributes:
        augmentation: the random change of each training batch; None for none. It comes before `preprocess`.
    """

    augmentation: Augmentation | None

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From uint8 pixels [B, C, H, W], augmented or not, to what the model takes."""

    def shape_of(self, images: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape (C, H, W) of what `preprocess` gives for images of a shape; `ConfigurationError` if it takes none such."""


class RandomCropFlip:
    """Pad each image with zeros, cut out a random window of the former size, and mirror it half of the time.

    Args:
        padding: zeros on each side.
        flip: whether images are mirrored from left to right.
    """

    @checked(padding="[0, 1024]")
    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding, self.flip = padding, flip

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The window's row, its column and whether it is mirrored [*shape, 3] (int64)."""
        ends = (2 * self.padding + 1, 2 * self.padding + 1, 1 + self.flip)
        return rng.integers(0, ends, size=(*shape, 3))

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """The windows [B, C, H, W] of images [B, C, H, W] at draws [B, 3]: one gather for the batch."""
        _require_images(inputs, "RandomCropFlip")
        batch, channels, height, width = inputs.shape
        padded = F.pad(inputs, (self.padding,) * 4)
        if inputs.device.type == "cpu" and inputs.dtype in _NUMPY:
            return _windows(padded, draws, height, width)
        down, across = (torch.arange(size, device=inputs.device) for size in (height, width))
        rows = draws[:, 0, None] + down
        columns = draws[:, 1, None] + torch.where(draws[:, 2, None] > 0, width - 1 - across, across)
        index = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
        index = index.reshape(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, index).view_as(inputs)


_NUMPY = (torch.uint8, torch.float32, torch.float64)


def _windows(padded: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
    """The windows by NumPy, which copies a row of pixels at once, in a third of the time that torch takes on a CPU."""
    top, left, flip = draws.numpy().T
    views = padded.unfold(2, height, 1).unfold(3, width, 1).numpy()
    windows = views[np.arange(len(views)), :, top, left]
    mirrored = flip.nonzero()[0]
    windows[mirrored] = windows[mirrored, ..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(windows))


_TURNS = 64  # angles in a degree; the farthest pixel of 24×24 moves by 1/230 of a pixel between two of them
_ONE = 1 << 30  # the unit of the rotation's fixed-point numbers


class RandomCropRotate:
    """Cut out a random window, mirror it half of the time, and turn it about its centre by a random angle.

    The order and the rules are those of torchvision's `RandomCrop(size)`, `RandomHorizontalFlip()` and
    `RandomRotation(degrees)` without padding: each pixel takes the nearest one of the window, or zero outside of it.
    Angles are whole 64ths of a degree, and the rotation is computed in whole numbers, so it is the same on every device.

    Args:
        size: pixels along each side of the window.
        image_size: pixels along each side of an image, at least `size`.
        degrees: the largest angle in either direction, in [0, 180].
        flip: whether windows are mirrored from left to right.

    Raises:
        ConfigurationError: a number is outside its interval.
    """

    @checked(size=COUNT, image_size="[1, 65536]", degrees="[0, 180]")
    def __init__(self, size: int = 24, image_size: int = 32, degrees: float = 15.0, flip: bool = True) -> None:
        require_within(size, f"[1, {image_size}]", "`size` of RandomCropRotate")
        self.size, self.image_size, self.degrees, self.flip = size, image_size, degrees, flip

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The window's row and column, whether it is mirrored, and its angle in 64ths of a degree [*shape, 4] (int64)."""
        most, room = int(_TURNS * self.degrees), self.image_size - self.size
        return rng.integers((0, 0, 0, -most), (room + 1, room + 1, 1 + self.flip, most + 1), size=(*shape, 4))

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """The windows [B, C, size, size] of images [B, C, image_size, image_size] at draws [B, 4].

        Raises:
            ConfigurationError: the images have another size.
        """
        _require_images(inputs, "RandomCropRotate")
        _require_size(inputs.shape, self.image_size, "RandomCropRotate")
        rows, columns = self._sources(draws[:, 3])
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        columns = torch.where(draws[:, 2, None, None] > 0, self.size - 1 - columns, columns)
        index = (draws[:, 0, None, None] + rows) * self.image_size + draws[:, 1, None, None] + columns
        index = torch.where(inside, index, 0).flatten(1)[:, None].expand(-1, inputs.shape[1], -1)
        windows: Tensor = inputs.flatten(2).gather(2, index).unflatten(2, (self.size, self.size))
        return windows * inside[:, None].to(windows.dtype)

    def _sources(self, turns: Tensor) -> tuple[Tensor, Tensor]:
        """The row and the column [B, size, size] that each pixel of the turned window comes from."""
        angles = turns.to(torch.float64)[:, None, None] * (math.pi / 180 / _TURNS)
        cosine, sine = ((f(angles) * _ONE).round().to(torch.int64) for f in (torch.cos, torch.sin))
        centred = 2 * torch.arange(self.size, device=turns.device) - (self.size - 1)  # twice the distance to the centre
        down, across = centred[:, None], centred[None, :]
        middle = self.size * _ONE  # twice the centre's place, and 1 to round
        return (cosine * down + sine * across + middle) >> 31, (cosine * across - sine * down + middle) >> 31


class TFFCifar:
    """The transforms of TensorFlow Federated's CIFAR-100 (Reddi et al., ICLR 2021), with FederatedX's rotation.

    Training images are random windows, mirrored half of the time and turned by up to 15°; evaluated images are the centre. Each
    image is standardised by itself, `standardise_each`.

    Args:
        size: pixels along each side of a window.
        image_size: pixels along each side of an image, at least `size`.
        standardise: False leaves pixels in [0, 1], which an autoencoder is to give.

    Raises:
        ConfigurationError: a number is outside its interval.
    """

    @checked(size=COUNT, image_size="[1, 65536]")
    def __init__(self, size: int = 24, image_size: int = 32, standardise: bool = True) -> None:
        require_within(size, f"[1, {image_size}]", "`size` of TFFCifar")
        self.size, self.image_size, self.standardise = size, image_size, standardise
        self.augmentation: Augmentation | None = RandomCropRotate(size, image_size)

    def preprocess(self, inputs: Tensor) -> Tensor:
        """The centres [B, C, size, size] (float32) of uint8 pixels [B, C, H, W]; of a window that is all of it."""
        images = centre_crop(inputs, self.size).to(torch.float32) / 255
        return standardise_each(images) if self.standardise else images

    def shape_of(self, images: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, size, size).

        Raises:
            ConfigurationError: the images have another size than `image_size`.
        """
        _require_size(images, self.image_size, "TFFCifar")
        return images[0], self.size, self.size


def _require_size(shape: Sequence[int], size: int, owner: str) -> None:
    if tuple(shape[-2:]) != (size, size):
        raise ConfigurationError(
            f"Images for {owner} must have {size} × {size} pixels (`image_size`), but have {shape[-2]} × {shape[-1]}."
        )


def _require_images(inputs: Tensor, owner: str) -> None:
    if inputs.dim() != 4:
        raise ConfigurationError(f"Images for {owner} must be [B, C, H, W], but are {list(inputs.shape)}.")


def centre_crop(inputs: Tensor, size: int) -> Tensor:
    """The middle [..., size, size] of images [..., H, W], or the images where they have that size."""
    top, left = (round((side - size) / 2) for side in inputs.shape[-2:])
    return inputs[..., top : top + size, left : left + size]


def standardise_each(images: Tensor) -> Tensor:
    """Each image [B, C, H, W] less its mean, divided by max(deviation, 1 / √(C H W)), as in TensorFlow.

    Mean and deviation are over all of an image's entries; the deviation is that of the population. Images are floats, for
    pixels in [0, 1].
    """
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    deviation = flat.square().mean(1, keepdim=True).sqrt()
    return (flat / deviation.clamp(min=images[0].numel() ** -0.5)).view_as(images)
