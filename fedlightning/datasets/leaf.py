"""Federated data in the JSON of LEAF (Caldas et al., 2018)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.partition import Partition
from fedlightning.datasets._files import visible_files
from fedlightning.datasets._leaf_split import random_split, take_clients
from fedlightning.errors import ConfigurationError

Encoder = Callable[[list[Any]], Tensor]
"""From the x, or the y, of one user's n samples, as JSON gives them, to a tensor [n, …]."""


@dataclass(frozen=True)
class LeafUser:
    """A user of a LEAF file.

    Attributes:
        name: the user's name.
        inputs: x of each sample, as JSON gives it.
        targets: y of each sample.
        hierarchy: the group that the user belongs to, e.g. a play; None where the file has no groups.
    """

    name: str
    inputs: list[Any]
    targets: list[Any]
    hierarchy: str | None = None


@checked()
def read_leaf(path: str | Path) -> list[LeafUser]:
    """The users of a LEAF file, or of all `*.json` files of a folder, by name.

    A file is `{"users": [names], "num_samples": [n of each], "user_data": {name: {"x": [n], "y": [n]}}}`, and may have
    `"hierarchies": [a group for each user]`. Data of users that are not listed are left out, as LEAF itself does.

    Raises:
        ConfigurationError: nothing is there, it is not such a file, its numbers do not agree, or a user comes twice.
    """
    path = Path(path)
    files = visible_files(path, "*.json") if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConfigurationError(
            f"LEAF's data must be a JSON file, or a folder of some, but {path.absolute()} is "
            f"{'a folder without one' if path.is_dir() else 'not there'}; LEAF's preprocess.sh writes them."
        )
    users: dict[str, LeafUser] = {}
    for file in files:
        for user in _users(file):
            if user.name in users:
                raise ConfigurationError(f"A user must be listed once, but {user.name!r} comes again in {file}.")
            users[user.name] = user
    return [users[name] for name in sorted(users)]


def _users(file: Path) -> list[LeafUser]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} must be JSON, but is not ({error}); is it cut short?") from error
    wanted = {"users": list, "num_samples": list, "user_data": dict}
    for name, kind in wanted.items():
        found = content.get(name) if isinstance(content, dict) else None
        if not isinstance(found, kind):
            raise ConfigurationError(
                f"A file of LEAF's must have {name!r}, a {kind.__name__}, but {file} has "
                f"{'none' if found is None else f'a {type(found).__name__}'}; it needs {', '.join(wanted)}."
            )
    names, counts = content["users"], content["num_samples"]
    groups = content.get("hierarchies", [None] * len(names))
    if not isinstance(groups, list) or not len(names) == len(counts) == len(groups):
        raise ConfigurationError(
            f"'users', 'num_samples' and 'hierarchies' must be lists of one length, but in {file} there are {len(names)} "
            f"users, {len(counts)} numbers and {len(groups) if isinstance(groups, list) else 'no list of'} hierarchies."
        )
    return [_user(file, content["user_data"], *one) for one in zip(names, counts, groups, strict=True)]


def _user(file: Path, user_data: Mapping[str, Any], name: str, count: int, hierarchy: str | None) -> LeafUser:
    found = user_data.get(name) if isinstance(name, str) else None
    if not isinstance(found, dict) or not isinstance(found.get("x"), list) or not isinstance(found.get("y"), list):
        state = "is absent" if found is None else "has no such lists"
        raise ConfigurationError(
            f"'user_data' must hold lists 'x' and 'y' of each user, but {name!r} {state} in {file}."
        )
    inputs, targets = found["x"], found["y"]
    if not len(inputs) == len(targets) == count:
        raise ConfigurationError(
            f"'num_samples' must count the 'x' and the 'y' of a user, but is {count} for {name!r}, who has "
            f"{len(inputs)} and {len(targets)} in {file}."
        )
    return LeafUser(name, inputs, targets, hierarchy)


