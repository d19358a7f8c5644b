"""The next word of Stack Overflow, each user a client: the largest experiment of Reddi et al., ICLR 2021.

python recipes/stackoverflow.py --method fedadam --server-lr 0.01

The sentences must lie in `--data-dir`, in stackoverflow/train.jsonl and test.jsonl; `StackOverflow` describes the format.
The batches, the clients of a round, the sentences of a user and the LSTM are the paper's.
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
from fedlightning.datasets import NextWord, StackOverflow
from fedlightning.models import WordRNN


def main(
    method: FedMethod,
    run: Run,
    *,
    model: Literal["lstm", "gru"] = "lstm",
    vocabulary: int = 10_000,
    length: int = 20,
    max_sentences: int = 128,
    rounds: int = 1500,
    clients_per_round: int | float = 50,
    batch_size: int = 16,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true",
    evaluate_every: int = 50,
    seed: int = 0,
    data_dir: str = "data",
) -> None:
    """A recurrent model that predicts the next word of Stack Overflow's users.

    Args:
        model: lstm or gru, of 670 units.
        vocabulary: words that are known, the most frequent ones.
        length: words of a sentence.
        max_sentences: sentences of a user that are taken.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 1 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients that are trained at once under vmap, or auto.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        seed: of the start model, the clients and the batches.
        data_dir: the folder whose folder stackoverflow holds the sentences; what is read of them is kept in its prepared/.
    """
    data = StackOverflow(
        vocabulary=vocabulary,
        length=length,
        max_sentences=max_sentences,
        root=data_dir,
        batch_size=batch_size,
        epochs=local_epochs,
        steps=local_steps,
    )
    data.setup()
    print(f"{data.clients.num_clients:,} users with {len(data.train.targets):,} sentences, {len(data.words):,} words")
    task = NextWord(WordRNN(data.vocab_size, model, seed=seed), data.vocab_size)
    logger, checkpoint = run.open(data.name)
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, task, data, checkpoint)


if __name__ == "__main__":
    run_recipe(main, lr=0.3)
