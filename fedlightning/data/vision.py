"""Images: CIFAR-10 and -100, MNIST and Fashion-MNIST by torchvision, and made-up ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedlightning.data.module import Augmentation, Examples, FederatedDataModule
from fedlightning.data.partition import Partition
from fedlightning.data.partition_names import parse_partition
from fedlightning.data.partitioners import Partitioner
from fedlightning.errors import ConfigurationError
from fedlightning.streams import stream


class RandomCropFlip:
    """Pad each image with zeros, cut out a random window of the former size, and mirror it half of the time.

    Args:
        padding: zeros on each side.
        flip: whether images are mirrored from left to right.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        if padding < 0:
            raise ConfigurationError(f"`padding` of RandomCropFlip must be 0 or more, but is {padding}.")
        self.padding, self.flip = padding, flip

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The window's row, its column and whether it is mirrored [*shape, 3] (int64)."""
        ends = (2 * self.padding + 1, 2 * self.padding + 1, 1 + self.flip)
        return rng.integers(0, ends, size=(*shape, 3))

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """The windows [B, C, H, W] of images [B, C, H, W] at draws [B, 3]: one gather for the batch."""
        batch, channels, height, width = inputs.shape
        padded = F.pad(inputs, (self.padding,) * 4)
        down, across = (torch.arange(size, device=inputs.device) for size in (height, width))
        rows = draws[:, 0, None] + down
        columns = draws[:, 1, None] + torch.where(draws[:, 2, None] > 0, width - 1 - across, across)
        index = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
        index = index.reshape(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, index).view_as(inputs)


class ImageData(FederatedDataModule):
    """Images in memory as uint8 [n, C, H, W], divided by a partitioner; each class of the test set in like proportions.

    Subclass it, set the attributes and define `read`.

    Args:
        partition: a partitioner, or its name, e.g. "A0d10C100".
        root: folder of the files, as torchvision lays them out.
        batch_size: B, examples of a local step; None for the client's whole data.
        epochs: E, passes over the client's data in a round, unless `steps` is given.
        steps: K, local steps of every client in a round, instead of `epochs`.
        augment: whether training images are augmented; None for what is usual with this data set.
        evaluate_on: what evaluation looks at, "test", "train" or both.
        seed: of the partition.
        download: whether files that are absent are downloaded.

    Attributes:
        classes: number of classes.
        shape: (C, H, W).
        mean, std: of each channel of the training images, which `preprocess` standardises, for pixels in [0, 1].
        usual_augmentation: what `augment=True` does.
        augments: what `augment=None` means.

    Raises:
        ConfigurationError: a number is outside its interval, or the partition's name does not parse.
    """

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    usual_augmentation: ClassVar[Augmentation] = RandomCropFlip()
    augments: ClassVar[bool] = False

    def __init__(
        self,
        partition: Partitioner | str = "A0d10C100",
        *,
        root: str | Path = "data",
        batch_size: int | None = 32,
        epochs: int | None = None,
        steps: int | None = None,
        augment: bool | None = None,
        evaluate_on: tuple[str, ...] = ("test",),
        seed: int = 0,
        download: bool = True,
    ) -> None:
        augment = self.augments if augment is None else augment
        super().__init__(
            batch_size=batch_size,
            epochs=epochs,
            steps=steps,
            augmentation=self.usual_augmentation if augment else None,
            evaluate_on=evaluate_on,
        )
        self.partition = parse_partition(partition) if isinstance(partition, str) else partition
        self.name = self.partition.name
        self.root, self.seed, self.download = Path(root), seed, download

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64)."""
        raise NotImplementedError(f"{type(self).__name__} must define `read(train)`.")

    def load(self) -> tuple[Examples, Partition, Examples, Partition]:
        """Read both sets and divide them."""
        train, test = self.read(train=True), self.read(train=False)
        clients = self.partition.split(train.targets, self.seed)
        return train, clients, test, clients.mirror(train.targets, test.targets)

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From uint8 pixels […, C, H, W] to standardised floats."""
        channels = zip(inputs.unbind(-3), self.mean, self.std, strict=True)
        return torch.stack([channel * (1 / (255 * std)) - mean / std for channel, mean, std in channels], dim=-3)


