"""GloVe word vectors (Pennington et al., EMNLP 2014)."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.datasets._files import Progress, prepared, require_file, stamp
from fedlightning.datasets._leaf_split import decode_names, encode_names
from fedlightning.errors import ConfigurationError

_SOURCE = "nlp.stanford.edu/projects/glove (glove.6B.zip)"
_VERSION = 1  # of what `prepared` keeps


def find_one(folder: Path, pattern: str, *, what: str, source: str, remedy: str) -> Path:
    """The one file of a folder that matches a pattern, e.g. "glove.6B.*.txt".

    Args:
        folder: where it must lie.
        pattern: a name, or one with wildcards; or an absolute path.
        what: what it is, for the message.
        source: where it comes from, for the message.
        remedy: what to do where several match, for the message.

    Raises:
        ConfigurationError: no file matches, more than one does, or it is empty.
    """
    if not pattern:
        raise ConfigurationError(f"{what} must have a name in {folder.absolute()}, but the name is ''; {remedy}.")
    found = [] if Path(pattern).is_absolute() else sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigurationError(
            f"{what} must be one file, but {pattern} matches {len(found)} in {folder.absolute()}: {names}; {remedy}."
        )
    return require_file(found[0] if found else folder / pattern, what=what, source=source)


@dataclass(frozen=True, eq=False)
class Glove:
    """Words and their vectors: word w has the row `vectors[vocab[w]]`, any other, and padding, the zero row.

    Attributes:
        vocab: the row of each of the V words, in the order of the file.
        vectors: [V + 1, d] (float32); the last row is zero.
    """

    vocab: dict[str, int]
    vectors: Tensor

    @property
    def unknown(self) -> int:
        """V, the row of unknown words and of padding."""
        return len(self.vocab)

    @classmethod
    @checked()
    def read(cls, root: str | Path = "data", file: str = "glove.6B.*.txt") -> Glove:
        """Read a file of lines "word number … number"; what is made of it is kept and read the next time.

        Args:
            root: folder of the data sets; the file lies in its folder `glove`.
            file: its name, or a pattern that one file matches. FedProx (MLSys 2020) takes "glove.6B.300d.txt".

        Raises:
            ConfigurationError: it is absent, or a line is not a word with as many numbers as the first, or is a word
                again.
        """
        path = glove_path(root, file)

        def build(progress: Progress) -> dict[str, Tensor]:
            return _parse(path, progress)

        found = prepared(path.parent, "glove", {"version": _VERSION, "file": stamp([path])}, build)
        words = decode_names(found["words"])
        return cls({word: row for row, word in enumerate(words)}, found["vectors"])


def glove_path(root: str | Path, file: str) -> Path:
    """Where `Glove.read` finds its file.

    Raises:
        ConfigurationError: no file matches, or more than one does.
    """
    return find_one(
        Path(root) / "glove", file, what="A file of GloVe vectors", source=_SOURCE, remedy="name one of them (`glove`)"
    )


@dataclass(frozen=True)
class _Lines(Collection[bytes]):
    """The lines of a file one after another, without holding them all."""

    path: Path

    def __len__(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def __contains__(self, line: object) -> bool:
        return any(line == other for other in self)


def _parse(path: Path, progress: Progress) -> dict[str, Tensor]:
    words: dict[str, int] = {}
    numbers = array("f")
    width = 0
    for number, line in enumerate(progress.track(_Lines(path), f"Words of {path.name}"), 1):
        where = f"Line {number} of {path.absolute()}"
        word, *columns = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split(" ")
        width = width or len(columns)
        if not word or len(columns) != width or width == 0:
            raise ConfigurationError(
                f"{where} must be a word and {width or 'some'} numbers, as the first line is, but has "
                f"{len(columns)} columns after the word {word!r}; take a whole file from {_SOURCE}."
            )
        if word in words:
            raise ConfigurationError(
                f"{where} must hold a new word, but {word!r} is in line {words[word] + 1}, too; delete one of them."
            )
        words[word] = number - 1
        numbers.extend(_row(columns, where))
    vectors = np.frombuffer(numbers, dtype=np.float32).reshape(len(words), width)
    return {
        "words": encode_names(list(words)),
        "vectors": torch.from_numpy(np.concatenate([vectors, np.zeros((1, width), dtype=np.float32)])),
    }


def _row(columns: list[str], where: str) -> list[float]:
    try:
        row = [float(column) for column in columns]
    except ValueError as error:
        raise ConfigurationError(f"{where} must hold numbers after its word, but {error}.") from error
    if not np.isfinite(np.frombuffer(array("f", row), dtype=np.float32)).all():
        raise ConfigurationError(f"{where} must hold finite numbers, but holds an infinity or a NaN.")
    return row
