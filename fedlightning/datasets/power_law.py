"""MNIST over 1,000 devices whose sizes follow a power law, as in FedProx (Li et al., MLSys 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.partitioners import IID
from fedlightning.datasets._fedprox import BATCHING, dealt, splits_of
from fedlightning.datasets._files import require_file
from fedlightning.datasets.vision import MNIST
from fedlightning.errors import ConfigurationError

Array = np.ndarray[Any, np.dtype[Any]]

DEVICES, CLASSES, PIXELS = 1000, 10, 784
_SHARE = 5  # examples of each of a device's two classes that it has at least

_FILES = {
    "train-images-idx3-ubyte": ("The training images of MNIST", 47_040_016),
    "train-labels-idx1-ubyte": ("The training labels of MNIST", 60_008),
    "t10k-images-idx3-ubyte": ("The test images of MNIST", 7_840_016),
    "t10k-labels-idx1-ubyte": ("The test labels of MNIST", 10_008),
}


def deal_power_law(class_sizes: Sequence[int], seed: int = 0) -> list[list[tuple[int, int, int]]]:
    """What each of the 1,000 devices takes: triples (class, first, count) of positions within a class.

    Device u takes 5 examples of class u mod 10 and 5 of the next class. What is left of a class l, N_l − 1,000, is
    dealt in proportion to LogNormal(0, 2) numbers P[l, u div 10, j] over the devices u that hold it as their first
    (j = 0) or second (j = 1) class, rounded down. As in the authors' program a share is taken only if it ends before
    the class's last example: who would reach it gets nothing.

    Args:
        class_sizes: N_l, examples of each of the 10 classes.
        seed: of NumPy's legacy generator, which draws P and nothing else.

    Raises:
        ConfigurationError: there are not 10 classes, or one has less than 1,000 examples.
    """
    if len(class_sizes) != CLASSES or min(class_sizes) < 2 * _SHARE * DEVICES // CLASSES:
        raise ConfigurationError(
            f"The power law over {DEVICES:,} devices needs {CLASSES} classes of at least 1,000 examples, but they have "
            f"{', '.join(map(str, class_sizes))}; give all of MNIST."
        )
    taken: list[list[tuple[int, int, int]]] = [[] for _ in range(DEVICES)]
    pointer = [0] * CLASSES
    for u in range(DEVICES):
        for label in (u % CLASSES, (u + 1) % CLASSES):
            taken[u].append((label, pointer[label], _SHARE))
            pointer[label] += _SHARE
    shares = np.random.RandomState(seed).lognormal(0, 2.0, (CLASSES, DEVICES // CLASSES, 2))
    left = np.array(class_sizes)[:, None, None] - 2 * _SHARE * DEVICES // CLASSES
    counts = (left * shares / shares.sum((1, 2), keepdims=True)).astype(np.int64)
    for u in range(DEVICES):
        for j in range(2):
            label = (u + j) % CLASSES
            count = int(counts[label, u // CLASSES, j])
            if pointer[label] + count < class_sizes[label]:
                taken[u].append((label, pointer[label], count))
                pointer[label] += count
    return taken


class PowerLawMNIST(FederatedDataModule):
    """FedProx's MNIST: 1,000 devices with two digits each, whose sizes follow a power law (`deal_power_law`).

    The 70,000 images are pooled, each pixel is standardised over all of them, (x − mean) / (std + 0.001), and nine
    tenths of a device's examples, in the order of `random.Random(seed).shuffle`, are for training. The pixels stay
    uint8 in memory; `preprocess` standardises a batch.

    Departure: the authors read the file "MNIST original" of mldata.org, which is gone. Within a class, examples are
    taken here in the order of the training file and then of the test file, which is how that file is described. The
    authors' program is unseeded, so their partition cannot be had; sizes follow the same law.

    Args:
        root: folder of the files, as torchvision lays them out: `<root>/MNIST/raw`.
        seed: of the partition and of each device's split, not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.
        download: whether files that are absent are downloaded.

    Attributes:
        mean: of each pixel over the 70,000 images [784] (float32), after `setup()`.
        scale: the standard deviation (divisor 70,000) of each pixel plus 0.001 [784] (float32), after `setup()`.

    Raises:
        ConfigurationError: `seed` is outside 0…2³² − 1; in `setup`, a file is absent, cut short or another one.
    """

    classes = CLASSES
    shape = (PIXELS,)
    name = "mnist_power_law"
    mean: Tensor
    scale: Tensor

    @checked(seed="[0, 4294967295]")
    def __init__(
        self,
        *,
        root: str | Path = "data",
        seed: int = 0,
        batching: Batching = BATCHING,
        download: bool = True,
    ) -> None:
        super().__init__(batching=batching)
        self.root, self.seed, self.download = Path(root), seed, download
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def load(self) -> Splits:
        """Read the four files, deal the images to the devices and split each device's."""
        examples = self._read()
        self.mean, self.scale = _standard(examples.inputs)
        sizes = torch.bincount(examples.targets, minlength=CLASSES).tolist()
        return splits_of(examples, dealt(examples.targets, deal_power_law(sizes, self.seed)), self.seed)

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From uint8 pixels [B, 784] to standardised float32."""
        if inputs.device not in self._on_device:
            self._on_device[inputs.device] = self.mean.to(inputs.device), self.scale.to(inputs.device)
        mean, scale = self._on_device[inputs.device]
        return (inputs.to(torch.float32) - mean) / scale

    def _read(self) -> Examples:
        """All images [70000, 784] (uint8) and labels, those of the training file first."""
        folder = self.root / "MNIST" / "raw"
        for name, (what, size) in _FILES.items():
            if (folder / name).exists() or not self.download:
                require_file(folder / name, what=what, source="http://yann.lecun.com/exdb/mnist", sizes=(size,))
        reader = MNIST(IID(1), root=self.root, download=self.download)
        try:
            parts = [reader.read(train=True), reader.read(train=False)]
        except ConfigurationError as error:
            tried = "the download failed" if self.download else "`download` is off"
            reason = " ".join(str(error.__cause__).split()) or "not an idx file"
            raise ConfigurationError(
                f"{', '.join(_FILES)} must lie in {folder.absolute()}, but are not there or are damaged, and "
                f"{tried}: {reason}; put them there, or name another data folder (`root`, or `--data-dir`)."
            ) from error
        images = torch.cat([part.inputs.flatten(1) for part in parts])
        return Examples(images, torch.cat([part.targets for part in parts]))


def _standard(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and standard deviation plus 0.001, of each column [P] (float32) of uint8 pixels [n, P]; sums are exact."""
    count = len(pixels)
    sums = pixels.sum(0, dtype=torch.int64)
    squares = torch.stack([part.to(torch.int64).square().sum(0) for part in pixels.split(8192)]).sum(0)
    std = (count * squares - sums.square()).to(torch.float64).sqrt() / count
    return (sums.to(torch.float64) / count).to(torch.float32), (std + 0.001).to(torch.float32)
