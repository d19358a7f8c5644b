"""Shakespeare's plays for next-character prediction, each role a client: a data set of LEAF and of FedProx."""

from __future__ import annotations

import itertools
import re
import string
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.partition import Partition
from fedlightning.datasets._fedprox import BATCHING
from fedlightning.datasets._files import Progress, prepared, require_file, stamp
from fedlightning.datasets._leaf_split import (
    Ints,
    contiguous_split,
    decode_names,
    encode_names,
    owned,
    random_split,
    take_clients,
)
from fedlightning.errors import ConfigurationError

ALPHABET = f"\n !\"&'(),-.{string.digits}:;>?{string.ascii_uppercase}[]{string.ascii_lowercase}}}"
"""The 80 characters; a character's token is its place here."""

_FILE = "t8.shakespeare.txt"
_SIZE, _SHA256 = 5_458_199, "c5601d266987ac885ca96522b1b4e439feb7eca39f0fe1111f7342b63b6468f3"
_SOURCE = (
    "ocw.mit.edu/ans7870/6/6.006/s08/lecturenotes/files/t8.shakespeare.txt (Project Gutenberg's etext 100 of 1994)"
)
_VERSION = 1  # of what `prepared` keeps

_AUTHOR = "by William Shakespeare"
_LAST_LINE = 124_195  # of the file; the plays end before it
_SPEAKER = re.compile(r"([A-Za-z][A-Za-z ]*)\. (.*)")
_UNINDENTED = "THE COMEDY OF ERRORS"


def parse_roles(text: str) -> dict[str, str]:
    r"""What each role says, in the order of the plays, by LEAF's rules: {"PLAY_ROLE": "line\nline\n"}.

    A play begins at a line with "by William Shakespeare", the first of which belongs to the sonnets; its title is the
    nearest line with text, 2 to 7 lines above. "  NAME. words" begins a speech, and lines that are indented by four
    spaces continue it, stage directions among them; other lines are left out. The Comedy of Errors has no indentation:
    there every line continues a speech until one begins with "<" or names an act. Names are upper-cased. Plays with one
    role and roles with two lines or fewer are dropped. What is not alphanumeric in a name becomes an underscore.

    Raises:
        ConfigurationError: no play is found, or one has no title.
    """
    lines = text.splitlines()[:_LAST_LINE]
    authors = [number for number, line in enumerate(lines) if _AUTHOR in line]
    roles: dict[str, str] = {}
    for start, end in itertools.pairwise([*authors[1:], len(lines)]):
        title = _title(lines, start)
        spoken = _spoken(lines[start + 1 : end], indented=title != _UNINDENTED)
        for role, said in spoken.items() if len(spoken) > 1 else ():
            if len(said) > 2:
                name = re.sub(r"\W+", "_", f"{title}_{role}".replace(" ", "_"))
                roles[name] = roles.get(name, "") + "".join(f"{line}\n" for line in said)
    if not roles:
        raise ConfigurationError(
            f"Shakespeare's works must hold a play, after a second line with {_AUTHOR!r}, whose roles say three lines "
            f"or more, but there is none ({len(authors)} such lines); use {_FILE}."
        )
    return roles


def _title(lines: list[str], author: int) -> str:
    for line in reversed(lines[max(author - 7, 0) : max(author - 1, 0)]):
        if line.strip():
            return line.strip()
    raise ConfigurationError(
        f"A play must have its title 2 to 7 lines above {_AUTHOR!r}, but at line {author + 1} there is none; "
        f"use {_FILE}."
    )


def _spoken(lines: list[str], indented: bool) -> dict[str, list[str]]:
    """The lines of each role of a play."""
    name_at, words_at = ("  ", "    ") if indented else ("", "")
    spoken: dict[str, list[str]] = {}
    role = None
    for line in lines:
        found = _SPEAKER.match(line, len(name_at)) if line.startswith(name_at) else None
        if found:
            role, words = found[1].upper(), found[2]
            if not indented and role.startswith("ACT "):
                role = None
                continue
            spoken.setdefault(role, []).append(words)
        elif role is not None and line.startswith(words_at):
            if not indented and line.startswith("<"):
                role = None
                continue
            spoken[role].append(line[len(words_at) :])
    return spoken


