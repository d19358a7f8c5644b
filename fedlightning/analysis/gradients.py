"""Losses and gradients of whole clients, and the sums over clients that measures of dissimilarity are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.execution.model import Replica
from fedlightning.method import Batch

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
        return math.sqrt(self.diversity)

    @property
    def diversity(self) -> float:
        """Σ p_k ‖g_k‖² / ‖∇f‖² = B²: 1 where all gradients agree."""
        local, pooled = self._norms()
        if pooled == 0:
            return 1.0 if local == 0 else math.inf
        return local / pooled

    @property
    def heterogeneity(self) -> float:
        """ζ² = Σ p_k ‖g_k − ∇f‖² = Σ p_k ‖g_k‖² − ‖∇f‖², the weighted variance."""
        local, pooled = self._norms()
        return local - pooled if math.isnan(local) else max(local - pooled, 0.0)

    @property
    def relative_heterogeneity(self) -> float:
        """ζ² / ‖∇f‖²; 0 where all gradients are zero, infinite where ∇f alone is."""
        spread, (_, pooled) = self.heterogeneity, self._norms()
        if pooled == 0:
            return 0.0 if spread == 0 else math.inf
        return spread / pooled

    def _norms(self) -> tuple[float, float]:
        """Σ p_k ‖g_k‖² and ‖∇f‖²."""
        mean = self.weighted / self.examples
        return float(self.squares[1]) / self.examples, float(mean.dot(mean))


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
    with evaluating(replica.task):
        for client in clients:
            owned = data.clients.client(client).to(replica.device)
            gradient, _ = _full_gradient(replica, data, examples, owned, x, batch_size)
            sums.add(gradient, len(owned))
    return sums.cpu()


@contextmanager
def client_objective(
    replica: Replica,
    data: FederatedDataModule,
    examples: Examples,
    client: int,
    x: Tensor,
    buffers: Tensor,
    batch_size: int,
) -> Iterator[Callable[[Tensor], tuple[float, Tensor]]]:
    """A client's training loss f_k as a function: from w [P] to f_k(w) and ∇f_k(w) [P], in float64 on the slot's device.

    The loss is that of `gradient_sums`; its forward and backward pass are in the model's own dtype.

    Args:
        replica: the slot's model.
        data: whose client it is.
        examples: its training set on the slot's device.
        client: which client.
        x: any parameters.
        buffers: the model's buffers, flat [Q].
        batch_size: examples of one forward and backward pass.
    """
    owned = data.clients.client(client).to(replica.device)
    replica.load(x.to(replica.device), buffers.to(replica.device))

    def objective(w: Tensor) -> tuple[float, Tensor]:
        gradient, loss = _full_gradient(replica, data, examples, owned, w.to(replica.layout.dtype), batch_size)
        return float(loss), gradient

    with torch.no_grad(), evaluating(replica.task):
        yield objective


@torch.no_grad()
def mean_losses(
    replica: Replica,
    data: FederatedDataModule,
    examples: Examples,
    index: Tensor,
    points: Sequence[Tensor],
    buffers: Tensor,
    batch_size: int,
) -> list[float]:
    """The mean loss over some examples at each of several points, without augmentation, in evaluation mode.

    Args:
        replica: the slot's model.
        data: whose examples they are.
        examples: its training set on the slot's device.
        index: which of them [n].
        points: parameters [P].
        buffers: the model's buffers, flat [Q].
        batch_size: examples of one forward pass.
    """
    index, losses = index.to(replica.device), []
    replica.task.eval()
    for point in points:
        replica.load(point.to(replica.device, replica.layout.dtype), buffers.to(replica.device))
        total = torch.zeros((), dtype=torch.float64, device=replica.device)
        for part in index.split(batch_size):
            total += replica.losses(Batch.full(*data.batch(examples, part))).sum(dtype=torch.float64)
        losses.append(float(total) / len(index))
    replica.task.train()
    return losses


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
) -> tuple[Tensor, Tensor]:
    """Gradient [P] and value [] (float64) of the mean loss over the examples at `owned`, batch after batch."""
    total, value = torch.zeros(len(x) + 1, dtype=torch.float64, device=x.device).split([len(x), 1])
    no_dropout = torch.zeros((), dtype=torch.int64, device=x.device)
    for index in owned.split(batch_size):
        gradient, loss = replica.gradient(x, Batch.full(*data.batch(examples, index)), no_dropout)
        total.add_(gradient, alpha=len(index) / len(owned))
        value.add_(loss, alpha=len(index) / len(owned))
    return total, value[0]


@contextmanager
def evaluating(task: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for recurrent layers: cuDNN has no backward pass there, and they hold no dropout."""
    task.eval()
    for module in task.modules():
        if isinstance(module, nn.RNNBase):
            module.train()
    try:
        yield
    finally:
        task.train()
