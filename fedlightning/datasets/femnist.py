"""Handwriting: FedProx's FEMNIST from NIST's files (Li et al., MLSys 2020), and Omniglot as its stand-in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.datasets._fedprox import BATCHING, dealt, splits_of
from fedlightning.datasets._files import Progress, prepared, stamp, visible_files
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream

DEVICES, CLASSES, OUTPUTS, SIDE = 200, 10, 26, 28
_FOLDERS = tuple(f"{ord(letter):x}" for letter in "abcdefghij")  # NIST names a class by its ASCII code


def deal_classes(
    class_sizes: Sequence[int], classes_per_user: int = 5, repo_bug: bool = False, seed: int = 0
) -> list[list[tuple[int, int, int]]]:
    """What each of the 200 devices takes: triples (class, first, count) of positions within a class.

    Device u takes m_u = max(2, ⌊s_u / c⌋) examples of each of the c classes u, u + 1, … (mod 10), s_u = LogNormal(4, 1)
    + 5. A class is dealt from its first example on, and from there again when less than m_u are left. A class with
    less than m_u examples in all gives all of them.

    Args:
        class_sizes: N_l, examples of each of the 10 classes.
        classes_per_user: c; 5 in the paper, 3 in the authors' program.
        repo_bug: begin again while the share would still fit, and not when it would not, as the authors' program does
            (they confirm the mistake): devices that share a class then hold the same first examples of it.
        seed: of NumPy's legacy generator, which draws s and nothing else.
    """
    wishes = np.random.RandomState(seed).lognormal(4, 1, DEVICES) + 5
    taken: list[list[tuple[int, int, int]]] = []
    pointer = [0] * CLASSES
    for u, wish in enumerate(wishes):
        taken.append([])
        for label in ((u + j) % CLASSES for j in range(classes_per_user)):
            count, size = max(2, int(wish / classes_per_user)), class_sizes[label]
            end = pointer[label] + count
            if (end < size) if repo_bug else (end > size):
                pointer[label] = 0
            count = max(0, min(count, size - pointer[label]))
            taken[u].append((label, pointer[label], count))
            pointer[label] += count
    return taken


def read_images(paths: Sequence[Path], progress: Progress, description: str) -> Tensor:
    """Images in grey, made 28 pixels high and wide by Lanczos' filter [n, 784] (uint8).

    Raises:
        ConfigurationError: a file is no image, is damaged or is not square.
    """
    from torchvision.datasets.folder import pil_loader  # takes a second, which a run on other data need not spend
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_to_tensor, resize

    pixels = torch.empty(len(paths), SIDE * SIDE, dtype=torch.uint8)
    for row, path in zip(pixels, progress.track(paths, description), strict=True):
        try:
            image = pil_loader(str(path)).convert("L")
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigurationError(
                f"{path} must be a PNG image, but cannot be read ({error}); unpack it again."
            ) from error
        if image.width != image.height:
            raise ConfigurationError(
                f"The images must be square, but {path} has {image.width} × {image.height} pixels; take the files as "
                "they are distributed."
            )
        row.copy_(pil_to_tensor(resize(image, [SIDE, SIDE], InterpolationMode.LANCZOS)).flatten())
    return pixels


class _Handwriting(FederatedDataModule):
    """Images of 784 uint8 pixels, 0 for ink and 255 for paper, which `preprocess` divides by 255."""

    classes: int
    shape = (SIDE * SIDE,)

    @checked(seed="[0, 4294967295]")
    def __init__(
        self,
        root: str | Path,
        seed: int,
        batching: Batching,
    ) -> None:
        super().__init__(batching=batching)
        self.root, self.seed = Path(root), seed

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From uint8 pixels [B, 784] to float32 in [0, 1]."""
        return inputs.to(torch.float32) / 255


