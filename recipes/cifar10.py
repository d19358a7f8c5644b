"""CIFAR-10 over Dirichlet clients.

python recipes/cifar10.py --method fedprox --mu 0.01

FederatedX (Lei et al., 2025) trains larger models on windows of 24 pixels:

python recipes/cifar10.py --model resnet18 --crop 24 --batch-size 512 --local-epochs 3 --clients-per-round 0.1
"""

from typing import Literal

from fedlightning import (
    Classification,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    RoundProgress,
    SlotStrategy,
    Throughput,
)
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import CIFAR10, FakeImages
from fedlightning.models import build_model


def main(
    method: FedMethod,
    run: Run,
    *,
    partition: str = "A0d10C100",
    model: str = "lenet",
    groups: int | None = None,
    positions: bool | None = None,
    rounds: int = 200,
    clients_per_round: int | float = 10,
    batch_size: int = 50,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    augment: bool = True,
    crop: int | None = None,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true",
    evaluate_every: int = 5,
    seed: int = 0,
    data: Literal["real", "fake"] = "real",
    data_dir: str = "data",
) -> None:
    """CIFAR-10 over clients whose classes follow a Dirichlet distribution.

    Args:
        partition: who owns what; A0d10C100 is Dirichlet(0.10) over 100 clients.
        model: lenet, cnn, fedavg-cnn, mlp, logistic, resnet18, resnet34, resnet50, resnet101, vitsmall, vitbase, …
        groups: groups of each group norm of a ResNet, of the first of cnn; 32 and 8 unless given.
        positions: whether a vision transformer has position embeddings; yes, unless it is false as in FederatedX.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 1 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        augment: random crops and flips.
        crop: train on turned windows of this size and test on the centre, each standardised by itself; 24 in FederatedX.
        slots: auto, a number, or names such as cuda:0/0,cuda:0/1.
        cohort_size: clients that are trained at once under vmap, or auto.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        seed: of the partition, the start model, the clients and the batches.
        data: real, or fake for images made on the spot; fake is named in the run's folder.
        data_dir: where CIFAR-10 is, or is downloaded to.
    """
    batching = {
        "batch_size": batch_size,
        "epochs": local_epochs,
        "steps": local_steps,
        "augment": augment,
        "crop": crop,
        "seed": seed,
    }
    clients = (
        FakeImages(partition, classes=10, **batching)
        if data == "fake"
        else CIFAR10(partition, root=data_dir, **batching)
    )
    groups = 32 if groups is None and model.startswith("resnet") else groups
    network = build_model(model, clients.shape, clients.classes, seed, groups=groups, positions=positions)
    task = Classification(network, clients.classes)
    logger, checkpoint = run.open(partition if data == "real" else f"fake-{partition}")
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, task, clients, checkpoint)


if __name__ == "__main__":
    run_recipe(main, lr=0.1, clip_norm=10.0)
