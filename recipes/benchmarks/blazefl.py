"""BlazeFL (2025): one client after another, or threads, which pay on a free-threaded Python."""

import os
from typing import Any

import torch
import torch.multiprocessing
from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from blazefl.core import ModelSelector, PartitionedDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Data, Workload


class Models(ModelSelector):
    """The one model that there is; a worker thread makes its own, and takes one core then."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def select_model(self, model_name: str) -> nn.Module:
        """A new model."""
        torch.set_num_threads(1)
        return network(self.work)


class Clients(PartitionedDataset):
    """The clients' examples in memory."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def get_dataset(self, type_: Any, cid: int | None) -> TensorDataset:
        """The examples of a client."""
        tensors: list[Tensor] = [torch.from_numpy(array) for array in self.data.client(int(cid or 0))]
        return TensorDataset(*tensors)

    def set_dataset(self, type_: Any, cid: int | None, dataset: Any) -> None:
        """Nothing is ever set."""

    def get_dataloader(self, type_: Any, cid: int | None, batch_size: int | None = None, generator: Any = None) -> Any:
        """Shuffled batches of a client."""
        return DataLoader(self.get_dataset(type_, cid), batch_size, shuffle=True, generator=generator)


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging; modes "single" and "threads", one a core."""
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("spawn")
    data = work.data()
    common: dict[str, Any] = {
        "model_selector": Models(work), "model_name": work.model, "dataset": Clients(data), "device": "cpu",
        "num_clients": work.clients, "batch_size": work.batch, "seed": 0,
    }  # fmt: skip
    server = FedAvgBaseServerHandler(global_round=work.rounds, sample_ratio=work.participants / work.clients, **common)
    local = common | {"epochs": work.epochs, "lr": work.lr}
    if mode == "threads":
        trainer = FedAvgThreadPoolClientTrainer(num_parallels=len(os.sched_getaffinity(0)), **local)
    else:
        trainer = FedAvgBaseClientTrainer(**local)
    meter.start()
    while not server.is_stopped():
        chosen = server.sample_clients()
        trainer.local_process(server.downlink_package(), chosen)
        for upload in trainer.uplink_package():
            server.load(upload)
        meter.mark()
    return mean_loss(server.model, data)


if __name__ == "__main__":
    measure(train)
