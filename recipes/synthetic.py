"""Logistic regression on FedProx's synthetic data: generated in a second, no download, no GPU.

python recipes/synthetic.py --method fedprox --mu 1

The 30 devices, their data, the start model and who takes part in a round follow the FedProx paper's program (Li et al.,
MLSys 2020), so the curves can be laid over it.
"""

from fedlightning import (
    Classification,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    RoundProgress,
    SlotStrategy,
    Throughput,
)
from fedlightning.cli import Run, run_recipe
from fedlightning.data import RoundSeeded, Synthetic
from fedlightning.models import LogisticRegression


def main(
    method: FedMethod,
    run: Run,
    *,
    data_alpha: float = 1.0,
    data_beta: float = 1.0,
    iid: bool = False,
    rounds: int = 50,
    clients_per_round: int | float = 10,
    batch_size: int = 10,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    slots: str = "auto",
    cohort_size: int | str = "auto",
    evaluate_every: int = 1,
    seed: int = 0,
) -> None:
    """Logistic regression on FedProx's synthetic(α, β) or IID data.

    Args:
        data_alpha: α, how much the devices' models differ.
        data_beta: β, how much the devices' data differ.
        iid: one model and one distribution for all devices, instead of α and β.
        rounds: rounds in all; the paper runs 200.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step.
        local_epochs: passes over a client's data in a round; 20 unless local_steps is given.
        local_steps: local steps of every client in a round, instead of local_epochs.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        cohort_size: clients trained at once, or auto.
        evaluate_every: rounds between evaluations.
        seed: of the data, the start model and the batches.
    """
    data = Synthetic(
        data_alpha, data_beta, iid, seed=seed, batch_size=batch_size, epochs=local_epochs, steps=local_steps
    )
    model = LogisticRegression.glorot(60, 10, seed=seed)
    logger, checkpoint = run.open(data.name)
    trainer = FederatedTrainer(
        max_rounds=rounds,
        clients_per_round=clients_per_round,
        sampler=RoundSeeded(),
        strategy=SlotStrategy(slots, cohort_size=cohort_size),
        callbacks=[RoundProgress(), Throughput(), ModelCheckpoint(monitor="val/accuracy")],
        logger=logger,
        evaluate_every=evaluate_every,
        seed=seed,
    )
    trainer.fit(method, Classification(model), data, ckpt_path=checkpoint)


if __name__ == "__main__":
    run_recipe(main, lr=0.01)
