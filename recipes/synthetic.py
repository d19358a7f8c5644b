"""Logistic regression on FedProx's synthetic data: generated in a second, no download, no GPU.

python recipes/synthetic.py --method fedprox --mu 1

The 30 devices, their data, the start model and who takes part in a round follow the FedProx paper's program (Li et al.,
MLSys 2020), so the curves can be laid over it.
"""

from typing import Literal

from fedlightning import Classification, Dissimilarity
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib import fedprox_program as program
from fedlightning.datasets import Synthetic
from fedlightning.models import LogisticRegression


def main(
    run: Run,
    *,
    data_alpha: float = 1.0,
    data_beta: float = 1.0,
    iid: bool = False,
    labels: Literal["argmax", "sample"] = "argmax",
    replay: Literal["none", "fedprox"] = "none",
    dissimilarity: bool = False,
) -> None:
    """Logistic regression on FedProx's synthetic(α, β) or IID data.

    Args:
        data_alpha: α, how much the devices' models differ.
        data_beta: β, how much the devices' data differ.
        iid: one model and one distribution for all devices, instead of α and β.
        labels: argmax as the paper's program makes them, or sample as in the authors' files of (0.5, 0.5) and (1, 1).
        replay: fedprox draws stragglers, their epochs and the batches from the random streams of the paper's program.
        dissimilarity: measure the variance of the devices' gradients, and B, after each round.
    """
    devices = Synthetic(data_alpha, data_beta, iid, labels, seed=run.partition_seed, batching=run.batching)
    model = LogisticRegression.glorot(60, 10, seed=run.seed)
    rules = {"stragglers": program.RoundSeededStragglers}
    if replay == "fedprox":
        rules = {"stragglers": program.ReplayedStragglers, "batching_policy": program.ReplayedBatches()}
    measured = [Dissimilarity()] if dissimilarity else []
    run.fit(Classification(model), devices, sampler=program.RoundSeeded(), callbacks=measured, **rules)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=10, local_epochs=20, evaluate_train=True, lr=0.01, fedprox={"mu": 1.0})
