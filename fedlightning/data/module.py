"""The contract of federated data: resident examples, who owns them, and how they are batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from fedlightning._capabilities import own_hooks
from fedlightning._checked import checked
from fedlightning._hashing import described, digest, digest_text
from fedlightning.data.batching import Batching
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError, shown
from fedlightning.randomness import permute, stream


class Examples(NamedTuple):
    """A data set in memory: inputs [n, …] (uint8 pixels, tokens or floats) and targets [n, …]."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Examples:
        """The same on a device."""
        return Examples(self.inputs.to(device), self.targets.to(device))

    def contiguous(self) -> Examples:
        """The same with each example in one piece, as a gather is fastest; nothing is copied where it is so."""
        return Examples(self.inputs.contiguous(), self.targets.contiguous())


def check_examples(examples: Examples, name: str) -> None:
    """Check that examples are two tensors with as many inputs as targets.

    Raises:
        ConfigurationError: they are not.
    """
    for part, tensor in zip(("inputs", "targets"), examples, strict=True):
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not dense or not tensor.dim():
            remedy = "; use `torch.from_numpy`" if isinstance(tensor, np.ndarray) else ""
            remedy = "; use `to_dense()`" if isinstance(tensor, Tensor) and tensor.layout != torch.strided else remedy
            raise ConfigurationError(f"{name} must hold a tensor of {part} [n, …], but holds {shown(tensor)}{remedy}.")
    if len(examples.inputs) != len(examples.targets):
        raise ConfigurationError(
            f"{name} must hold as many inputs as targets, but holds {len(examples.inputs)} inputs and "
            f"{len(examples.targets)} targets."
        )


class Splits(NamedTuple):
    """What a data module loads: the examples of each split, and who owns them.

    Attributes:
        train: training examples.
        clients: their owners.
        test: test examples.
        test_clients: theirs.
        val: examples that are set aside from training, to choose rounds and hyperparameters by; None where none are.
        val_clients: their owners.
    """

    train: Examples
    clients: Partition
    test: Examples
    test_clients: Partition
    val: Examples | None = None
    val_clients: Partition | None = None


@runtime_checkable
class Augmentation(Protocol):
    """A random change of a batch of inputs, made of integers drawn before, so that it is the same on every device."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Random integers [*shape, D] (int64): D for each example."""

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """The changed inputs [B, …], from inputs [B, …] and draws [B, D]."""


