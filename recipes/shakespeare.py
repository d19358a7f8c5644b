"""The next character of Shakespeare, each role a device: the FedProx paper's largest experiment (Li et al., MLSys 2020).

python recipes/shakespeare.py --method fedprox --mu 0.001

The paper's μ is 0.001. Its rounds are long: ten devices with 20 epochs are some 60,000 steps of an LSTM, half an
hour on one core. A first look takes minutes:

python recipes/shakespeare.py --fraction 0.02 --local-steps 20 --rounds 10 --evaluate-train false

At the paper's learning rate of 0.8 a role of a few dozen windows can blow up, and the average with it; `--clip-norm 5`,
which the paper's program does not have, prevents it. On a CPU, `--cohort-size 1` is three times as fast as cohorts.
"""

from typing import Literal

from fedlightning import Classification
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.data.statistics import statistics_table
from fedlightning.datasets import Shakespeare
from fedlightning.models import CharLSTM

PAPER = {"rounds": 40, "batch_size": 10, "local_epochs": 20, "evaluate_train": True}


def main(run: Run, *, fraction: float = 0.2, split: Literal["contiguous", "random"] = "contiguous") -> None:
    """An LSTM that predicts the next character of Shakespeare's roles.

    Args:
        fraction: share of all windows that is taken, whole roles at random.
        split: contiguous, so that training and test text do not overlap, or random as in the paper.
    """
    roles = Shakespeare(fraction, split, root=run.data_dir, seed=run.partition_seed, batching=run.batching)
    roles.setup()
    print(statistics_table("Shakespeare", roles.clients, roles.test_clients))
    run.fit(
        Classification(CharLSTM(roles.vocab_size, seed=run.seed)),
        roles,
        sampler=RoundSeeded(),
        stragglers=RoundSeededStragglers,
    )


if __name__ == "__main__":
    run_recipe(main, **PAPER, method="fedprox", lr=0.8, fedprox={"mu": 0.001})
