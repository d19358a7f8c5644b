"""A short run with all analyses attached, which leave their numbers and their pictures in the run's folder.

python recipes/analyses.py --data synthetic --rounds 5

What each measures, and what it costs, is in its docstring in `fedlightning.analysis`.
"""

from typing import Literal

from fedlightning import Classification, Dissimilarity
from fedlightning.analysis import ClientOptima, LossLandscape, PartitionReport, UpdateAngles
from fedlightning.analysis.figures import require_matplotlib
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import FashionMNIST, Synthetic
from fedlightning.models import LogisticRegression, build_model


def main(
    run: Run,
    *,
    data: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    partition: str = "A0d10C100",
    model: str = "lenet",
    every: int = 1,
    measured_clients: int = 10,
    passes: int = 50,
    resolution: int = 25,
) -> None:
    """All analyses on Fashion-MNIST or on FedProx's synthetic (1, 1).

    Args:
        data: fashion-mnist, or synthetic, which is generated and has 30 devices of its own.
        partition: who owns what of Fashion-MNIST; A0d10C100 is Dirichlet(0.10) over 100 clients.
        model: of Fashion-MNIST, e.g. lenet, mlp or logistic; synthetic data have logistic regression.
        every: rounds between measurements of gradients and angles; the latter train all clients.
        measured_clients: clients whose own optimum is looked for, and whose gradients are measured.
        passes: over each of those clients' examples, at most, in the search for its optimum.
        resolution: points of the loss landscape along each direction.
    """
    require_matplotlib("analyses")
    if data == "synthetic":
        clients = Synthetic(1, 1, batching=run.batching, seed=run.partition_seed)
        task = Classification(LogisticRegression.glorot(60, 10, seed=run.seed))
    else:
        clients = FashionMNIST(partition, root=run.data_dir, batching=run.batching, seed=run.partition_seed)
        task = Classification(build_model(model, clients.shape, clients.classes, seed=run.seed), clients.classes)
    analyses = [
        PartitionReport(),
        Dissimilarity(every=every, num_clients=measured_clients),
        UpdateAngles(every=every),
        ClientOptima(num_clients=measured_clients, passes=passes),
        LossLandscape(resolution=resolution),
    ]
    folder = clients.name if data == "synthetic" else f"fashion-mnist-{clients.name}"
    trainer = run.fit(task, clients, callbacks=analyses, monitor=None, folder=folder)
    for name in ("partition", "angles", "optima", "landscape"):
        print(trainer.log_dir / f"{name}.png")


if __name__ == "__main__":
    run_recipe(main, rounds=20, lr=0.02)