class LeafData(FederatedDataModule):
    """Data in LEAF's JSON (Caldas et al., 2018): its users are the clients, in the order of their names.

    Either `train` and `test` are what LEAF's `preprocess.sh` wrote to its folders `train` and `test`; or `train` alone
    is what lies in `all_data`, which is then sampled and divided here by LEAF's rules, in this order: `fraction`,
    `min_samples`, and a random ⌊train_fraction · n⌋ of a user's n samples, at least one, for training. Users with fewer
    than two samples are dropped then. With `test`, users without a training sample are left out.

    Departures: LEAF shuffles the samples of the last user that `fraction` takes, here they keep their order; and every
    draw has an address, so the data depend on `seed` alone.

    Args:
        train: a file, or a folder of files.
        test: the same of the test part; each of its users must be in `train`, too. None divides `train`.
        shape: of one input, e.g. (1, 28, 28) for 784 numbers; None for the file's own.
        encode_inputs: from the list of a user's x to a tensor [n, …]; None for numbers, to
            float32; `torch.tensor` keeps whole numbers whole, as tokens must be.
        encode_targets: the same for y; None for numbers, to int64 where all are whole, which is how LEAF writes labels,
            and to float32 otherwise.
        fraction: share of all samples that is taken, whole users at a time, in (0, 1]; needs `test=None`.
        min_samples: users with this many samples or fewer are dropped; needs `test=None`.
        train_fraction: share of a user's samples for training, in (0, 1); needs `test=None`.
        seed: of the partition: who is sampled, and how each user's samples are divided; not of the training.
        batching: size and number of the batches that a client trains on in a round.

    Attributes:
        users: the clients' names, after `setup()`.
        hierarchies: the groups that they belong to, or None for each, after `setup()`.

    Raises:
        ConfigurationError: a number is outside its interval, or an argument needs `test=None`; in `setup`, a file is
            malformed, or its samples do not become tensors.
    """

    users: list[str]
    hierarchies: list[str | None]

    @checked(fraction="(0, 1]", min_samples="[0, inf)", train_fraction="(0, 1)")
    def __init__(
        self,
        train: str | Path,
        test: str | Path | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        encode_inputs: Encoder | None = None,
        encode_targets: Encoder | None = None,
        fraction: float = 1.0,
        min_samples: int = 0,
        train_fraction: float = 0.8,
        seed: int = 0,
        batching: Batching = Batching(10),
    ) -> None:
        super().__init__(batching=batching)
        if test is not None and (fraction, min_samples, train_fraction) != (1.0, 0, 0.8):
            raise ConfigurationError(
                "`fraction`, `min_samples` and `train_fraction` of LeafData sample and divide one set, but `test` is "
                f"given ({test}); leave them out, or give all data as `train`."
            )
        self._paths = Path(train), None if test is None else Path(test)
        self._shape, self._encoders = shape, (encode_inputs, encode_targets)
        self.fraction, self.min_samples, self.train_fraction = fraction, min_samples, train_fraction
        self.seed = seed
        self.name = f"leaf_{Path(train).stem}"

    def load(self) -> Splits:
        """Read the files, sample and divide them if they are one set, and make tensors of them."""
        every = read_leaf(self._paths[0])
        parts = self._divided(every) if self._paths[1] is None else self._paired(every, read_leaf(self._paths[1]))
        if not parts:
            raise ConfigurationError(f"A user must have a training sample, but none has in {self._paths[0]}.")
        self.users = [train.name for train, _ in parts]
        self.hierarchies = [train.hierarchy for train, _ in parts]
        both = [user for pair in zip(*parts, strict=True) for user in pair]
        inputs, targets = self._inputs(both), self._targets(both)
        clients, test_clients = (
            Partition.of_sizes(torch.tensor([len(user.targets) for user in users]))
            for users in zip(*parts, strict=True)
        )
        cut = len(clients.indices)
        train, test = (Examples(inputs[where], targets[where]) for where in (slice(cut), slice(cut, None)))
        return Splits(train, clients, test, test_clients)

    def _divided(self, users: list[LeafUser]) -> list[tuple[LeafUser, LeafUser]]:
        """The training and the test part of each user that is taken of one set."""
        sizes = np.array([len(user.targets) for user in users], dtype=np.int64)
        taken = take_clients(sizes, self.fraction, self.min_samples, self.seed, "LeafData")
        parts = []
        for number in np.flatnonzero(taken).tolist():
            train, test = random_split(int(taken[number]), self.train_fraction, self.seed, number)
            parts.append((_pick(users[number], train.tolist()), _pick(users[number], test.tolist())))
        return parts

    def _paired(self, users: list[LeafUser], tested: list[LeafUser]) -> list[tuple[LeafUser, LeafUser]]:
        """Each user with its test part, which is empty where there is none."""
        found = {user.name: user for user in tested}
        strangers = sorted(set(found) - {user.name for user in users})
        if strangers:
            raise ConfigurationError(
                f"The users of the test part must be among those of the training part, but {len(strangers)} of "
                f"{self._paths[1]} are not, e.g. {strangers[0]!r}; divide the data by sample (LEAF's `-t sample`)."
            )
        return [(user, found.get(user.name, _pick(user, []))) for user in users if user.targets]

    def _inputs(self, users: Sequence[LeafUser]) -> Tensor:
        """The inputs of all users, one after another [n, …]."""
        encode = self._encoders[0] or (lambda values: _numbers(values).to(torch.float32))
        encoded = [_encoded(user, "x", user.inputs, encode) for user in users if user.inputs]
        if self._shape is not None:
            encoded = [_shaped(*pair, self._shape) for pair in encoded]
        first, like = encoded[0]
        for user, tensor in encoded:
            if tensor.shape[1:] != like.shape[1:]:
                raise ConfigurationError(
                    f"The inputs of all users must have one shape, but those of {first.name!r} are "
                    f"{list(like.shape[1:])} and those of {user.name!r} {list(tensor.shape[1:])}; give `encode_inputs`."
                )
        return torch.cat([tensor for _, tensor in encoded])

    def _targets(self, users: Sequence[LeafUser]) -> Tensor:
        """The targets of all users, one after another [n, …]."""
        encode = self._encoders[1] or _numbers
        found = torch.cat([_encoded(user, "y", user.targets, encode)[1] for user in users if user.targets])
        if self._encoders[1] is not None:
            return found
        whole = torch.equal(found, found.round())
        return found.to(torch.int64) if whole else found.to(torch.float32)


