"""Autoencoders of small images, for the task `Reconstruction`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError, shown
from fedlightning.models.size import dense, require_size


class ConvAutoencoder(nn.Module):
    """Two convolutions to a quarter of the side, and two transposed ones back: 37,569 parameters for 1 channel.

    The channels are 32 and 64, then 32 and the image's; 3×3 kernels of stride 2, ReLU between them, and tanh at the end.
    FederatedX calls it `cnnautoencoder`; its strides are not recorded, these are ours.

    Args:
        channels: channels of an image.
        size: pixels along each side, a multiple of 4.

    Raises:
        ConfigurationError: `size` is no multiple of 4.
    """

    @checked(channels=COUNT)
    def __init__(self, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ConfigurationError(
                f"`size` of ConvAutoencoder must be a multiple of 4, but is {size}; crop the images."
            )
        require_size("ConvAutoencoder", channels * 2 * 32 * 9, channels=channels)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, channels, size, size], in (−1, 1), from images of that shape."""
        images: Tensor = self.decoder(self.encoder(inputs))
        return images


class DenseAutoencoder(nn.Module):
    """Linear layers of 512, 256, 64 and 16 outputs, and the same widths back: 1,105,568 parameters for 28×28×1.

    Each hidden layer but the code is followed by a layer norm and a ReLU, and the last layer by tanh.

    Args:
        shape: (channels, height, width) of an image.
        widths: outputs of the layers of the encoder, the code's last.
    """

    @checked()
    def __init__(self, shape: tuple[int, ...] = (1, 28, 28), widths: Sequence[int] = (512, 256, 64, 16)) -> None:
        super().__init__()
        there = (math.prod(shape), *widths)
        if not shape or not widths or min(*shape, *widths) < 1:
            raise ConfigurationError(
                "`shape` and `widths` of DenseAutoencoder must hold numbers of at least 1, but are "
                f"{shown(shape)} and {shown(widths)}."
            )
        require_size("DenseAutoencoder", 2 * dense(there), shape=shape, widths=widths)
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(there))
        self.decoder = nn.Sequential(*_layers(there[::-1]), nn.Tanh(), nn.Unflatten(1, tuple(shape)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, channels, height, width], in (−1, 1), from images of that shape."""
        images: Tensor = self.decoder(self.encoder(inputs))
        return images


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers with a layer norm and a ReLU between them."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.LayerNorm(following), nn.ReLU()]
    return layers[:-2]