class _TorchvisionData(ImageData):
    """A data set that torchvision reads and, where its files are absent, downloads."""

    source: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64).

        Raises:
            ConfigurationError: the files are absent or damaged and cannot be downloaded.
        """
        from torchvision import datasets  # takes a second, which a run on other data need not spend

        try:
            found = getattr(datasets, self.source)(self.root, train=train, download=self.download)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise self._absent(error) from error
        images = torch.as_tensor(found.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return Examples(images.contiguous(), torch.as_tensor(found.targets))

    def _absent(self, error: Exception) -> ConfigurationError:
        reason = " ".join(str(error).split())
        tried = f"the download failed: {reason}" if self.download else f"`download` is off: {reason}"
        return ConfigurationError(
            f"{self.source} must lie in {(self.root / self.folder).absolute()}, but is not there or is damaged, and "
            f"{tried}; either put the files {', '.join(self.files)} into that folder (`root`, or `--data-dir`, is "
            f"{self.root}, above {self.folder}), or run on made-up images: `FakeImages`, or `--data fake`."
        )


class CIFAR10(_TorchvisionData):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 10 classes, by default cropped and mirrored."""

    source, folder = "CIFAR10", "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    classes, shape = 10, (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    augments = True


class CIFAR100(_TorchvisionData):
    """CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 100 classes, by default cropped and mirrored."""

    source, folder, files = "CIFAR100", "cifar-100-python", ("train", "test", "meta")
    classes, shape = 100, (3, 32, 32)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    augments = True


_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class MNIST(_TorchvisionData):
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 grey images of 10 digits; `augment=True` crops them by 2 pixels."""

    source, folder, files = "MNIST", "MNIST/raw", _IDX_FILES
    classes, shape = 10, (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)
    usual_augmentation = RandomCropFlip(padding=2, flip=False)


class FashionMNIST(_TorchvisionData):
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 10 kinds of clothes."""

    source, folder, files = "FashionMNIST", "FashionMNIST/raw", _IDX_FILES
    classes, shape = 10, (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    usual_augmentation = RandomCropFlip(padding=2)


class FakeImages(ImageData):
    """Made-up images, for trials without a download: each is the coarse random pattern of its class, with noise.

    Args:
        partition: a partitioner, or its name, e.g. "A0d10C100".
        shape: (C, H, W).
        classes: number of classes.
        num_train: training images; each class has the same number, to within one.
        num_test: test images.
        batch_size: B, examples of a local step; None for the client's whole data.
        epochs: E, passes over the client's data in a round, unless `steps` is given.
        steps: K, local steps of every client in a round, instead of `epochs`.
        augment: whether training images are cropped and mirrored; None for no.
        evaluate_on: what evaluation looks at, "test", "train" or both.
        seed: of the images and the partition.

    Raises:
        ConfigurationError: a number is outside its interval, or the partition's name does not parse.
    """

    def __init__(
        self,
        partition: Partitioner | str = "A0d10C100",
        *,
        shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 100,
        num_train: int = 10_000,
        num_test: int = 2_000,
        batch_size: int | None = 32,
        epochs: int | None = None,
        steps: int | None = None,
        augment: bool | None = None,
        evaluate_on: tuple[str, ...] = ("test",),
        seed: int = 0,
    ) -> None:
        super().__init__(
            partition,
            batch_size=batch_size,
            epochs=epochs,
            steps=steps,
            augment=augment,
            evaluate_on=evaluate_on,
            seed=seed,
        )
        if min(*shape, classes, num_train, num_test) < 1 or len(shape) != 3:
            raise ConfigurationError(
                "`shape` of FakeImages must be three numbers (C, H, W) from 1 on, like `classes`, `num_train` and "
                f"`num_test`, but they are {shape}, {classes}, {num_train} and {num_test}."
            )
        self.name = f"fake_{self.partition.name}"
        self.classes, self.shape, self.num_train, self.num_test = classes, shape, num_train, num_test
        self.mean, self.std = (0.5,) * shape[0], (0.25,) * shape[0]

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64)."""
        channels, height, width = self.shape
        coarse = stream(self.seed, "fake-classes").choice(
            np.array([80, 176], dtype=np.uint8), (self.classes, channels, 4, 4)
        )
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        patterns = coarse[:, :, rows[:, None], columns]
        count = self.num_train if train else self.num_test
        rng = stream(self.seed, "fake-images", int(train))
        labels = rng.permutation(np.arange(count) % self.classes)
        noise = rng.integers(-64, 64, (count, *self.shape), dtype=np.int8)
        images = patterns[labels] + noise.view(np.uint8)  # modulo 256, and never outside 0…255 for these numbers
        return Examples(torch.from_numpy(images), torch.from_numpy(labels))
