"""fluke (Polato, 2024), clients and server in memory."""

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataContainer, DataSplitter
from fluke.evaluation import ClassificationEval
from fluke.utils.log import Log
from torch import nn

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Workload


class Clock(Log):
    """Marks the end of each round, and logs nothing."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def start_round(self, round: int, global_model: nn.Module) -> None:
        """Nothing."""

    def end_round(self, round: int) -> None:
        """Mark."""
        self.meter.mark()


def environment(rounds: int, classes: int) -> None:
    """No evaluation, no GPU, no files."""
    settings = FlukeENV()
    settings.set_seed(1)
    settings.set_device("cpu")
    settings.set_inmemory(True)
    settings.set_evaluator(ClassificationEval(eval_every=10 * rounds, n_classes=classes))
    settings.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging over equal clients, to whom fluke itself deals the examples; there is one mode."""
    torch.set_num_threads(1)
    environment(work.rounds, work.classes)
    data, model = work.data(), network(work)
    inputs, targets = (torch.from_numpy(array) for array in data[:2])
    container = DataContainer(inputs, targets, inputs[:100], targets[:100], work.classes)
    splitter = DataSplitter(dataset=container, distribution="iid", client_split=0.0, server_test=True)
    client = DDict(
        batch_size=work.batch,
        local_epochs=work.epochs,
        loss=nn.CrossEntropyLoss,
        optimizer=DDict(name=torch.optim.SGD, lr=work.lr),
        scheduler=DDict(step_size=1, gamma=1),
    )
    algorithm = FedAVG(work.clients, splitter, DDict(model=model, client=client, server=DDict(weighted=True)))
    algorithm.set_callbacks(Clock(meter))
    meter.start()
    algorithm.run(work.rounds, work.participants / work.clients, finalize=False)
    return mean_loss(algorithm.server.model, data)


if __name__ == "__main__":
    measure(train)
