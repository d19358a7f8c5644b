"""The sentiment of tweets, each account a device: an experiment of the FedProx paper (Li et al., MLSys 2020).

python recipes/sent140.py --method fedprox --mu 0.01

The paper's μ is 0.01, and its word vectors are glove.6B.300d.txt. With part of the tweets or smaller vectors:

python recipes/sent140.py --min-samples 4 --glove glove.6B.50d.top20000.txt --lowercase
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
from fedlightning.datasets.sent140 import Sent140
from fedlightning.models import SentimentLSTM
from fedlightning.participation.stragglers import Stragglers


def main(
    method: FedMethod,
    run: Run,
    *,
    fraction: float = 0.3,
    min_samples: int = 30,
    lowercase: bool = False,
    glove: str = "glove.6B.300d.txt",
    rounds: int = 800,
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
    evaluate_every: int = 10,
    evaluate_train: bool = True,
    seed: int = 0,
    data_dir: str = "data",
) -> None:
    """An LSTM on word vectors that tells positive tweets from negative ones.

    Args:
        fraction: share of all tweets that is taken, whole accounts at random.
        min_samples: accounts with this many tweets or fewer are dropped.
        lowercase: whether words lose their capitals; the word vectors are in lower case, the paper's tweets are not.
        glove: the word vectors' file, or a pattern that one file matches.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 20 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        stragglers: fraction of a round's clients that do less work than asked; the paper takes 0, 0.5 and 0.9.
        drop_stragglers: leave the stragglers out, as the paper's FedAvg does, instead of aggregating what they did.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients that are trained at once under vmap, or auto; on a CPU one after another is twice as fast.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        evaluate_train: evaluate on all clients' training data, too, as the paper's training loss needs.
        seed: of the choice of accounts, the split, the start model, the stragglers and the batches.
        data_dir: the folder whose folders sent140 and glove hold the tweets and the word vectors; what is read of them is kept in
            their prepared/.
    """
    data = Sent140(
        fraction,
        min_samples,
        lowercase,
        glove=glove,
        root=data_dir,
        seed=seed,
        batch_size=batch_size,
        epochs=local_epochs,
        steps=local_steps,
        evaluate_on=("test", "train") if evaluate_train else ("test",),
    )
    data.setup()
    print(statistics_table("Sent140", data.clients, data.test_clients))
    task = Classification(SentimentLSTM(data.glove.vectors, seed=seed), data.classes)
    logger, checkpoint = run.open(data.name)
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        sampler=RoundSeeded(),
        stragglers=Stragglers(stragglers, partial=not drop_stragglers) if stragglers else None,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, task, data, checkpoint)


if __name__ == "__main__":
    run_recipe(main, method="fedprox", lr=0.3, fedprox={"mu": 0.01})
