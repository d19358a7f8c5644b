"""An autoencoder of EMNIST over Dirichlet clients.

python recipes/emnist_autoencoder.py --method fedprox --mu 0.01

FederatedX (Lei et al., 2025) runs it over a thousand clients:

python recipes/emnist_autoencoder.py --partition A0d05C1000 --batch-size 512 --local-epochs 10
"""

from typing import Literal

from fedlightning import (
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    RoundProgress,
    SlotStrategy,
    Throughput,
)
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import EMNIST, FakeImages
from fedlightning.models import build_model
from fedlightning.task import Reconstruction


def main(
    method: FedMethod,
    run: Run,
    *,
    partition: str = "A0d10C100",
    model: Literal["cnnautoencoder", "autoencoder"] = "cnnautoencoder",
    rounds: int = 200,
    clients_per_round: int | float = 10,
    batch_size: int = 50,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    augment: bool = False,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true",
    evaluate_every: int = 5,
    seed: int = 0,
    data: Literal["real", "fake"] = "real",
    data_dir: str = "data",
) -> None:
    """An autoencoder over clients whose classes follow a Dirichlet distribution.

    Args:
        partition: who owns what; A0d10C100 is Dirichlet(0.10) over 100 clients.
        model: cnnautoencoder of two convolutions, or autoencoder of linear layers.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 1 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        augment: random crops by up to 2 pixels.
        slots: auto, a number, or names such as cuda:0/0,cuda:0/1.
        cohort_size: clients that are trained at once under vmap, or auto.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        seed: of the partition, the start model, the clients and the batches.
        data: real, or fake for images made on the spot; fake is named in the run's folder.
        data_dir: where EMNIST is, or is downloaded to.
    """
    batching = {
        "batch_size": batch_size,
        "epochs": local_epochs,
        "steps": local_steps,
        "augment": augment,
        "target": "image",
        "seed": seed,
    }
    if data == "fake":
        clients = FakeImages(partition, shape=(1, 28, 28), classes=62, **batching)
    else:
        clients = EMNIST(partition, root=data_dir, **batching)
    task = Reconstruction(build_model(model, clients.shape, clients.classes, seed))
    logger, checkpoint = run.open(partition if data == "real" else f"fake-{partition}")
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/loss", mode="min")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, task, clients, checkpoint)


if __name__ == "__main__":
    run_recipe(main, lr=0.1, clip_norm=10.0)
