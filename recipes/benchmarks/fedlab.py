"""FedLab (Zeng et al., JMLR 2023), its serial simulation."""

from typing import Any

import torch
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from torch.utils.data import DataLoader, TensorDataset

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Data, Workload


class Clients:
    """Loaders by client, which is what FedLab asks of a data set.

    Args:
        data: the examples.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def get_dataloader(self, client: int, batch_size: int) -> Any:
        """Shuffled batches of a client."""
        tensors = (torch.from_numpy(array) for array in self.data.client(client))
        return DataLoader(TensorDataset(*tensors), batch_size, shuffle=True)


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging; there is one mode."""
    torch.set_num_threads(1)
    data, model = work.data(), network(work)
    server = SyncServerHandler(model, work.rounds, work.participants / work.clients, cuda=False)
    server.num_clients = work.clients
    trainer = SGDSerialClientTrainer(network(work), work.clients, cuda=False)
    trainer.setup_dataset(Clients(data))
    trainer.setup_optim(work.epochs, work.batch, work.lr)
    meter.start()
    while not server.if_stop:
        chosen = server.sample_clients()
        trainer.local_process(server.downlink_package, chosen)
        for upload in trainer.uplink_package:
            server.load(upload)
        meter.mark()
    return mean_loss(server.model, data)


if __name__ == "__main__":
    measure(train)
