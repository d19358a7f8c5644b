"""Sentiment140: the sentiment of tweets, each account a client: a data set of LEAF and of FedProx."""

from __future__ import annotations

import csv
import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.splits import gather
from fedlightning.datasets._fedprox import BATCHING
from fedlightning.datasets._files import Progress, prepared, stamp
from fedlightning.datasets._leaf_split import decode_names, encode_names, owned, random_split, take_clients
from fedlightning.datasets.glove import Glove, find_one, glove_path
from fedlightning.errors import ConfigurationError

_SOURCE = "cs.stanford.edu/people/alecmgo/trainingandtestdata.zip"
_VERSION = 1  # of what `prepared` keeps
_TOKEN = re.compile(r"[\w']+|[.,!?;]")
_POLARITIES = ("0", "2", "4")


class Tweet(NamedTuple):
    """A row of the data: the account, what it wrote, and whether that is positive (1) or not (0)."""

    user: str
    text: str
    label: int


def read_tweets(path: Path) -> list[Tweet]:
    """The rows of a CSV file of six columns: polarity, id, date, query, account and text (ISO-8859-1, no header).

    The label is 1 iff the polarity is "4"; the neutral "2", which only the test file has, is 0 like the negative "0".

    Raises:
        ConfigurationError: a row has another number of columns or another polarity.
    """
    tweets = []
    with path.open(encoding="latin-1", newline="") as file:
        rows = csv.reader(file)
        try:
            for number, row in enumerate(rows, 1):
                if len(row) != 6 or row[0] not in _POLARITIES:
                    raise ConfigurationError(
                        f"Row {number} of {path.absolute()} must have six columns and begin with a polarity of 0, 2 or "
                        f"4, but has {len(row)} and begins with {row[0] if row else ''!r}; take the file from {_SOURCE}."
                    )
                tweets.append(Tweet(row[4], row[5], int(row[0] == "4")))
        except csv.Error as error:
            raise ConfigurationError(
                f"{path.absolute()} must be a CSV file, but at line {rows.line_num} {error}; take it from {_SOURCE}."
            ) from error
    return tweets


def split_words(text: str) -> list[str]:
    """The words of a tweet, each a run of letters, digits, underscores and apostrophes, and each of . , ! ? ;"""
    return _TOKEN.findall(text)


