"""pfl-research (Granqvist et al., 2024), its simulated backend in one process.

It does not shuffle a user's examples.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Workload


class Trainable(nn.Module):
    """A network with the two methods that pfl asks of a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, inputs: Tensor, targets: Tensor, is_eval: bool = False) -> Tensor:
        """The mean cross-entropy of a batch."""
        return F.cross_entropy(self.inner(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """The same as a metric."""
        total = F.cross_entropy(self.inner(inputs), targets, reduction="sum")
        return {"loss": Weighted(float(total), len(targets))}


class Clock(TrainingProcessCallback):
    """Marks the end of each round."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Mark, and go on."""
        self.meter.mark()
        return False, Metrics()


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging; there is one mode."""
    torch.set_num_threads(1)
    data, module = work.data(), Trainable(network(work))
    users = {c: tuple(torch.from_numpy(array) for array in data.client(c)) for c in range(work.clients)}
    dataset = FederatedDataset.from_slices(users, get_user_sampler("random", range(work.clients)))
    rounds = NNAlgorithmParams(
        central_num_iterations=work.rounds,
        evaluation_frequency=10 * work.rounds,
        train_cohort_size=work.participants,
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(local_learning_rate=work.lr, local_num_epochs=work.epochs, local_batch_size=work.batch)
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(model=module, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
    meter.start()
    FederatedAveraging().run(
        algorithm_params=rounds,
        backend=SimulatedBackend(training_data=dataset, val_data=dataset, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=local,
        model_eval_params=NNEvalHyperParams(local_batch_size=work.batch),
        callbacks=[Clock(meter)],
    )
    return mean_loss(module.inner, data)


if __name__ == "__main__":
    measure(train)
