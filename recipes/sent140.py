"""The sentiment of tweets, each account a device: an experiment of the FedProx paper (Li et al., MLSys 2020).

python recipes/sent140.py --method fedprox --mu 0.01

The paper's μ is 0.01, and its word vectors are glove.6B.300d.txt. With part of the tweets or smaller vectors:

python recipes/sent140.py --min-samples 4 --glove glove.6B.50d.top20000.txt --lowercase

The tweets lie in `--data-dir`, in the folder sent140, and the word vectors in glove; what is read of them is kept in their
folders prepared. On a CPU, `--cohort-size 1` is twice as fast as cohorts.
"""

from fedlightning import Classification
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.data.statistics import statistics_table
from fedlightning.datasets import Sent140
from fedlightning.models import SentimentLSTM

PAPER = {"rounds": 800, "batch_size": 10, "local_epochs": 20, "evaluate_every": 10, "evaluate_train": True}


def main(
    run: Run, *, fraction: float = 0.3, min_samples: int = 30, lowercase: bool = False, glove: str = "glove.6B.300d.txt"
) -> None:
    """An LSTM on word vectors that tells positive tweets from negative ones.

    Args:
        fraction: share of all tweets that is taken, whole accounts at random.
        min_samples: accounts with this many tweets or fewer are dropped.
        lowercase: whether words lose their capitals; the word vectors are in lower case, the paper's tweets are not.
        glove: the word vectors' file, or a pattern that one file matches.
    """
    options = {"root": run.data_dir, "seed": run.partition_seed, "batching": run.batching}
    accounts = Sent140(fraction, min_samples, lowercase, glove=glove, **options)
    accounts.setup()
    print(statistics_table("Sent140", accounts.clients, accounts.test_clients))
    model = SentimentLSTM(accounts.glove.vectors, seed=run.seed)
    run.fit(Classification(model, accounts.classes), accounts, sampler=RoundSeeded(), stragglers=RoundSeededStragglers)


if __name__ == "__main__":
    run_recipe(main, **PAPER, method="fedprox", lr=0.3, fedprox={"mu": 0.01})
