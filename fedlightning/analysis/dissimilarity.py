"""How much the clients' gradients differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.analysis.gradients import GradientSums, deal, gradient_sums
from fedlightning.callbacks.base import Callback
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
from fedlightning.execution.auto import Workload
from fedlightning.execution.slots import Worker
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.layout import Layout, flatten_buffers, persistent_buffers
from fedlightning.methods import FedAvg
from fedlightning.randomness import stream
from fedlightning.task import FederatedTask

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer


class Dissimilarity(Callback):
    """Logs how much the clients' gradients differ at the global model: Li et al., MLSys 2020, arXiv:1812.06127.

        D(x) = (1/N) Σ ‖∇F_k(x) − ∇f(x)‖²        as `dissimilarity/variance`, what the paper's figures show
        B(x) = √(Σ p_k ‖∇F_k(x)‖² / ‖∇f(x)‖²)    as `dissimilarity/B`, local dissimilarity (Definition 3)

    with ∇f = Σ p_k ∇F_k and p_k = n_k / Σ n_j. As in the authors' program ∇f is a weighted mean, but D an unweighted one
    over all N clients. B is at least 1, and 1 where all gradients agree; where ∇f alone is zero it is infinite. From the
    same sums come the heterogeneity and the diversity of the gradients, all weighted:

        ζ²(x) = Σ p_k ‖∇F_k(x) − ∇f(x)‖²         as `dissimilarity/heterogeneity`
        ζ²(x) / ‖∇f(x)‖²                         as `dissimilarity/relative_heterogeneity`
        Σ p_k ‖∇F_k(x)‖² / ‖∇f(x)‖² = B(x)²      as `dissimilarity/diversity`; Yin et al., AISTATS 2018, have it of sums

    F_k is the task's loss over all training examples of client k, without a proximal term, an augmentation or dropout, and
    with the running statistics of the global model. (The authors' program takes at most 200 examples a client for its LSTMs,
    and no repeated character's gradient adds up in its embedding; here all examples count, and all gradients add up.)

    The model before the first round, after each `every` rounds and after the last is measured; the model is the one that
    is evaluated. The cost each time is one forward and one backward pass over all training examples of the measured
    clients: as much as a local epoch on all of them, in large batches. It is told when the run starts, and the time that
    was taken is logged as `dissimilarity/seconds`. Memory is a few vectors [P] in float64, for any number of clients. The
    run's own numbers are left alone; these here have the same bits for any number of slots.

    Args:
        every: rounds between measurements.
        num_clients: measure a sample of so many clients as if there were no others, the same ones all through the run,
            drawn uniformly from the run's seed; None for all of them, which is exact.
        batch_size: examples of one forward and backward pass; fewer take less memory, and change the metrics by rounding.

    Raises:
        ConfigurationError: a number is not positive, or there are fewer clients than `num_clients`.
    """

    logs = ("dissimilarity/*",)

    @checked(every=COUNT, num_clients=COUNT, batch_size=COUNT)
    def __init__(self, every: int = 1, num_clients: int | None = None, batch_size: int = 1000) -> None:
        self.every, self.num_clients, self.batch_size = every, num_clients, batch_size
        self._groups: list[list[int]] = []
        self._measured = 0  # after how many rounds

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Choose the clients, tell the cost, and measure the model before the first round."""
        clients, sizes = choose_clients(trainer, self.num_clients, "Dissimilarity"), trainer.data.clients.sizes
        self._groups = deal(clients, sizes)
        rank_zero_info(
            f"dissimilarity: the gradients of {len(clients):,} of {trainer.num_clients:,} clients, over "
            f"{int(sizes[clients].sum()):,} examples, after every {f'{self.every} rounds' if self.every > 1 else 'round'}"
        )
        self._measured = trainer.round
        if trainer.round == 0:
            trainer.log(self._measure(trainer))

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Measure the round's model, if it is its turn."""
        if trainer.round % self.every == 0 or trainer.round == trainer.max_rounds:
            trainer.log(self._measure(trainer))

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Measure the last model of a run that was stopped."""
        if self._measured != trainer.round and trainer.round > trainer.start_round:
            trainer.log(self._measure(trainer))

    def _measure(self, trainer: FederatedTrainer) -> dict[str, float]:
        began, self._measured = perf_counter(), trainer.round
        x, buffers = trainer.method.evaluation_point(trainer.state.server), trainer.state.buffers
        sums = _sum_up(trainer.strategy, trainer.data, self._groups, x, buffers, self.batch_size)
        found = {f"dissimilarity/{name}": value for name, value in _measures(sums).items()}
        return found | {"dissimilarity/seconds": perf_counter() - began}


@checked(batch_size=COUNT)
def dissimilarity_at(
    task: FederatedTask,
    data: FederatedDataModule,
    *,
    strategy: SlotStrategy | None = None,
    batch_size: int = 1000,
) -> dict[str, float]:
    """How much the clients' gradients differ at a model, without a run: what `Dissimilarity` logs before the first round.

    Args:
        task: the model; it is not changed.
        data: the clients' training data.
        strategy: whose slots compute; None for "auto". The numbers do not depend on how many there are.
        batch_size: examples of one forward and backward pass.

    Returns:
        `variance`, `B`, `heterogeneity`, `relative_heterogeneity` and `diversity`.

    Raises:
        ConfigurationError: the slots cannot be, or the data are not what the task takes.
    """
    data.prepare_data()
    data.setup("fit")
    task.check(*data.train)
    layout, method, slots = Layout.of(task), FedAvg(), strategy or SlotStrategy()
    groups = deal(range(data.clients.num_clients), data.clients.sizes)
    x, buffers = layout.read(task), flatten_buffers(persistent_buffers(task).values(), torch.device("cpu"))
    slots.setup(method, task, layout, data, Workload.of(method, data, data.clients.num_clients, 1))
    try:
        return _measures(_sum_up(slots, data, groups, x, buffers, batch_size))
    finally:
        slots.teardown()


def _sum_up(
    strategy: SlotStrategy,
    data: FederatedDataModule,
    groups: Sequence[list[int]],
    x: Tensor,
    buffers: Tensor,
    batch_size: int,
) -> GradientSums:
    """The sums over the clients of all groups, by whichever slots are free, added in the groups' order."""
    sums = GradientSums(len(x), torch.device("cpu"))

    def measure(clients: list[int]) -> Callable[[Worker], GradientSums]:
        return lambda worker: gradient_sums(worker.replica, data, worker.examples, clients, x, buffers, batch_size)

    for part in strategy.map([measure(group) for group in groups]):
        sums.merge(part)
    return sums


def _measures(sums: GradientSums) -> dict[str, float]:
    return {
        "variance": sums.variance,
        "B": sums.dissimilarity,
        "heterogeneity": sums.heterogeneity,
        "relative_heterogeneity": sums.relative_heterogeneity,
        "diversity": sums.diversity,
    }


def choose_clients(trainer: FederatedTrainer, wish: int | None, owner: str) -> list[int]:
    """A uniform sample of the clients, the same all through a run and for everyone who measures; all of them for None.

    Raises:
        ConfigurationError: there are not so many.
    """
    count = trainer.num_clients
    if wish is None:
        return list(range(count))
    if wish > count:
        raise ConfigurationError(
            f"`num_clients` of {owner} must be in 1…{count}, but is {wish}; leave it out to measure all clients."
        )
    chosen = stream(trainer.seed, "dissimilarity").choice(count, wish, replace=False)
    return sorted(chosen.tolist())
