"""Stack Overflow's sentences for next-word prediction, each user a client (TensorFlow Federated)."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from fedlightning._checked import COUNT, checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.partition import Partition
from fedlightning.datasets._files import Progress, prepared, require_file, stamp, visible_files
from fedlightning.datasets._leaf_split import decode_names, encode_names
from fedlightning.datasets.leaf import read_leaf
from fedlightning.errors import ConfigurationError
from fedlightning.task import NextToken

PAD = 0
"""The token that fills a sentence up; words are 1…V, and V + 1, V + 2, V + 3 are unknown words, the start and the end."""

_SOURCE = (
    "storage.googleapis.com/tff-datasets-public (stackoverflow.tar.bz2); write it as JSON lines, "
    '{"user": "7", "sentences": ["how do i sort a list", …]}'
)
_COUNTS = "stackoverflow.word_count"
_VERSION = 1  # of what `prepared` keeps


class StackOverflow(FederatedDataModule):
    """The next word of Stack Overflow's sentences; each user is a client (Reddi et al., ICLR 2021).

    Reads `<root>/stackoverflow/train.jsonl` and `test.jsonl`: one user a line, `{"user": name, "sentences": [text, …]}`,
    whose words stand between spaces, as TensorFlow Federated's do. Instead of either there may be a folder `train` or
    `test` of LEAF's JSON, whose x are the sentences. TensorFlow Federated's own files need h5py or SQLite with
    TensorFlow, so they must be written as JSON lines once. The users of the test part are clients of their own.

    The vocabulary is the first words of `<root>/stackoverflow/stackoverflow.word_count` (lines "word count", the most
    frequent first); where that is absent, the words that most users of the training part use, ties in alphabetical order.

    A sentence becomes its start, its first `length` words and, if there are fewer, its end; then padding up to
    `length` + 1 tokens. The inputs are all but the last, the targets all but the first, as in TensorFlow Federated.

    Args:
        vocabulary: V, words that are known; there are V + 4 tokens.
        length: words of a sentence.
        max_sentences: sentences of a user that are taken, the first ones; None for all. 128 in the paper.
        root: folder of the data sets.
        batching: size and number of the batches that a client trains on in a round.

    Attributes:
        vocab_size: tokens, V + 4; fewer after `setup()` if the text has fewer words.
        shape: (length,), of an input.
        words: the vocabulary, after `setup()`; the token of a word is 1 + its place.
        users: names of the clients, in the order of the file, after `setup()`.

    Raises:
        ConfigurationError: a number is outside its interval; in `setup`, a file is absent or malformed.
    """

    other_test_clients = True
    words: list[str]
    users: list[str]

    @checked(vocabulary=f"[1, {2**15 - 5}]", length=COUNT, max_sentences=COUNT)
    def __init__(
        self,
        *,
        vocabulary: int = 10_000,
        length: int = 20,
        max_sentences: int | None = 128,
        root: str | Path = "data",
        batching: Batching = Batching(16),
    ) -> None:
        super().__init__(batching=batching)
        self.vocabulary, self.length, self.max_sentences = vocabulary, length, max_sentences
        self.folder = Path(root) / "stackoverflow"
        self.vocab_size, self.shape, self.name = vocabulary + 4, (length,), "stackoverflow"

    def load(self) -> Splits:
        """Read the sentences, or what was kept of them."""
        train, test = self._file("train"), self._file("test")
        counts = self.folder / _COUNTS
        files = [
            file for path in (train, test) for file in (visible_files(path, "*.json") if path.is_dir() else (path,))
        ]
        key = {
            "version": _VERSION,
            "files": stamp([*files, *([counts] if counts.is_file() else [])]),
            "options": [self.vocabulary, self.length, self.max_sentences],
        }
        found = prepared(self.folder, "stackoverflow", key, lambda progress: self._prepare(train, test, progress))
        self.words, self.users = decode_names(found["words"]), decode_names(found["train_users"])
        self.vocab_size = len(self.words) + 4
        return Splits(*_divided(found, "train"), *_divided(found, "test"))

    def batch(self, examples: Examples, index: Tensor, draws: Tensor | None = None) -> Examples:
        """The tokens [B, length] at `index` [B] and the token after each of them [B, length] (int64)."""
        inputs, targets = super().batch(examples, index, draws)
        return Examples(inputs.to(torch.int64), targets.to(torch.int64))

    def _file(self, part: str) -> Path:
        folder, path = self.folder / part, self.folder / f"{part}.jsonl"
        if folder.is_dir() and not path.exists():
            return folder
        return require_file(path, what=f"The {part} part of Stack Overflow", source=_SOURCE)

    def _prepare(self, train: Path, test: Path, progress: Progress) -> dict[str, Tensor]:
        words = self._words(train)
        ids = {word: 1 + place for place, word in enumerate(words)}
        result = {"words": encode_names(words)}
        for path in progress.track([train, test], "Parts of Stack Overflow"):
            names, rows = [], []
            for name, sentences in _users(path):
                if sentences:
                    names.append(name)
                    rows.append(encode(sentences[: self.max_sentences], ids, self.length))
            if not names:
                raise ConfigurationError(
                    f"{path} must hold a user with a sentence, but has none; it comes from {_SOURCE}."
                )
            result[f"{path.stem}_tokens"] = torch.from_numpy(np.concatenate(rows))
            result[f"{path.stem}_offsets"] = torch.tensor([0, *map(len, rows)]).cumsum(0)
            result[f"{path.stem}_users"] = encode_names(names)
        return result

    def _words(self, train: Path) -> list[str]:
        """The vocabulary, the most frequent word first."""
        path = self.folder / _COUNTS
        if not path.is_file():
            users: Counter[str] = Counter()
            for _, sentences in _users(train):
                users.update({word for sentence in sentences for word in sentence.split()})
            if not users:
                raise ConfigurationError(f"{train.absolute()} must hold a word, but has none; it comes from {_SOURCE}.")
            return sorted(users, key=lambda word: (-users[word], word))[: self.vocabulary]
        with path.open(encoding="utf-8") as lines:
            first = [line.split() for line in itertools.islice(lines, self.vocabulary)]
        if not first or any(len(fields) != 2 for fields in first) or len({fields[0] for fields in first}) < len(first):
            raise ConfigurationError(
                f"Each line of {path.absolute()} must hold another word and its number, but one does not; take it from "
                "stackoverflow.word_count.tar.bz2 of TensorFlow Federated, or leave it out."
            )
        return [word for word, _ in first]


def encode(sentences: Sequence[str], ids: Mapping[str, int], length: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The tokens [n, length + 1] (int16) of n sentences: start, words, the end if they are fewer than `length`, padding.

    Args:
        sentences: words between spaces.
        ids: the tokens 1…V of the V known words.
        length: words that are taken.
    """
    unknown, start, end = (len(ids) + extra for extra in (1, 2, 3))
    tokens = np.full((len(sentences), length + 1), PAD, dtype=np.int16)
    tokens[:, 0] = start
    for row, sentence in zip(tokens, sentences, strict=True):
        words = [ids.get(word, unknown) for word in sentence.split()[:length]]
        words += [end] * (len(words) < length)
        row[1 : 1 + len(words)] = words
    return tokens


