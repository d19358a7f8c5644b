"""Gradients of whole clients, and the sums over clients that measures of their dissimilarity are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.engine.replica import Replica

_OVERHEAD, _LEAST, _GROUPS = 100, 2000, 16
"""What a client costs beside its examples, what a group costs at least (both in examples), and how many groups at most."""


class GradientSums:
    """Sums over clients k with n_k examples and the gradients g_k = ∇F_k(x) [P], in float64.

    Only sums are held, so memory does not grow with the number of clients.

    Args:
        parameters: P.
        device: where the sums are held.

    Attributes:
        weighted: Σ n_k g_k [P].
        plain: Σ g_k [P].
        squares: Σ ‖g_k‖² and Σ n_k ‖g_k‖² [2].
        examples: Σ n_k.
        clients: how many.
    """

    def __init__(self, parameters: int, device: torch.device) -> None:
        self.weighted, self.plain = torch.zeros(2, parameters, dtype=torch.float64, device=device).unbind()
        self.squares = torch.zeros(2, dtype=torch.float64, device=device)
        self.examples = self.clients = 0

    def add(self, gradient: Tensor, size: int) -> None:
        """Add a client by its gradient [P] (float64) and its number of examples."""
        square = gradient.dot(gradient)
        self.weighted.add_(gradient, alpha=size)
        self.plain.add_(gradient)
        self.squares.add_(torch.stack([square, size * square]))
        self.examples, self.clients = self.examples + size, self.clients + 1

    def merge(self, other: GradientSums) -> None:
        """Add the clients of other sums on the same device."""
        self.weighted += other.weighted
        self.plain += other.plain
        self.squares += other.squares
        self.examples, self.clients = self.examples + other.examples, self.clients + other.clients

    def cpu(self) -> GradientSums:
        """The same on the host."""
        self.weighted, self.plain, self.squares = self.weighted.cpu(), self.plain.cpu(), self.squares.cpu()
        return self

    @property
    def variance(self) -> float:
        """(1/N) Σ ‖g_k − ∇f‖² with ∇f = Σ n_k g_k / Σ n_k: a weighted mean, an unweighted variance."""
        mean = self.weighted / self.examples
        spread = float(self.squares[0]) - 2 * float(mean.dot(self.plain)) + self.clients * float(mean.dot(mean))
        return spread if math.isnan(spread) else max(spread, 0.0) / self.clients

    @property
    def dissimilarity(self) -> float:
        """B = √(Σ p_k ‖g_k‖² / ‖∇f‖²), p_k = n_k / Σ n_j; 1 where all gradients are zero, infinite where ∇f alone is."""
        mean = self.weighted / self.examples
        local, pooled = float(self.squares[1]) / self.examples, float(mean.dot(mean))
        if pooled == 0:
            return 1.0 if local == 0 else math.inf
        return math.sqrt(local / pooled)


@torch.no_grad()
def gradient_sums(
    replica: Replica,
    data: FederatedDataModule,
    examples: Examples,
    clients: Sequence[int],
    x: Tensor,
    buffers: Tensor,
    batch_size: int,
) -> GradientSums:
    """The sums over the full gradients at x [P] of some clients' training losses, on the host.

    The loss is the task's, without augmentation, and the model is in evaluation mode: no dropout, and running statistics
    are used and left as they are.

    Args:
        replica: the slot's model.
        data: whose clients they are.
        examples: its training set on the slot's device.
        clients: which of them.
        x: the global model's parameters.
        buffers: its buffers, flat [Q].
        batch_size: examples of one forward and backward pass.
    """
    x = x.to(replica.device)
    replica.load(x, buffers.to(replica.device))
    sums = GradientSums(len(x), replica.device)
    with _evaluating(replica.task):
        for client in clients:
            owned = data.clients.client(client).to(replica.device)
            sums.add(_full_gradient(replica, data, examples, owned, x, batch_size), len(owned))
    return sums.cpu()


def deal(clients: Sequence[int], sizes: Tensor) -> list[list[int]]:
    """The clients in at most 16 groups of neighbours that cost about the same, for the slots to share.

    The groups do not depend on the slots: neither do the bits of sums over groups.

    Args:
        clients: to be dealt.
        sizes: examples of each client of the partition [N].
    """
    costs = sizes[torch.tensor(clients)] + _OVERHEAD
    total = int(costs.sum())
    count = min(_GROUPS, -(-total // _LEAST))
    places = (costs.cumsum(0) - costs / 2) * count / total
    groups: dict[int, list[int]] = {}
    for client, place in zip(clients, places.tolist(), strict=True):
        groups.setdefault(int(place), []).append(client)
    return list(groups.values())


def _full_gradient(
    replica: Replica, data: FederatedDataModule, examples: Examples, owned: Tensor, x: Tensor, batch_size: int
) -> Tensor:
    """The gradient [P] (float64) of the mean loss over the examples at `owned`, batch after batch."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    no_dropout = torch.zeros((), dtype=torch.int64, device=x.device)
    for index in owned.split(batch_size):
        gradient, _ = replica.gradient(x, data.batch(examples, index), no_dropout)
        total.add_(gradient, alpha=len(index) / len(owned))
    return total


@contextmanager
def _evaluating(task: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for recurrent layers: cuDNN has no backward pass there, and they hold no dropout."""
    task.eval()
    for module in task.modules():
        if isinstance(module, nn.RNNBase):
            module.train()
    try:
        yield
    finally:
        task.train()
