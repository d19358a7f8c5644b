"""Logistic regression on FedProx's FEMNIST: ten letters over 200 devices with five of them each.

python recipes/femnist.py --method fedprox --mu 1

The devices, the learning rate, the batches, the rounds and who takes part in a round follow the FedProx paper and its
program (Li et al., MLSys 2020). Its systems heterogeneity is `--stragglers 0.9`; FedAvg drops those who are slow:

python recipes/femnist.py --method fedavg --stragglers 0.9 --drop-stragglers

The letters are NIST's Special Database 19, which may not be redistributed: unpack its by_class.zip in `--data-dir`.
Without it, Omniglot's writers are a stand-in, whose numbers do not compare with the paper's:

python recipes/femnist.py --method fedprox --mu 1 --data omniglot
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
from fedlightning.datasets.femnist import FEMNIST, OmniglotWriters
from fedlightning.models import LogisticRegression
from fedlightning.participation.stragglers import Stragglers


def main(
    method: FedMethod,
    run: Run,
    *,
    data: Literal["nist", "omniglot"] = "nist",
    classes_per_user: int = 5,
    repo_bug: bool = False,
    rounds: int = 200,
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
    """Logistic regression on FEMNIST over FedProx's 200 devices.

    Args:
        data: nist, or omniglot for the stand-in; it is named in the run's folder.
        classes_per_user: letters of each device; 5 in the paper, 3 in its program.
        repo_bug: deal the letters as the paper's program does, by mistake the same ones again and again.
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
        data_dir: the folder that holds by_class, or omniglot-small or omniglot-py; what is read of it is kept in its prepared/.
    """
    slow = Stragglers(stragglers, partial=not drop_stragglers)
    options = {"root": data_dir, "seed": seed, "batch_size": batch_size, "epochs": local_epochs, "steps": local_steps}
    if data == "nist":
        clients = FEMNIST(classes_per_user=classes_per_user, repo_bug=repo_bug, **options)
    else:
        clients = OmniglotWriters(**options)
    clients.setup()
    print(statistics_table("FEMNIST" if data == "nist" else "Omniglot", clients.clients, clients.test_clients))
    model = LogisticRegression.glorot(784, clients.classes, seed=seed)
    logger, checkpoint = run.open(clients.name)
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
    run.fit(trainer, method, Classification(model, clients.classes), clients, checkpoint)


if __name__ == "__main__":
    run_recipe(main, method="fedprox", lr=0.003, fedprox={"mu": 1.0})
