"""Images: CIFAR-10 and -100, MNIST and Fashion-MNIST by torchvision, and made-up ones."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, Splits
from fedlightning.data.partition_names import parse_partition
from fedlightning.data.partitioners import Partitioner
from fedlightning.data.splits import gather, set_aside
from fedlightning.data.transforms import RandomCropFlip, Transform
from fedlightning.datasets._files import require_file
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream


class ImageData(FederatedDataModule):
    """Images in memory as uint8 [n, C, H, W], divided by a partitioner; each class of the test set in like proportions.

    Subclass it, set the attributes and define `read`.

    Args:
        partition: a partitioner, or its name, e.g. "A0d10C100".
        root: folder of the files, as torchvision lays them out.
        batching: size and number of the batches that a client trains on in a round.
        augment: whether training images are augmented; None for what is usual with this data set, or with `transform`.
        transform: what a paper makes of its images, e.g. `TFFCifar(24)`; None for this data set's own.
        target: what the model is to give: "label", or "image" for autoencoders: the inputs, whose pixels are then in [0, 1]
            unless `transform` says otherwise.
        validation: fraction of each client's training examples that is set aside for validation, at most all but one.
        seed: of the partition and of what is set aside, not of the training.
        download: whether files that are absent are downloaded.

    Attributes:
        classes: number of classes.
        shape: (C, H, W), of an input as the model takes it.
        mean, std: of each channel of the training images, which `preprocess` standardises, for pixels in [0, 1].
        usual_augmentation: what `augment=True` does without `transform`.
        augments: what `augment=None` means then.

    Raises:
        ConfigurationError: a number is outside its interval, or the partition's name does not parse.
    """

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    usual_augmentation: ClassVar[Augmentation] = RandomCropFlip()
    augments: ClassVar[bool] = False

    @checked(validation="[0, 1)")
    def __init__(
        self,
        partition: Partitioner | str = "A0d10C100",
        *,
        root: str | Path = "data",
        batching: Batching = Batching(),
        augment: bool | None = None,
        transform: Transform | None = None,
        target: Literal["label", "image"] = "label",
        validation: float = 0.0,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        if not hasattr(self, "shape"):
            raise ConfigurationError(f"{type(self).__name__} must set `shape`, but does not; see `ImageData`.")
        usual: Augmentation | None = self.usual_augmentation
        augments = self.augments
        if transform is not None:
            self.shape, usual = transform.shape_of(self.shape), transform.augmentation
            augments = usual is not None
        augments = augments if augment is None else augment
        if augments and usual is None:
            raise ConfigurationError(
                f"`augment` of {type(self).__name__} must be False or None for {type(transform).__name__}, which has no "
                "augmentation, but is True."
            )
        super().__init__(batching=batching, augmentation=usual if augments else None)
        self.transform, self.target, self.validation = transform, target, validation
        self.partition = parse_partition(partition) if isinstance(partition, str) else partition
        self.name = self.partition.name
        self.root, self.seed, self.download = Path(root), seed, download

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64)."""
        raise ConfigurationError(f"{type(self).__name__} must define `read(train)`, but does not; see `ImageData`.")

    def load(self) -> Splits:
        """Read both sets, divide them, and set the validation split aside."""
        train, test = self.read(train=True), self.read(train=False)
        clients = self.partition.split(train.targets, self.seed)
        test_clients = clients.mirror(train.targets, test.targets)
        if not self.validation:
            return Splits(train, clients, test, test_clients)
        clients, aside = set_aside(clients, self.validation, self.seed)
        return Splits(train, clients, test, test_clients, *gather(train, aside))

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From uint8 pixels [B, C, H, W] to floats: as `transform` says, or else standardised for classification."""
        if self.transform is not None:
            return self.transform.preprocess(inputs)
        if self.target == "image":
            return inputs.to(torch.float32) / 255
        dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
        scale, shift = _standardisation(tuple(self.mean), tuple(self.std), dtype, inputs.device)
        return (inputs.to(dtype) * scale).sub_(shift)

    def batch(self, examples: Examples, index: Tensor, draws: Tensor | None = None) -> Examples:
        """The images and their targets at `index` [B], augmented by `draws` [B, D] and ready for the model."""
        inputs, labels = super().batch(examples, index, draws)
        return Examples(inputs, inputs if self.target == "image" else labels)


@lru_cache(maxsize=64)
def _standardisation(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What pixels of 0…255 are multiplied by and lessened by [C, 1, 1]; kept on the device, since a copy there would wait."""
    each = list(zip(mean, std, strict=True))
    numbers = [[1 / (255 * deviation) for _, deviation in each], [middle / deviation for middle, deviation in each]]
    scale, shift = torch.tensor(numbers, dtype=dtype, device=device)[..., None, None].unbind()
    return scale, shift


