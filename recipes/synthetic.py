"""Logistic regression on FedProx's synthetic data: generated in a second, no download, no GPU.

python recipes/synthetic.py --method fedprox --mu 1

The 30 devices, their data, the start model and who takes part in a round follow the FedProx paper's program (Li et al.,
MLSys 2020), so the curves can be laid over it.
"""

from typing import Literal

from fedlightning import (
    Classification,
    Dissimilarity,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    RoundProgress,
    SlotStrategy,
    Stragglers,
    Throughput,
)
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.contrib.fedprox_program import FedProxReplay, RoundSeeded
from fedlightning.datasets import Synthetic
from fedlightning.models import LogisticRegression


def main(
    method: FedMethod,
    run: Run,
    *,
    data_alpha: float = 1.0,
    data_beta: float = 1.0,
    iid: bool = False,
    labels: Literal["argmax", "sample"] = "argmax",
    stragglers: float = 0.0,
    drop_stragglers: bool = False,
    replay: Literal["none", "fedprox"] = "none",
    dissimilarity: bool = False,
    rounds: int = 200,
    clients_per_round: int | float = 10,
    batch_size: int = 10,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true",
    evaluate_every: int = 1,
    seed: int = 0,
) -> None:
    """Logistic regression on FedProx's synthetic(α, β) or IID data.

    Args:
        data_alpha: α, how much the devices' models differ.
        data_beta: β, how much the devices' data differ.
        iid: one model and one distribution for all devices, instead of α and β.
        labels: argmax as the paper's program makes them, or sample as in the authors' files of (0.5, 0.5) and (1, 1).
        stragglers: fraction of a round's devices that do but a part of their epochs.
        drop_stragglers: leave out what they did, as FedAvg does in the paper.
        replay: fedprox draws stragglers, their epochs and the batches from the random streams of the paper's program.
        dissimilarity: measure the variance of the devices' gradients, and B, after each round.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 20 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients that are trained at once under vmap, or auto.
        runner: what takes the local steps; auto decides before the first round, and says why.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        evaluate_every: rounds between evaluations.
        seed: of the data, the start model and the batches.
    """
    rule = FedProxReplay if replay == "fedprox" else Stragglers
    heterogeneity = rule(stragglers, partial=not drop_stragglers) if stragglers or replay == "fedprox" else None
    data = Synthetic(
        data_alpha, data_beta, iid, labels, seed=seed, batch_size=batch_size, epochs=local_epochs, steps=local_steps
    )
    model = LogisticRegression.glorot(60, 10, seed=seed)
    logger, checkpoint = run.open(data.name)
    measured = [Dissimilarity()] if dissimilarity else []
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        sampler=RoundSeeded(),
        stragglers=heterogeneity,
        strategy=SlotStrategy(slots, runner=runner, cohort_size=cohort_size, precision=precision),
        callbacks=[*measured, RoundProgress(), Throughput(), ModelCheckpoint(monitor="test/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    run.fit(trainer, method, Classification(model), data, checkpoint)


if __name__ == "__main__":
    run_recipe(main, lr=0.01, fedprox={"mu": 1.0})