def _pick(user: LeafUser, positions: list[int]) -> LeafUser:
    return LeafUser(
        user.name, [user.inputs[i] for i in positions], [user.targets[i] for i in positions], user.hierarchy
    )


def _encoded(user: LeafUser, part: str, values: list[Any], encode: Encoder) -> tuple[LeafUser, Tensor]:
    hook = "encode_inputs" if part == "x" else "encode_targets"
    try:
        tensor = encode(values)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{part!r} of {user.name!r} must become a tensor, but does not ({error}); give a `{hook}` that makes one."
        ) from error
    if len(tensor) != len(values):
        raise ConfigurationError(
            f"`{hook}` of LeafData must give one entry for each sample, but gives {len(tensor)} for the {len(values)} "
            f"of {user.name!r}."
        )
    return user, tensor


def _shaped(user: LeafUser, tensor: Tensor, shape: tuple[int, ...]) -> tuple[LeafUser, Tensor]:
    if tensor[0].numel() != torch.Size(shape).numel():
        raise ConfigurationError(
            f"`shape` of LeafData must hold as many numbers as an input, but is {shape}, and the inputs of {user.name!r} "
            f"have {tensor[0].numel()} numbers."
        )
    return user, tensor.reshape(len(tensor), *shape)


def _numbers(values: list[Any]) -> Tensor:
    """Numbers, or equally long lists of them, as float64 [n, …]."""
    array = np.array(values)
    if array.dtype.kind not in "biuf":
        raise ValueError("it is no numbers")
    return torch.from_numpy(array.astype(np.float64))
