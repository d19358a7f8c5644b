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

from fedlightning import Classification
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.data.statistics import statistics_table
from fedlightning.datasets import FEMNIST, OmniglotWriters
from fedlightning.models import LogisticRegression

PAPER = {"rounds": 200, "batch_size": 10, "local_epochs": 20, "evaluate_train": True}


def main(
    run: Run, *, data: Literal["nist", "omniglot"] = "nist", classes_per_user: int = 5, repo_bug: bool = False
) -> None:
    """Logistic regression on FEMNIST over FedProx's 200 devices.

    Args:
        data: nist, or omniglot for the stand-in; it is named in the run's folder.
        classes_per_user: letters of each device; 5 in the paper, 3 in its program.
        repo_bug: deal the letters as the paper's program does, by mistake the same ones again and again.
    """
    options = {"root": run.data_dir, "seed": run.partition_seed, "batching": run.batching}
    if data == "nist":
        devices = FEMNIST(classes_per_user=classes_per_user, repo_bug=repo_bug, **options)
    else:
        devices = OmniglotWriters(**options)
    devices.setup()
    print(statistics_table("FEMNIST" if data == "nist" else "Omniglot", devices.clients, devices.test_clients))
    model = LogisticRegression.glorot(784, devices.classes, seed=run.seed)
    run.fit(Classification(model, devices.classes), devices, sampler=RoundSeeded(), stragglers=RoundSeededStragglers)


if __name__ == "__main__":
    run_recipe(main, **PAPER, method="fedprox", lr=0.003, fedprox={"mu": 1.0})