def _users(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The users of a file of JSON lines, or of a folder of LEAF's JSON, with their sentences."""
    seen: set[str] = set()
    for where, name, sentences in _leaf_users(path) if path.is_dir() else _json_lines(path):
        if not isinstance(name, str) or "\n" in name or name in seen:
            raise ConfigurationError(
                f"Each user of {where} must be a name of one line that comes once, but is {name!r}."
            )
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise ConfigurationError(
                f"The sentences of each user must be a list of strings, but those of {name!r} in {where} are not; "
                "join tokens by spaces."
            )
        seen.add(name)
        yield name, sentences


def _leaf_users(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    for user in read_leaf(folder):
        yield str(folder), user.name, user.inputs


def _json_lines(path: Path) -> Iterator[tuple[str, Any, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"line {number} of {path.absolute()}"
            try:
                content = json.loads(line)
                yield where, content["user"], content["sentences"]
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(
                    f'{where} must be {{"user": name, "sentences": [text, …]}}, but is not ({error!r}); is it cut short?'
                ) from error


def _divided(found: dict[str, Tensor], part: str) -> tuple[Examples, Partition]:
    tokens = found[f"{part}_tokens"]
    return Examples(tokens[:, :-1], tokens[:, 1:]), Partition(torch.arange(len(tokens)), found[f"{part}_offsets"])


class NextWord(NextToken):
    """Next-word prediction on padded sentences: logits [B, T, V + 4] with targets [B, T].

    The loss of an example is the mean over its targets but padding; TensorFlow Federated takes the mean over those of a
    batch. The accuracy counts neither unknown words nor the end of a sentence, as in Reddi et al., ICLR 2021; that of an
    example without any other target is 0.

    Args:
        model: gives logits [B, T, vocab_size].
        vocab_size: tokens, V + 4, of the data module after `setup()`.
        metrics: torchmetrics by name, beside `accuracy`.
        lr: learning rate of centralised training alone.
    """

    @checked(vocab_size="[5, inf)")
    def __init__(
        self, model: nn.Module, vocab_size: int, metrics: dict[str, Metric] | None = None, lr: float = 0.1
    ) -> None:
        super().__init__(model, vocab_size, metrics, lr)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [B]."""
        losses = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
        real = (targets != PAD).to(losses.dtype)
        return (losses * real).sum(1) / real.sum(1).clamp(min=1)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and share of correct words [B]."""
        counted = self._counted(targets)
        correct = (outputs.argmax(-1) == targets) & counted
        return {"loss": self.criterion(outputs, targets), "accuracy": correct.sum(1) / counted.sum(1).clamp(min=1)}

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, targets: Tensor) -> None:
        """Feed the words of a batch to the metrics."""
        counted = self._counted(targets)
        if bool(counted.any()):
            super().update_metrics(metrics, outputs[counted], targets[counted])

    def _counted(self, targets: Tensor) -> Tensor:
        return (targets != PAD) & (targets <= self.classes - 4)
