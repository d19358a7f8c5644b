"""Ours: `FederatedTrainer` on tensors that lie in memory."""

from typing import Any

import torch
from torch import Tensor

from fedlightning import (
    Batching,
    Callback,
    Classification,
    Examples,
    FedAvg,
    FederatedTrainer,
    Partition,
    SlotStrategy,
    TensorData,
)
from fedlightning.callbacks.base import CohortResult
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.data import RandomCropFlip
from fedlightning.participation import ClientSampler, UniformSampling
from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network, standardised
from recipes.benchmarks.workloads import Workload

MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "one slot": {"slots": 1},
    "two slots": {"slots": 2},
    "looped": {"slots": 1, "runner": "loop"},
    "compiled": {"slots": 1, "runner": "compiled"},
    "compiled, two slots": {"slots": 2, "runner": "compiled"},
}
"""The arguments of `SlotStrategy` by mode; what is not given is "auto"."""


class Clock(Callback):
    """Marks the end of each round.

    Args:
        meter: where.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter, self._steps = meter, 0

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Count the steps."""
        self._steps += sum(cohort.num_steps.tolist())

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        """Mark."""
        self.meter.mark(self._steps)
        self._steps = 0


class Pixels(TensorData):
    """uint8 images that are standardised when a batch is made."""

    def preprocess(self, inputs: Tensor) -> Tensor:
        """Floats."""
        return standardised(inputs)


def data_module(work: Workload) -> tuple[TensorData, Any]:
    """The workload's data as a data module, and as they were."""
    data = work.data()
    inputs, targets, positions, offsets = (torch.from_numpy(array) for array in data)
    kind, augmentation = (Pixels, RandomCropFlip(padding=4)) if work.pixels else (TensorData, None)
    clients = Partition(positions, offsets)
    batching = Batching(work.batch, epochs=work.epochs)
    module = kind(Examples(inputs, targets), clients, batching=batching, augmentation=augmentation)
    module.shared_examples = work.distinct > 0
    return module, data


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging with the slots, the cohorts and the compiling of a mode.

    Drawing a few of very many clients as `RoundSeeded` does costs as much as a round; there the library's own sampler draws.
    """
    module, data = data_module(work)
    task = Classification(network(work), work.classes)
    sampler: ClientSampler = UniformSampling() if work.distinct else RoundSeeded()
    trainer = FederatedTrainer(
        max_rounds=work.rounds,
        clients_per_round=work.participants,
        strategy=SlotStrategy(**MODES[mode or "auto"]),
        callbacks=[Clock(meter)],
        logger=False,
        evaluate_every=0,
        sampler=sampler,
    )
    meter.start()
    state = trainer.fit(FedAvg(lr=work.lr), task, module)
    torch.set_num_threads(1)
    return mean_loss(task.with_parameters(state.server.x).model, data)


if __name__ == "__main__":
    measure(train)