def tokenise(text: str, role: str, unknown: Literal["error", "drop"] = "error") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The tokens [T] (uint8) of what a role says; line ends become spaces, and several spaces one.

    Args:
        text: what it says.
        role: its name, for the message.
        unknown: what happens to a character outside `ALPHABET`: an error, or it is left out.

    Raises:
        ConfigurationError: a character is outside `ALPHABET`.
    """
    if foreign := set(text) - set(ALPHABET):
        if unknown == "error":
            first = min(foreign, key=text.index)
            raise ConfigurationError(
                f"Characters of Shakespeare's roles must be in its alphabet of {len(ALPHABET)}, but {role} says "
                f"{first!r}; use {_FILE}, or `unknown='drop'` to leave such characters out."
            )
        text = "".join(character for character in text if character not in foreign)
    text = re.sub(" {2,}", " ", text.replace("\n", " "))
    return _TOKENS[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]


_TOKENS = np.zeros(128, dtype=np.uint8)
_TOKENS[[ord(character) for character in ALPHABET]] = range(len(ALPHABET))


class Shakespeare(FederatedDataModule):
    """Shakespeare's plays: 80 characters predict the next. Each role is a device (LEAF; FedProx, MLSys 2020).

    A sample is a window of `length` characters, at every place of what a role says, with the character after it. Only
    the text is in memory; `batch` gathers windows [B, length] from their starts.

    FedProx's program runs LEAF with `-s niid --sf 0.2 -k 0 -t sample` and splits windows at random. Neighbours share
    79 of 80 characters and nearly every test window's target is inside a training window, so its test accuracy is partly
    memory. By default we split as LEAF does now: a role's first windows are for training, and testing begins
    `length` − 1 windows later, so that no test window shares a character of its input with a training input. A role
    with too few windows has none for testing.

    The published set has 143 devices and 517,106 samples. LEAF's rules give 4,226,206 windows of 1,130 roles for this
    file, so 0.2 of them is 845,241 of some 220 roles; `fraction=0.12236` gives 517,118.

    Args:
        fraction: share of all windows that is taken, whole roles at random, the last one cut; 1.0 takes every role.
        split: "contiguous", or "random" as in the paper.
        train_fraction: share of a device's windows that is for training.
        min_samples: roles with this many windows or fewer are dropped, and in any case those with fewer than two.
        length: characters of a window.
        unknown: what happens to a character outside `ALPHABET` (this file has none): "error", or "drop" it.
        file: name of another text, which `parse_roles` must understand; only the usual one is checked by its hash.
        root: folder of the data sets; the file lies in its folder `shakespeare`.
        seed: of the partition: which roles are taken, and how each one's windows are split at random; not of the training.
        batching: size and number of the batches that a device trains on in a round; batches of 10 and 20 epochs as in the paper.

    Attributes:
        classes, vocab_size: 80, the characters.
        shape: (length,), of an input as the model takes it (int64 tokens).
        users: names of the devices, in their order, after `setup()`.

    Raises:
        ConfigurationError: a number is outside its interval, or an option is unknown.
    """

    classes = vocab_size = len(ALPHABET)
    users: list[str]

    @checked(fraction="(0, 1]", min_samples="[0, inf)", train_fraction="(0, 1)", length=COUNT)
    def __init__(
        self,
        fraction: float = 0.2,
        split: Literal["contiguous", "random"] = "contiguous",
        *,
        train_fraction: float = 0.8,
        min_samples: int = 0,
        length: int = 80,
        unknown: Literal["error", "drop"] = "error",
        file: str = _FILE,
        root: str | Path = "data",
        seed: int = 0,
        batching: Batching = BATCHING,
    ) -> None:
        super().__init__(batching=batching)
        self.fraction, self.split, self.train_fraction, self.min_samples = fraction, split, train_fraction, min_samples
        self.length, self.unknown, self.seed = length, unknown, seed
        self.path, self.shape = Path(root) / "shakespeare" / file, (length,)
        self.name = f"shakespeare_{fraction:g}" + ("_random" if split == "random" else "")
        self._texts: dict[torch.device, Tensor] = {}  # the same text on the devices that asked for it

    def load(self) -> Splits:
        """Read the text, take roles and split their windows. Inputs are the windows' starts [n] (int32)."""
        usual = self.path.name == _FILE
        require_file(
            self.path,
            what="The complete works of Shakespeare",
            source=_SOURCE,
            sizes=(_SIZE,) if usual else None,
            sha256=_SHA256 if usual else None,
        )
        key = {"version": _VERSION, "unknown": self.unknown, "file": stamp([self.path])}
        found = prepared(self.path.parent, "shakespeare", key, self._prepare)
        text, offsets = found["text"], found["offsets"].numpy()
        windows = np.maximum(np.diff(offsets) - self.length, 0)
        taken = take_clients(windows, self.fraction, self.min_samples, self.seed, "Shakespeare")
        self.users = [name for name, count in zip(decode_names(found["names"]), taken, strict=True) if count]
        self._text, self._texts = text, {}
        halves = [self._split(int(taken[role]), int(role)) for role in taken.nonzero()[0]]
        train, test = owned(offsets[:-1][taken > 0], halves)
        return Splits(*self._windows(train), *self._windows(test))

    def batch(self, examples: Examples, index: Tensor, draws: Tensor | None = None) -> Examples:
        """The windows [B, length] and their next characters [B] at `index` [B], as int64 tokens."""
        starts, targets = super().batch(examples, index, draws)
        text = self._texts.get(starts.device)
        if text is None:
            text = self._texts[starts.device] = self._text.to(starts.device)
        places = starts.to(torch.int64)[:, None] + torch.arange(self.length, device=starts.device)
        return Examples(text[places].to(torch.int64), targets.to(torch.int64))

    def _prepare(self, progress: Progress) -> dict[str, Tensor]:
        roles = parse_roles(self.path.read_text(encoding="utf-8", errors="replace"))
        names = sorted(roles)
        tokens = [tokenise(roles[name], name, self.unknown) for name in progress.track(names, "Roles of Shakespeare")]
        return {
            "text": torch.from_numpy(np.concatenate(tokens)),
            "offsets": torch.tensor([0, *map(len, tokens)]).cumsum(0),
            "names": encode_names(names),
        }

    def _split(self, size: int, role: int) -> tuple[Ints, Ints]:
        if self.split == "random":
            return random_split(size, self.train_fraction, self.seed, role)
        return contiguous_split(size, self.train_fraction, self.length - 1)

    def _windows(self, owned: Partition) -> tuple[Examples, Partition]:
        starts = owned.indices
        return Examples(starts.to(torch.int32), self._text[starts + self.length]), Partition.of_sizes(owned.sizes)
