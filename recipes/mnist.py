"""Logistic regression on FedProx's MNIST: 1,000 devices with two digits each, whose sizes follow a power law.

python recipes/mnist.py --method fedprox --mu 1

The devices, the learning rate, the batches, the rounds and who takes part in a round follow the FedProx paper and its
program (Li et al., MLSys 2020). Its systems heterogeneity is `--stragglers 0.9`; FedAvg drops those who are slow:

python recipes/mnist.py --method fedavg --stragglers 0.9 --drop-stragglers
"""

from fedlightning import Classification
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.data.statistics import statistics_table
from fedlightning.datasets import PowerLawMNIST
from fedlightning.models import LogisticRegression

PAPER = {"rounds": 100, "batch_size": 10, "local_epochs": 20, "evaluate_train": True}


def main(run: Run) -> None:
    """Logistic regression on MNIST over FedProx's 1,000 devices."""
    devices = PowerLawMNIST(root=run.data_dir, seed=run.partition_seed, batching=run.batching)
    devices.setup()
    print(statistics_table("MNIST", devices.clients, devices.test_clients))
    model = LogisticRegression.glorot(784, 10, seed=run.seed)
    run.fit(Classification(model), devices, sampler=RoundSeeded(), stragglers=RoundSeededStragglers)


if __name__ == "__main__":
    run_recipe(main, **PAPER, method="fedprox", lr=0.03, fedprox={"mu": 1.0})
