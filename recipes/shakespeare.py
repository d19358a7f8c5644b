"""The next character of Shakespeare, each role a device: the FedProx paper's largest experiment (Li et al., MLSys 2020).

python recipes/shakespeare.py --method fedprox --mu 0.001

The paper's μ is 0.001. Its rounds are long: ten devices with 20 epochs are some 60,000 steps of an LSTM, half an
hour on one core. A first look takes minutes:

python recipes/shakespeare.py --fraction 0.02 --local-steps 20 --rounds 10 --evaluate-train false

At the paper's learning rate of 0.8 a role of a few dozen windows can blow up, and the average with it; `--clip-norm 5`,
which the paper's program does not have, prevents it.
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
from fedlightning.datasets.shakespeare import Shakespeare
from fedlightning.models import CharLSTM
from fedlightning.participation.stragglers import Stragglers


def main(
    method: FedMethod,
    run: Run,
    *,
    fraction: float = 0.2,
    split: Literal["contiguous", "random"] = "contiguous",
    rounds: int = 40,
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
    evaluate_train: bool = True,
    seed: int = 0,
    data_dir: str = "data",
) -> None:
    """An LSTM that predicts the next character of Shakespeare's roles.

    Args:
        fraction: share of all windows that is taken, whole roles at random.
        split: contiguous, so that training and test text do not overlap, or random as in the paper.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 20 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        stragglers: fraction of a round's clients that do less work than asked; the paper takes 0, 0.5 and 0.9.
        drop_stragglers: leave the stragglers out, as the paper's FedAvg does, instead of aggregating what they did.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients that are trained at once under vmap, or auto; on a CPU one after another is three times as fast.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        evaluate_train: evaluate on all clients' training data, too, as the paper's training loss needs.
        seed: of the choice of roles, the split, the start model, the stragglers and the batches.
        data_dir: the folder whose folder shakespeare holds the text; what is read of it is kept in shakespeare/prepared/.
    """
    data = Shakespeare(
        fraction,
        split,
        root=data_dir,
        seed=seed,
        batch_size=batch_size,
        epochs=local_epochs,
        steps=local_steps,
        evaluate_on=("test", "train") if evaluate_train else ("test",),
    )
    data.setup()
    print(statistics_table("Shakespeare", data.clients, data.test_clients))
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
    run.fit(trainer, method, Classification(CharLSTM(data.vocab_size, seed=seed)), data, checkpoint)


if __name__ == "__main__":
    run_recipe(main, method="fedprox", lr=0.8, fedprox={"mu": 0.001})
