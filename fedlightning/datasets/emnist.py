"""EMNIST by class: handwritten digits and letters."""

from __future__ import annotations

from typing import ClassVar

import torch

from fedlightning.data.module import Examples
from fedlightning.data.transforms import RandomCropFlip
from fedlightning.datasets.vision import _TorchvisionData
from fedlightning.errors import ConfigurationError

_SPLIT = "emnist-byclass"


class EMNIST(_TorchvisionData):
    """EMNIST "by class" (Cohen et al., IJCNN 2017): 697,932 + 116,323 grey images of 62 digits and letters.

    Its files hold each image on its side; here they stand upright. Labels are 0…9 for the digits, 10…35 for A…Z and
    36…61 for a…z. Pixels are scaled to [0, 1] and not standardised, as in FederatedX, which by mistake divides them
    by 255 a second time. `EMNIST(target="image")` is its data set for autoencoders.
    """

    source, folder = "EMNIST", "EMNIST/raw"
    files = tuple(
        f"{_SPLIT}-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")
    )
    options: ClassVar[dict[str, str]] = {"split": "byclass"}
    classes, shape = 62, (1, 28, 28)
    mean, std = (0.0,), (1.0,)
    usual_augmentation = RandomCropFlip(padding=2, flip=False)

    def read(self, train: bool) -> Examples:
        """The training or the test set: upright images [n, 1, 28, 28] (uint8), labels [n] (int64).

        Raises:
            ConfigurationError: the files are absent or damaged and cannot be downloaded.
        """
        images, labels = super().read(train)
        if images.shape[1:] != (1, 28, 28) or len(images) != len(labels):
            raise ConfigurationError(
                f"The files of EMNIST must hold images of 28 × 28 pixels and a label for each, but those in "
                f"{(self.root / self.folder).absolute()} hold {len(images):,} of {images.shape[2]} × {images.shape[3]} "
                f"and {len(labels):,} labels; take {', '.join(self.files)} from one archive."
            )
        return Examples(images.transpose(2, 3).contiguous(), labels.to(torch.int64))