class _TorchvisionData(ImageData):
    """A data set that torchvision reads and, where its files are absent, downloads."""

    source: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    options: ClassVar[dict[str, str]] = {}

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64).

        Raises:
            ConfigurationError: the files are absent or damaged and cannot be downloaded.
        """
        from torchvision import datasets  # takes a second, which a run on other data need not spend

        try:
            found = getattr(datasets, self.source)(self.root, train=train, download=self.download, **self.options)
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
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 10 classes, by default cropped and mirrored.

    Reads the pickles that torchvision downloads, or, where there is only `<root>/cifar-10-batches-bin`, the binary
    version: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, each 10,000 records of a label and 3,072 pixels.
    """

    source, folder = "CIFAR10", "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    classes, shape = 10, (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    augments = True
    binary, records = "cifar-10-batches-bin", 10_000

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, 3, 32, 32] (uint8), labels [n] (int64).

        Raises:
            ConfigurationError: the files are absent or damaged and cannot be downloaded.
        """
        folder = self.root / self.binary
        if not folder.is_dir() or (self.root / self.folder).is_dir():
            return super().read(train)
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        content = np.concatenate([np.fromfile(self._whole(folder / name), dtype=np.uint8) for name in names])
        records = torch.from_numpy(content).view(-1, 1 + 3 * 32 * 32)
        labels = records[:, 0].to(torch.int64)
        if int(labels.max()) >= self.classes:
            raise ConfigurationError(
                f"Each record of CIFAR-10 must begin with a label in 0…9, but {folder.absolute()} holds a label "
                f"{int(labels.max())}: it is damaged, or CIFAR-100; it comes from {_CIFAR10_SOURCE}."
            )
        return Examples(records[:, 1:].reshape(-1, 3, 32, 32), labels)

    def _whole(self, path: Path) -> Path:
        size = self.records * (1 + 3 * 32 * 32)
        return require_file(path, what=f"{self.records:,} images of CIFAR-10", source=_CIFAR10_SOURCE, sizes=(size,))


_CIFAR10_SOURCE = "www.cs.toronto.edu/~kriz/cifar.html (cifar-10-binary.tar.gz)"


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


_MOST_PIXELS, _MANY = 2**33, "[1, 100000000]"


class FakeImages(ImageData):
    """Made-up images, for trials without a download: each is the coarse random pattern of its class, with noise.

    Args:
        partition: a partitioner, or its name, e.g. "A0d10C100".
        shape: (C, H, W).
        classes: number of classes.
        num_train: training images; each class has the same number, to within one.
        num_test: test images.
        batching: size and number of the batches that a client trains on in a round.
        augment: whether training images are cropped and mirrored; None for no, or for what is usual with `transform`.
        transform: what a paper makes of its images, e.g. `TFFCifar(24)`.
        target: "label", or "image" for autoencoders.
        validation: fraction of each client's training examples that is set aside for validation, at most all but one.
        seed: of the images, of the partition and of what is set aside, not of the training.

    Raises:
        ConfigurationError: a number is outside its interval, or the partition's name does not parse.
    """

    @checked(classes=_MANY, num_train=_MANY, num_test=_MANY, validation="[0, 1)")
    def __init__(
        self,
        partition: Partitioner | str = "A0d10C100",
        *,
        shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 100,
        num_train: int = 10_000,
        num_test: int = 2_000,
        batching: Batching = Batching(),
        augment: bool | None = None,
        transform: Transform | None = None,
        target: Literal["label", "image"] = "label",
        validation: float = 0.0,
        seed: int = 0,
    ) -> None:
        pixels = math.prod(shape) * (num_train + num_test + classes)
        if min(shape) < 1 or pixels > _MOST_PIXELS:
            raise ConfigurationError(
                f"`shape` of FakeImages must be three numbers (C, H, W) from 1 on, with at most {_MOST_PIXELS:,} pixels of all "
                f"images together, but is {shape} for `num_train` {num_train}, `num_test` {num_test} and `classes` {classes}."
            )
        self.classes, self.shape, self._drawn_shape = classes, shape, shape
        super().__init__(
            partition,
            batching=batching,
            augment=augment,
            transform=transform,
            target=target,
            validation=validation,
            seed=seed,
        )
        self.name = f"fake-{self.partition.name}"
        self.num_train, self.num_test = num_train, num_test
        self.mean, self.std = (0.5,) * shape[0], (0.25,) * shape[0]

    def read(self, train: bool) -> Examples:
        """The training or the test set: images [n, C, H, W] (uint8), labels [n] (int64)."""
        channels, height, width = self._drawn_shape
        coarse = stream(self.seed, "fake-classes").choice(
            np.array([80, 176], dtype=np.uint8), (self.classes, channels, 4, 4)
        )
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        patterns = coarse[:, :, rows[:, None], columns]
        count = self.num_train if train else self.num_test
        rng = stream(self.seed, "fake-images", int(train))
        labels = rng.permutation(np.arange(count) % self.classes)
        noise = rng.integers(-64, 64, (count, *self._drawn_shape), dtype=np.int8)
        images = patterns[labels] + noise.view(np.uint8)  # modulo 256, and never outside 0…255 for these numbers
        return Examples(torch.from_numpy(images), torch.from_numpy(labels))
