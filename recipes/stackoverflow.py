"""The next word of Stack Overflow, each user a client: the largest experiment of Reddi et al., ICLR 2021.

python recipes/stackoverflow.py --method fedadam --server-lr 0.01

The sentences must lie in `--data-dir`, in stackoverflow/train.jsonl and test.jsonl; `StackOverflow` describes the format.
What is read of them is kept in stackoverflow/prepared. The batches, the clients of a round, the sentences of a user and the
LSTM are the paper's.
"""

from typing import Literal

from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import NextWord, StackOverflow
from fedlightning.models import WordRNN


def main(
    run: Run,
    *,
    model: Literal["lstm", "gru"] = "lstm",
    vocabulary: int = 10_000,
    length: int = 20,
    max_sentences: int = 128,
) -> None:
    """A recurrent model that predicts the next word of Stack Overflow's users.

    Args:
        model: lstm or gru, of 670 units.
        vocabulary: words that are known, the most frequent ones.
        length: words of a sentence.
        max_sentences: sentences of a user that are taken.
    """
    sizes = {"vocabulary": vocabulary, "length": length, "max_sentences": max_sentences}
    users = StackOverflow(**sizes, root=run.data_dir, batching=run.batching)
    users.setup()
    print(
        f"{users.clients.num_clients:,} users with {len(users.train.targets):,} sentences, {len(users.words):,} words"
    )
    network = WordRNN(users.vocab_size, model, seed=run.seed)
    run.fit(NextWord(network, users.vocab_size), users)


if __name__ == "__main__":
    run_recipe(main, rounds=1500, clients_per_round=50, batch_size=16, evaluate_every=50, lr=0.3)