class FEMNIST(_Handwriting):
    """FedProx's FEMNIST: the letters a to j of NIST's Special Database 19, dealt to 200 devices (`deal_classes`).

    Reads `<root>/by_class/<61…6a>/train_<61…6a>/*.png`, once: up to 4,000 images of each class, drawn by `seed`, are
    kept in `<root>/prepared`. NIST's files may not be redistributed, so they are not downloaded; `OmniglotWriters`
    stands in where they are absent. Labels are 0…9, while the paper's model has 26 outputs (`classes`).

    Departures: the authors' program draws the images and the partition without a seed, so theirs cannot be had; sizes
    follow the same law. It takes 3 classes per device where the paper says 5, and has the mistake that `repo_bug` names.

    Args:
        root: folder that holds `by_class`.
        classes_per_user: classes of each device.
        repo_bug: deal the images as the authors' program does, see `deal_classes`.
        seed: of the partition: which images are taken, who gets them, and each device's split; not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.

    Attributes:
        most: images of a class that are used.

    Raises:
        ConfigurationError: a number is outside its interval; in `setup`, a folder is absent or an image is damaged.
    """

    classes, most = OUTPUTS, 4000

    @checked(classes_per_user=f"[1, {CLASSES}]")
    def __init__(
        self,
        *,
        root: str | Path = "data",
        classes_per_user: int = 5,
        repo_bug: bool = False,
        seed: int = 0,
        batching: Batching = BATCHING,
    ) -> None:
        super().__init__(root, seed, batching)
        self.classes_per_user, self.repo_bug = classes_per_user, repo_bug
        self.name = f"femnist_{classes_per_user}" + ("_repo_bug" if repo_bug else "")

    def load(self) -> Splits:
        """Read the images, or what was kept of them, deal them to the devices and split each device's."""
        files = [self._drawn(self._files(folder), label) for label, folder in enumerate(_FOLDERS)]
        chosen = [path for members in files for path in members]
        key = {"version": 1, "files": stamp(chosen), "seed": self.seed, "most": self.most}
        pixels = prepared(
            self.root, "femnist", key, lambda bars: {"inputs": read_images(chosen, bars, "reading NIST's letters")}
        )["inputs"]
        sizes = [len(members) for members in files]
        labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(sizes))
        shares = deal_classes(sizes, self.classes_per_user, self.repo_bug, self.seed)
        return splits_of(Examples(pixels, labels), dealt(labels, shares), self.seed)

    def _files(self, folder: str) -> list[Path]:
        """The training images of a class, by name."""
        where = self.root / "by_class" / folder / f"train_{folder}"
        found = visible_files(where, "*.png")
        if not found:
            raise ConfigurationError(
                f"The images of {chr(int(folder, 16))!r} must lie in {where.absolute()}, but there is no PNG file; they "
                "come from https://www.nist.gov/srd/nist-special-database-19 (by_class.zip): unpack it there, name "
                "another data folder (`root`, or `--data-dir`), or take Omniglot's writers instead "
                "(`--data omniglot`, or `OmniglotWriters`)."
            )
        return found

    def _drawn(self, files: list[Path], label: int) -> list[Path]:
        order = stream(self.seed, "femnist-files", label).permutation(len(files))
        return [files[position] for position in order[: self.most]]


class OmniglotWriters(_Handwriting):
    """Omniglot (Lake et al., Science 2015) with its writers as devices: a stand-in for FEMNIST, not a reproduction.

    NIST's files may not be redistributed; Omniglot may (MIT), and it knows who wrote what, too. A device is one of
    the 20 writers of an alphabet and holds one image of each of its characters, a class is a character. So devices of
    one alphabet differ in their hand, and those of different alphabets share no class. Nine tenths of a writer's
    images, in the order of `random.Random(seed).shuffle`, are for training; a test image's class is learned from the
    other writers of the alphabet. Nothing measured on it compares with the paper's FEMNIST.

    Reads `<root>/<omniglot-small or omniglot-py>/images_*/<alphabet>/character<NN>/<CCCC>_<WW>.png`, once; the images
    are kept in `<root>/prepared`. An alphabet that lies in two of the folders counts once.

    Args:
        root: folder that holds one of the two.
        alphabets: names of those to take; () for all that there are.
        seed: of the partition: each writer's split; not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.

    Attributes:
        classes: number of characters, after `setup()`.
        writers: each device's "<alphabet>/<writer>", after `setup()`.

    Raises:
        ConfigurationError: a number is outside its interval; in `setup`, a folder or an alphabet is absent, or an image
            is damaged.
    """

    name = "omniglot_writers"
    writers: list[str]

    @checked()
    def __init__(
        self,
        *,
        root: str | Path = "data",
        alphabets: tuple[str, ...] = (),
        seed: int = 0,
        batching: Batching = BATCHING,
    ) -> None:
        super().__init__(root, seed, batching)
        self.alphabets = alphabets

    def load(self) -> Splits:
        """Read the images, or what was kept of them, and split each writer's."""
        files = self._files()
        names = sorted(files)
        characters = sorted({(alphabet, character) for alphabet, character, _ in names})
        writers = [f"{alphabet}/{name.rpartition('_')[2].removesuffix('.png')}" for alphabet, _, name in names]
        self.classes, self.writers = len(characters), sorted(set(writers))
        chosen = [files[name] for name in names]
        pixels = prepared(
            self.root,
            "omniglot",
            {"version": 1, "names": names, "files": stamp(chosen)},
            lambda bars: {"inputs": read_images(chosen, bars, "reading Omniglot")},
        )["inputs"]
        number = {character: label for label, character in enumerate(characters)}
        examples = Examples(pixels, torch.tensor([number[name[:2]] for name in names]))
        owners = np.array(writers)
        return splits_of(examples, [np.flatnonzero(owners == writer) for writer in self.writers], self.seed)

    def _files(self) -> dict[tuple[str, str, str], Path]:
        """Where each image lies, by alphabet, character and file name."""
        folders = [self.root / name for name in ("omniglot-small", "omniglot-py")]
        paths = [path for folder in folders for path in visible_files(folder, "images_*/*/character*/*_*.png")]
        found = {path.parts[-3:]: path for path in paths}
        if not found:
            raise ConfigurationError(
                f"Omniglot must lie in {' or '.join(str(folder.absolute()) for folder in folders)}, but there is no "
                "image in images_*/<alphabet>/character<NN>; it comes from https://github.com/brendenlake/omniglot: "
                "unpack it there, or name another data folder (`root`, or `--data-dir`)."
            )
        known = {alphabet for alphabet, _, _ in found}
        absent = sorted(set(self.alphabets) - known)
        if absent:
            raise ConfigurationError(
                f"`alphabets` of OmniglotWriters must be among {', '.join(sorted(known))}, but {', '.join(absent)} is not."
            )
        wanted = set(self.alphabets) or known
        return {(a, c, name): path for (a, c, name), path in found.items() if a in wanted}
