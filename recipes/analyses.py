"""A short run with all analyses attached, which leave their numbers and their pictures in the run's folder.

python recipes/analyses.py --data synthetic --rounds 5

What each measures, and what it costs, is in its docstring in `fedlightning.callbacks`.
"""

from typing import Literal

from fedlightning import (
    Classification,
    Dissimilarity,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    RoundProgress,
    SlotStrategy,
    Throughput,
)
from fedlightning.analysis import ClientOptima, LossLandscape, PartitionReport, UpdateAngles
from fedlightning.analysis.figures import require_matplotlib
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import FashionMNIST, Synthetic
from fedlightning.models import LogisticRegression, build_model


def main(
    method: FedMethod,
    run: Run,
    *,
    data: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    partition: str = "A0d10C100",
    model: str = "lenet",
    rounds: int = 20,
    clients_per_round: int | float = 10,
    batch_size: int = 32,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    every: int = 1,
    measured_clients: int = 10,
    passes: int = 50,
    resolution: int = 25,
    slots: str = "auto",
    seed: int = 0,
    data_dir: str = "data",
) -> None:
    """All analyses on Fashion-MNIST or on FedProx's synthetic (1, 1).

    Args:
        data: fashion-mnist, or synthetic, which is generated and has 30 devices of its own.
        partition: who owns what of Fashion-MNIST; A0d10C100 is Dirichlet(0.10) over 100 clients.
        model: of Fashion-MNIST, e.g. lenet, mlp or logistic; synthetic data have logistic regression.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 1 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        every: rounds between measurements of gradients and angles; the latter train all clients.
        measured_clients: clients whose own optimum is looked for, and whose gradients are measured.
        passes: over each of those clients' examples, at most, in the search for its optimum.
        resolution: points of the loss landscape along each direction.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        seed: of the partition, the start model, the clients and the batches.
        data_dir: where Fashion-MNIST is, or is downloaded to.
    """
    require_matplotlib("analyses")
    batching = {"batch_size": batch_size, "epochs": local_epochs, "steps": local_steps, "seed": seed}
    if data == "synthetic":
        clients = Synthetic(1, 1, **batching)
        task = Classification(LogisticRegression.glorot(60, 10, seed=seed))
    else:
        clients = FashionMNIST(partition, root=data_dir, **batching)
        task = Classification(build_model(model, clients.shape, clients.classes, seed=seed), clients.classes)
    logger, checkpoint = run.open(clients.name if data == "synthetic" else f"fashion-mnist-{partition}")
    analyses = [
        PartitionReport(),
        Dissimilarity(every=every, num_clients=measured_clients),
        UpdateAngles(every=every),
        ClientOptima(num_clients=measured_clients, passes=passes),
        LossLandscape(resolution=resolution),
    ]
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        strategy=SlotStrategy(slots),
        callbacks=[*analyses, RoundProgress(), Throughput(), ModelCheckpoint()],
        logger=logger,
        seed=seed,
    )
    run.fit(trainer, method, task, clients, checkpoint)
    for name in ("partition", "angles", "optima", "landscape"):
        print(trainer.log_dir / f"{name}.png")


if __name__ == "__main__":
    run_recipe(main, lr=0.02)
