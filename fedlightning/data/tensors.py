"""Federated data from one's own tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Augmentation, Examples, FederatedDataModule, Splits, check_examples
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
        val: validation examples, to choose rounds and hyperparameters by; None for none. `set_aside` and `gather` take them
            from the training examples.
        val_clients: who owns those; by default as for `test_clients`.
        batching: size and number of the batches that a client trains on in a round.
        augmentation: a random change of each training batch.

    Raises:
        ConfigurationError: inputs and targets differ in number, or `test_clients` is given without `test`, or `val_clients`
            without `val`.
    """

    @checked()
    def __init__(
        self,
        train: Examples,
        clients: Partition,
        test: Examples | None = None,
        test_clients: Partition | None = None,
        *,
        val: Examples | None = None,
        val_clients: Partition | None = None,
        batching: Batching = Batching(),
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(batching=batching, augmentation=augmentation)
        for name, examples, owners in (
            ("train", train, clients),
            ("test", test, test_clients),
            ("val", val, val_clients),
        ):
            if examples is not None:
                check_examples(examples, f"`{name}` of {type(self).__name__}")
            elif owners is not None:
                raise ConfigurationError(
                    f"`{name}_clients` of TensorData must come with `{name}`, but `{name}` is None."
                )
        self.name = f"tensorsC{clients.num_clients}"
        self._given = train, clients, test, test_clients, val, val_clients

    def load(self) -> Splits:
        """Return the tensors, and share out the test set and the validation split if nobody owns them."""
        train, clients, test, test_clients, val, val_clients = self._given
        clients.check(len(train.targets), self.shared_examples)

        def owners(examples: Examples) -> Partition:
            return clients.mirror(_labels(train.targets), _labels(examples.targets))

        if val is not None:
            val_clients = val_clients or owners(val)
        if test is None:
            return Splits(train, clients, train, clients, val, val_clients)
        return Splits(train, clients, test, test_clients or owners(test), val, val_clients)


def _labels(targets: Tensor) -> Tensor:
    is_label = targets.dim() == 1 and not targets.is_floating_point()
    return targets if is_label else torch.zeros(len(targets), dtype=torch.int64)