class Sent140(FederatedDataModule):
    """Sentiment140 (Go et al., 2009): is a tweet positive? Each account is a device (LEAF; FedProx, MLSys 2020).

    An input is the first `length` words, as rows of a table of GloVe vectors; unknown words and padding are the row
    after the last word. The training and the manual test file are pooled and each device's tweets split at random, as
    LEAF does with `-s niid --sf 0.3 -k 30 -t sample`. The published set has 772 devices and 40,783 samples.

    As in FedProx's program, words keep their capitals, so that with glove.6B, which is in lower case, a capitalised
    word is unknown; `lowercase=True` finds it.

    Args:
        fraction: share of all tweets that is taken, whole accounts at random, before small ones are dropped.
        min_samples: accounts with this many tweets or fewer are dropped, and in any case those with one.
        lowercase: whether words lose their capitals.
        train_fraction: share of a device's tweets that is for training.
        length: words of a tweet; more are cut off.
        glove: file of the vectors in the folder `glove`, or a pattern that one file matches; the paper takes
            "glove.6B.300d.txt".
        root: folder of the data sets; training*.csv and testdata.manual*.csv lie in its folder `sent140`.
        seed: of the partition: which accounts are taken, and how each one's tweets are split; not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.

    Attributes:
        classes: 2.
        shape: (length,), of an input as the model takes it (int64 tokens).
        users: names of the devices, in their order, after `setup()`.

    Raises:
        ConfigurationError: a number is outside its interval.
    """

    classes = 2
    users: list[str]

    @checked(fraction="(0, 1]", min_samples="[0, inf)", train_fraction="(0, 1)", length=COUNT)
    def __init__(
        self,
        fraction: float = 0.3,
        min_samples: int = 30,
        lowercase: bool = False,
        *,
        train_fraction: float = 0.8,
        length: int = 25,
        glove: str = "glove.6B.*.txt",
        root: str | Path = "data",
        seed: int = 0,
        batching: Batching = BATCHING,
    ) -> None:
        super().__init__(batching=batching)
        self.fraction, self.min_samples, self.lowercase = fraction, min_samples, lowercase
        self.train_fraction, self.length, self.shape, self.seed = train_fraction, length, (length,), seed
        self.root, self.glove_file = Path(root), glove
        self.name = f"sent140_{fraction:g}_{min_samples}" + ("_lowercase" if lowercase else "")

    @cached_property
    def glove(self) -> Glove:
        """The words and their vectors, which a model's table of embeddings takes: `data.glove.vectors`."""
        return Glove.read(self.root, self.glove_file)

    @property
    def vocab_size(self) -> int:
        """V + 1, the number of tokens: the words, and one for unknown words and padding."""
        return self.glove.unknown + 1

    def load(self) -> Splits:
        """Read the tweets, take accounts and split their tweets. Inputs are words [n, length] (int32)."""
        files = [self._find("training*.csv", "training"), self._find("testdata.manual*.csv", "manual test")]
        key = {
            "version": _VERSION,
            "files": stamp([*files, glove_path(self.root, self.glove_file)]),
            **{name: getattr(self, name) for name in ("fraction", "min_samples", "lowercase", "length", "seed")},
        }

        def build(progress: Progress) -> dict[str, Tensor]:
            return self._prepare(files, progress)

        found = prepared(files[0].parent, "sent140", key, build)
        self.users = decode_names(found["names"])
        examples = Examples(found["words"], found["labels"])
        halves = [
            random_split(size, self.train_fraction, self.seed, account)
            for size, account in zip(found["sizes"].tolist(), found["accounts"].tolist(), strict=True)
        ]
        train, test = owned(found["starts"].numpy(), halves)
        return Splits(*gather(examples, train), *gather(examples, test))

    def preprocess(self, inputs: Tensor) -> Tensor:
        """The tokens [B, length] as int64."""
        return inputs.to(torch.int64)

    def _find(self, pattern: str, part: str) -> Path:
        what = f"The {part} file of Sentiment140"
        return find_one(self.root / "sent140", pattern, what=what, source=_SOURCE, remedy="leave only one there")

    def _prepare(self, files: list[Path], progress: Progress) -> dict[str, Tensor]:
        """Words [n, length] and labels [n]; of the accounts their starts, sizes, places among all [N], and names."""
        tweets = sorted(
            (tweet for path in progress.track(files, "Files of Sentiment140") for tweet in read_tweets(path)),
            key=lambda tweet: tweet.user,
        )
        names = sorted({tweet.user for tweet in tweets})
        place = {name: account for account, name in enumerate(names)}
        sizes = np.bincount([place[tweet.user] for tweet in tweets], minlength=len(names))
        taken = take_clients(sizes, self.fraction, self.min_samples, self.seed, "Sent140")
        starts = np.cumsum(sizes) - sizes
        accounts = taken.nonzero()[0]
        chosen = [tweets[starts[a] + i] for a in accounts for i in range(taken[a])]
        words = [self._words(tweet.text) for tweet in progress.track(chosen, "Tweets of Sentiment140")]
        return {
            "words": torch.tensor(words, dtype=torch.int32),
            "labels": torch.tensor([tweet.label for tweet in chosen]),
            "starts": torch.from_numpy(np.cumsum(taken[accounts]) - taken[accounts]),
            "sizes": torch.from_numpy(taken[accounts]),
            "accounts": torch.from_numpy(accounts),
            "names": encode_names([names[account] for account in accounts]),
        }

    def _words(self, text: str) -> list[int]:
        vocab, unknown = self.glove.vocab, self.glove.unknown
        words = split_words(text.lower() if self.lowercase else text)[: self.length]
        return [vocab.get(word, unknown) for word in words] + [unknown] * (self.length - len(words))