class Schedule(NamedTuple):
    """A client's batches in a round.

    Attributes:
        index: positions of the examples in the training set [K, B] (int64); -1 where a batch is not full.
        draws: the augmentation's integers [K, B, D], or None.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a schedule
    draws: Tensor | None


_ROOM = 65_536
"""Places of a batch that cost nothing worth naming where no client fills them."""

SplitName = Literal["val", "test", "train"]

_HOOKS = ("schedule", "batch", "preprocess")
"""What a subclass may define otherwise, and fast paths ask about."""


class FederatedDataModule(LightningDataModule):
    """Examples in memory, who owns them, and how they are batched. Subclass it and define `load`.

    Where a partition is random, it has a seed of its own, the data module's `seed`; the trainer's is that of the training alone.

    Pooled loaders, `train_dataloader()`, `val_dataloader()` and `test_dataloader()`, feed a plain `lightning.Trainer`.

    Args:
        batching: size and number of the batches that a client trains on in a round.
        augmentation: a random change of each training batch.

    Attributes:
        train, test: the examples, after `setup()`.
        clients, test_clients: who owns them, after `setup()`. Training examples may belong to nobody, test examples may not.
        val, val_clients: the same of the validation split, after `setup()`; None where there is none.
        evaluated_at_once: examples of a batch of an evaluation's loader; less where they or their outputs are large.
        shared_examples: whether a training example may belong to several clients, and count for each; a subclass says so.
        other_test_clients: whether what is evaluated belongs to other clients than those that train; a subclass says so.
        own_hooks: which of `schedule`, `batch` and `preprocess` a subclass has made its own. A wrapper that changes nothing
            declares `own_hooks = frozenset()`, and its hook may then be passed over; see `fedlightning._capabilities`.

    Raises:
        ConfigurationError: an argument is of another type.
    """

    train: Examples
    test: Examples
    clients: Partition
    test_clients: Partition
    val: Examples | None = None
    val_clients: Partition | None = None
    evaluated_at_once: int = 1024
    shared_examples: bool = False
    other_test_clients: bool = False

    own_hooks: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        """Note which hooks the subclass has made its own."""
        super().__init_subclass__(**options)
        cls.own_hooks = own_hooks(cls, FederatedDataModule, _HOOKS)

    @checked()
    def __init__(
        self,
        *,
        batching: Batching = Batching(),
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.batching, self.augmentation = batching, augmentation
        self._is_set_up = False

    # -- to define ----------------------------------------------------------------------------------------------------
    def load(self) -> Splits | tuple[Examples, Partition, Examples, Partition]:
        """The examples of each split and who owns them; a plain tuple in the order of `Splits` will do."""
        raise ConfigurationError(
            f"{type(self).__name__} must define `load()`, but does not; see `FederatedDataModule`."
        )

    def preprocess(self, inputs: Tensor) -> Tensor:
        """From inputs as they lie in memory [B, …] to what the model takes, e.g. uint8 pixels to normalised floats."""
        return inputs

    # -- what a run asks for -------------------------------------------------------------------------------------
    def setup(self, stage: str | None = None) -> None:
        """Load the examples and check who owns them; a second call does nothing.

        Raises:
            ConfigurationError: what `load` gives is no `Splits`, or an example of it belongs to nobody or to too many.
        """
        if self._is_set_up:
            return
        train, self.clients, test, self.test_clients, val, self.val_clients = self._loaded()
        self.train = train.contiguous()
        self.test = self.train if test is train else test.contiguous()
        self.clients.check(len(self.train.targets), self.shared_examples)
        same = None if self.other_test_clients else self.clients.num_clients
        if self.test_clients is not self.clients or self.test is not self.train:
            self.test_clients.check_held_out(len(self.test.targets), same, "test")
        if val is not None and self.val_clients is not None:
            self.val = val.contiguous()
            self.val_clients.check_held_out(len(val.targets), same, "validation")
        self._is_set_up = True

    def _loaded(self) -> Splits:
        """What `load` gives, once each part of it is checked by itself."""
        name, loaded = type(self).__name__, self.load()
        if not isinstance(loaded, tuple) or len(loaded) not in (4, 6):
            raise ConfigurationError(
                f"`load` of {name} must give `Splits(train, clients, test, test_clients, val, val_clients)`, the last two if "
                f"there is a validation split, but gives {shown(loaded)}."
            )
        splits = Splits(*loaded)
        if (splits.val is None) is not (splits.val_clients is None):
            raise ConfigurationError(
                f"`load` of {name} must give `val` and `val_clients` together, but gives one of them."
            )
        for examples, which in ((splits.train, "training"), (splits.test, "test"), (splits.val, "validation")):
            if examples is not None:
                check_examples(examples, f"The {which} set of {name}")
        return splits

    def split_named(self, name: SplitName) -> tuple[Examples, Partition] | None:
        """The examples of a split and who owns them; None for "val" where there is no validation split."""
        if name == "val":
            return None if self.val is None or self.val_clients is None else (self.val, self.val_clients)
        return (self.train, self.clients) if name == "train" else (self.test, self.test_clients)

    def num_steps(self, client: int, steps: int | None = None) -> int:
        """K, the local steps of a client in a round; `steps` is the method's wish."""
        return steps or self.batching.num_steps(self.clients.size(client))

    @property
    def largest_batch(self) -> int:
        """Places of a batch: B, unless that is more than any client fills and than can be laid out for nothing."""
        largest = self.clients.largest
        batch = self.batching.size or largest
        return batch if batch <= max(largest, _ROOM) else largest

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        """The batches [K, B] of a client in a round: each epoch visits its examples once, in a new order."""
        index, draws = self._shuffled((client,), round, seed, (num_steps,)), None
        if self.augmentation is not None:
            drawn = self.augmentation.draw(stream(seed, "augment", round, client), index.shape)
            draws = torch.from_numpy(drawn)
        return Schedule(torch.from_numpy(index), draws)

    def schedules(self, clients: Sequence[int], round: int, seed: int, num_steps: Sequence[int]) -> list[Schedule]:
        """What `schedule` gives for several clients: each one's, or, since that is faster, one of [ΣK, B] for all of them."""
        if self.augmentation is None and "schedule" not in self.own_hooks:
            return [Schedule(torch.from_numpy(self._shuffled(clients, round, seed, num_steps)), None)]
        return [self.schedule(client, round, seed, k) for client, k in zip(clients, num_steps, strict=True)]

    def _shuffled(
        self, clients: Sequence[int], round: int, seed: int, num_steps: Sequence[int]
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Batches [ΣK, B] of clients that follow one another; B is the largest one's whole data if no size was given."""
        owned = [self.clients.positions(client) for client in clients]
        batch = self.largest_batch if self.batching.size else max(map(len, owned))
        per_epoch = [self.batching.batches(len(mine)) for mine in owned]
        rows = [-(-k // each) * each for k, each in zip(num_steps, per_epoch, strict=True)]  # of whole epochs
        index, kept, end = np.full((sum(rows), batch), -1), [], 0
        for client, mine, each, count, k in zip(clients, owned, per_epoch, rows, num_steps, strict=True):
            whole, end = index[end : end + count], end + count
            epochs = whole.reshape(-1, each * batch)
            # Where the last examples of an epoch are dropped, there is no room for all of them.
            filled = (
                epochs[:, : len(mine)] if len(mine) <= each * batch else np.empty((len(epochs), len(mine)), np.int64)
            )
            filled[:] = mine
            permute(filled, seed, "shuffle", round, client)  # each epoch anew
            if len(mine) > each * batch:
                epochs[:] = filled[:, : each * batch]
            kept.append(whole[:k])
        return index if sum(num_steps) == end else np.concatenate(kept)

    def batch(self, examples: Examples, index: Tensor, draws: Tensor | None = None) -> Examples:
        """The examples at `index` [B], augmented by `draws` [B, D] and ready for the model."""
        inputs, targets = examples.inputs.index_select(0, index), examples.targets.index_select(0, index)
        if draws is not None and self.augmentation is not None:
            inputs = self.augmentation.apply(inputs, draws)
        return Examples(self.preprocess(inputs), targets)

    @property
    def only_gathers(self) -> bool:
        """Whether `batch` does nothing but pick examples, so that a runner may pick them itself."""
        return self.augmentation is None and not self.own_hooks & {"batch", "preprocess"}

    @property
    def fingerprint(self) -> str:
        """A short hash of all training examples, of what becomes of one, and of the augmentation; a second for a gigabyte."""
        example = self.preprocess(self.train.inputs[:1])
        return digest_text(f"{digest([*self.train, example])} {described(self.augmentation)}")

    def split_fingerprint(self, name: SplitName) -> str | None:
        """The same of all examples of a split, and of who owns them; None where there is no such split."""
        if (found := self.split_named(name)) is None:
            return None
        examples, clients = found
        return digest([*examples, clients.indices, clients.offsets])

    # -- pooled, for a plain `lightning.Trainer` ----------------------------------------------------------------------
    def train_dataloader(self) -> DataLoader[Any]:
        """All clients' training examples, shuffled, in batches."""
        pooled = _Pooled(self, self.train, self.clients.indices, augment=True)
        size = self.batching.size or len(pooled)
        sampler = BatchSampler(RandomSampler(pooled), size, self.batching.drop_last and len(pooled) > size)
        return DataLoader(pooled, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation split, in large batches; where there is none, nothing, and Lightning validates nothing."""
        return [] if self.val is None else self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test set, in large batches."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, name: SplitName) -> DataLoader[Any]:
        """All clients' examples of a split, in order, in large batches, without augmentation.

        Raises:
            ConfigurationError: there is no such split.
        """
        if (found := self.split_named(name)) is None:
            raise ConfigurationError(
                f"{type(self).__name__} must have a validation split to evaluate on, but has none."
            )
        examples, clients = found
        pooled = _Pooled(self, examples, clients.indices, augment=False)
        sampler = BatchSampler(SequentialSampler(pooled), self.evaluated_at_once, drop_last=False)
        return DataLoader(
            pooled, sampler=sampler, batch_size=None, generator=torch.Generator()
        )  # draws no global number


class _Pooled(Dataset[Examples]):
    """Batches by lists of positions: one gather and one augmentation each, no Python per sample."""

    def __init__(self, data: FederatedDataModule, examples: Examples, positions: Tensor, augment: bool) -> None:
        self.data, self.examples, self.positions, self.augment = data, examples, positions, augment

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: list[int]) -> Examples:
        draws = None
        if self.augment and self.data.augmentation is not None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            draws = torch.from_numpy(self.data.augmentation.draw(rng, (len(index),)))
        return self.data.batch(self.examples, self.positions[index], draws)
