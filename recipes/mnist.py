"""Logistic regression on FedProx's MNIST: 1,000 devices with two digits each, whose sizes follow a power law.

python recipes/mnist.py --method fedprox --mu 1

The devices, the learning rate, the batches, the rounds and who takes part in a round follow the FedProx paper and its
program (Li et al., MLSys 2020). Its systems heterogeneity is `--stragglers 0.9`; FedAvg drops those who are slow:

python recipes/mnist.py --method fedavg --stragglers 0.9 --drop-stragglers
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
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.data.statistics import statistics_table
from fedlightning.datasets.power_law import PowerLawMNIST
from fedlightning.models import LogisticRegression
from fedlightning.participation.stragglers import Stragglers


def main(
    method: FedMethod,
    run: Run,
    *,
    rounds: int = 100,
    clients_per_round: int | float = 10,
    batch_size: int = 10,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    stragglers: float = 0.0,
    drop_stragglers: bool = False,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true",
    evaluate_every: int = 1,
    seed: int = 0,
    data_dir: str = "data",
) -> None:
    """Logistic regression on MNIST over FedProx's 1,000 devices.

    Args:
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 20 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        stragglers: fraction of a round's clients that do less than asked; the paper takes 0, 0.5 and 0.9.
        drop_stragglers: leave the stragglers out instead of taking what they did.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients that are trained at once under vmap, or auto.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        seed: of the partition, the start model, the stragglers and the batches.
        data_dir: where MNIST is, or is downloaded to.
    """
    slow = Stragglers(stragglers, partial=not drop_stragglers)
    data = PowerLawMNIST(root=data_dir, seed=seed, batch_size=batch_size, epochs=local_epochs, steps=local_steps)
    data.setup()
    print(statistics_table("MNIST", data.clients, data.test_clients))
    model = LogisticRegression.glorot(784, 10, seed=seed)
    logger, checkpoint = run.open(data.name)
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        sampler=RoundSeeded(),
        stragglers=slow,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, Classification(model), data, checkpoint)


if __name__ == "__main__":
    run_recipe(main, method="fedprox", lr=0.03, fedprox={"mu": 1.0})
