"""Flower (Beutel et al., 2020), its simulation on Ray: one process a core."""

import logging
import os
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Workload, shared_data


def client_app(work: Workload) -> ClientApp:
    """What a client does when the server asks it to train."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        client, model = int(context.node_config["partition-id"]), network(work)
        inputs, targets = (torch.from_numpy(array) for array in shared_data(work).client(client))
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
        for _ in range(work.epochs):
            for index in torch.randperm(len(targets)).split(work.batch):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[index]), targets[index]).backward()
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(targets)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


class Clocked(FedAvg):
    """Federated averaging that marks the end of each round."""

    def __init__(self, meter: Meter, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.meter = meter

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Take the mean, and mark."""
        aggregated = super().aggregate_train(server_round, replies)
        self.meter.mark()
        return aggregated


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging; the first round contains the start of Ray. There is one mode."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    model, server = network(work), ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Clocked(
            meter,
            fraction_train=work.participants / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.participants,
            min_available_nodes=work.clients,
        )
        start = ArrayRecord(model.state_dict())
        found = strategy.start(grid=grid, initial_arrays=start, num_rounds=work.rounds, train_config=ConfigRecord())
        model.load_state_dict(found.arrays.to_torch_state_dict())

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ray = {"num_cpus": cores, "include_dashboard": False}
    meter.start()
    run_simulation(
        server_app=server,
        client_app=client_app(work),
        num_supernodes=work.clients,
        backend_config={"init_args": ray, "client_resources": resources},
    )
    return mean_loss(model, work.data())


if __name__ == "__main__":
    measure(train)
