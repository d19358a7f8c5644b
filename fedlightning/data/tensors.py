"""Federated data from one's own tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, check_examples
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError


class TensorData(FederatedDataModule):
    """One's own tensors: `TensorData(Examples(x, y), Dirichlet(0.1, 10).split(y, seed=0))`.

    Args:
        train: training examples.
        clients: who owns them.
        test: test examples; the training examples if there are none.
        test_clients: who owns those; by default each class is shared out in the same proportions as in training, or,
            where targets are no labels, the test set in proportion to the clients' sizes.
        batching: the size of a batch, and how many batches a client trains on in a round.
        augmentation: a random change of each training batch.
        evaluate_on: what evaluation looks at, "test", "train" or both.

    Raises:
        ConfigurationError: inputs and targets differ in number, or `test_clients` is given without `test`.
    """

    @checked()
    def __init__(
        self,
        train: Examples,
        clients: Partition,
        test: Examples | None = None,
        test_clients: Partition | None = None,
        *,
        batching: Batching = Batching(),
        augmentation: Augmentation | None = None,
        evaluate_on: tuple[str, ...] = ("test",),
    ) -> None:
        super().__init__(
            batching=batching,
            augmentation=augmentation,
            evaluate_on=evaluate_on,
        )
        if test is None and test_clients is not None:
            raise ConfigurationError("`test_clients` of TensorData must come with `test`, but `test` is None.")
        for name, examples in (("train", train), ("test", test)):
            if examples is not None:
                check_examples(examples, f"`{name}` of {type(self).__name__}")
        self.name = f"tensorsC{clients.num_clients}"
        self._given = train, clients, test, test_clients

    def load(self) -> tuple[Examples, Partition, Examples, Partition]:
        """Return the tensors, and share out the test set if nobody owns it."""
        train, clients, test, test_clients = self._given
        clients.check(len(train.targets), self.shared_examples)
        if test is None:
            return train, clients, train, clients
        return train, clients, test, test_clients or clients.mirror(_labels(train.targets), _labels(test.targets))


def _labels(targets: Tensor) -> Tensor:
    is_label = targets.dim() == 1 and not targets.is_floating_point()
    return targets if is_label else torch.zeros(len(targets), dtype=torch.int64)
