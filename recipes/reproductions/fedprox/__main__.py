"""The figures of the FedProx paper (Li et al., MLSys 2020, arXiv:1812.06127), from runs of this library.

python -m recipes.reproductions.fedprox --figure 2

    figures 1, 7, 8   training loss, test accuracy, variance of the local gradients with 0, 50 and 90 % stragglers
    figures 2, 5      the four synthetic sets without stragglers, μ = 0 and μ = 1
    figure 6          the same on the real data sets
    figures 3, 11     μ that adapts, from the worst start
    figures 9, 10     loss and accuracy as in figures 1 and 7, but with one local epoch
    figure 12         devices drawn uniformly and averaged by size, or drawn by size and averaged uniformly

Each curve is an ordinary run in `logs/fedprox_paper/<data set>/<curve>`, which TensorBoard shows. One that is finished is
used again, and one that was stopped goes on. The panels are drawn from the runs' metrics.csv, as PDF and PNG. Those of the
repository were drawn with `--seed 1 --out recipes/reproductions/figures`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from fedlightning import ConfigurationError, SlotStrategy
from fedlightning.analysis.figures import require_matplotlib
from fedlightning.cli.recipe import run_program
from fedlightning.compare.diary import check_folder
from fedlightning.errors import require_within
from recipes.reproductions.fedprox.curves import Column, DataMissing, read, reading
from recipes.reproductions.fedprox.figures import Look, Panel, Sheet, save
from recipes.reproductions.fedprox.settings import EPOCHS, REAL, SETTINGS, SYNTHETIC, Curve, Options

DROPS = (0.0, 0.5, 0.9)
METRICS = {
    "loss": ("train_all/loss", "Training Loss"),
    "accuracy": ("test/accuracy", "Testing Accuracy"),
    "variance": ("dissimilarity/variance", "Variance of Local Grad."),
}
LIMITS = {("mnist", drop): (0.2, 1.5) for drop in DROPS} | {
    ("sent140", drop): limits for drop, limits in zip(DROPS, ((0.3, 1.8), (0.2, 1.8), (0.2, 4.0)), strict=True)
}

# The two scripts of the authors give μ = 0 and μ > 0 each other's colours.
FEDAVG, ZERO, BEST = (
    Look("FedAvg", ":", "#ff7f0e"),
    Look("FedProx (μ=0)", "--", "#e377c2"),
    Look("FedProx (μ>0)", "-", "#17becf"),
)

Lines = list[tuple[Look, Curve]]


def with_stragglers(dataset: str, drop: float, epochs: int = EPOCHS) -> Lines:
    """FedAvg, which is FedProx with μ = 0 where there is no straggler to drop, and FedProx without and with μ."""
    zero = Curve(dataset, mu=0.0, drop=drop, epochs=epochs)
    fedavg = Curve(dataset, "fedavg", drop=drop, epochs=epochs) if drop else zero
    best = Curve(dataset, mu=SETTINGS[dataset].mu, drop=drop, epochs=epochs)
    return [(FEDAVG, fedavg), (ZERO, zero), (BEST, best)]


def one_epoch(dataset: str, drop: float) -> Lines:
    """The first two of these with E = 1, where local models stay close to the global one."""
    return with_stragglers(dataset, drop, epochs=1)[:2]


def two_mu(dataset: str, drop: float) -> Lines:
    """FedProx without and with μ."""
    zero, best = Curve(dataset, drop=drop), Curve(dataset, mu=SETTINGS[dataset].mu, drop=drop)
    positive = "mu=1" if dataset in SYNTHETIC else "mu>0"
    return [(Look("mu=0, E=20", "--", "#17becf"), zero), (Look(f"{positive}, E=20", "-", "#e377c2"), best)]


def adaptive(dataset: str, drop: float) -> Lines:
    """These, and FedProx whose μ adapts: from 1 on IID data, where 0 is best, and from 0 elsewhere."""
    (zero, one), (best, other) = two_mu(dataset, drop)
    start = 1.0 if dataset == "synthetic_iid" else 0.0
    return [
        (zero._replace(label="FedAvg (FedProx, mu=0)"), one),
        (Look("FedProx, dynamic mu", "-.", "#ff7f0e"), Curve(dataset, "adaptivefedprox", start, drop)),
        (best._replace(label="FedProx, mu>0"), other),
    ]


def two_schemes(dataset: str, drop: float) -> Lines:
    """FedProx without and with μ under both ways to sample and to average."""
    (zero, one), (best, other) = two_mu(dataset, drop)
    return [
        (zero._replace(label="mu=0, uniform sampling, weighted mean"), one),
        (best._replace(label="mu=1, uniform sampling, weighted mean"), other),
        (Look("mu=0, weighted sampling, simple mean", ":", "#ff7f0e"), Curve(dataset, drop=drop, sampling="sized")),
        (
            Look("mu=1, weighted sampling, simple mean", "-.", "#8c564b"),
            Curve(dataset, mu=1.0, drop=drop, sampling="sized"),
        ),
    ]


@dataclass(frozen=True)
class Plan:
    """A figure: a column for each data set, a row for each metric or for each fraction of stragglers.

    Attributes:
        columns: the data sets.
        metrics: names in `METRICS`.
        lines: the curves of a data set and a fraction of stragglers, with their looks.
        drops: the fractions.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: Callable[[str, float], Lines]
    drops: tuple[float, ...] = (0.0,)

    @property
    def shared(self) -> bool:
        """Whether it is one of the large figures with a legend below all panels."""
        return len(self.drops) > 1


FIVE, ALL = ("synthetic_1_1", *REAL), tuple(METRICS)
FIGURES = {
    1: Plan(FIVE, ("loss",), with_stragglers, DROPS),
    2: Plan(SYNTHETIC, ("loss", "variance"), two_mu),
    3: Plan(("synthetic_iid", "synthetic_1_1"), ("loss",), adaptive),
    5: Plan(SYNTHETIC, ALL, two_mu),
    6: Plan(REAL, ALL, two_mu),
    7: Plan(FIVE, ("accuracy",), with_stragglers, DROPS),
    8: Plan(FIVE, ("variance",), with_stragglers, DROPS),
    9: Plan(FIVE, ("loss",), one_epoch, DROPS),
    10: Plan(FIVE, ("accuracy",), one_epoch, DROPS),
    11: Plan(SYNTHETIC, ("loss",), adaptive),
    12: Plan(SYNTHETIC, ALL, two_schemes),
}


def completed(plan: Plan, datasets: Sequence[str], options: Options) -> list[Column]:
    """The columns whose curves are there or could be run; one line for each that is left out."""
    columns = []
    for dataset in datasets:
        column = Column(dataset, options)
        try:
            column.complete(list(dict.fromkeys(c for drop in plan.drops for _, c in plan.lines(dataset, drop))))
        except DataMissing as error:
            print(f"{dataset}: left out. {error}", flush=True)
            continue
        columns.append(column)
    return columns


def arranged(plan: Plan, columns: Sequence[Column]) -> Sheet:
    """The figure's panels with their values, read from the runs."""
    rows = []
    for metric, drop in product(plan.metrics, plan.drops):
        logged, label = METRICS[metric]
        row = []
        for place, column in enumerate(columns):
            lines = [(look, read(column.folder(curve), logged)) for look, curve in plan.lines(column.dataset, drop)]
            title = column.setting.title.split(" (")[0] if plan.shared else column.setting.title
            limits = LIMITS.get((column.dataset, drop)) if plan is FIGURES[1] else None
            shown = (title * (not rows), label * (not place), column.rounds, column.setting.stride, limits)
            row.append(Panel(lines, *shown))
        rows.append(row)
    if not plan.shared:
        return Sheet(rows, (5, 4))
    return Sheet(rows, (23 / 5, 10 / 3), [f"{drop:.0%} stragglers" for drop in plan.drops], shared=True)


def gains(columns: Sequence[Column]) -> list[str]:
    """The paper's "absolute improvement": by how much FedProx with μ > 0 beats FedAvg at 90 % stragglers, and where."""
    lines, differences = [], []
    for column in columns:
        found = {}
        for look, curve in with_stragglers(column.dataset, 0.9):
            folder = column.folder(curve)
            found[look] = reading(read(folder, "train_all/loss"), read(folder, "test/accuracy"), column.rounds)
        best, fedavg = found[BEST], found[FEDAVG]
        differences.append(best.accuracy - fedavg.accuracy)
        where = f"{BEST.label} {best}; FedAvg {fedavg}"
        lines.append(f"{column.setting.title} {100 * differences[-1]:+.1f} points ({where})")
    lines.append(f"average {100 * sum(differences) / len(differences):+.1f} points")
    return [f"absolute improvement in test accuracy at 90 % stragglers: {line}" for line in lines]


def main(
    *,
    figure: Literal[1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12],
    quick: bool = False,
    seed: int = 0,
    slots: str = "auto",
    rounds: int | None = None,
    labels: Literal["argmax", "sample"] = "argmax",
    data_dir: str = "data",
    out: str = "logs/fedprox_paper",
) -> list[Path]:
    """The figures of the FedProx paper: run the curves that are missing, and draw one.

    Args:
        figure: its number in the paper.
        quick: the synthetic data sets only.
        seed: of the data, the start and the batches.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        rounds: in the place of the paper's number.
        labels: of synthetic (0.5, 0.5) and (1, 1): argmax as the authors' program makes them, or sample as their files hold them.
        data_dir: the folder of the data sets; nothing is downloaded.
        out: the folder of the figures.
    """
    require_matplotlib("fedprox")
    require_within(rounds, "[1, 1000000000]", "`--rounds`", "leave it out for the paper's number")
    SlotStrategy(slots)
    check_folder(Path(out), "`--out`")
    plan = FIGURES[figure]
    datasets = [dataset for dataset in plan.columns if dataset in SYNTHETIC or not quick]
    columns = completed(plan, datasets, Options(seed, slots, data_dir, rounds, labels))
    if not columns:
        raise ConfigurationError(
            f"Figure {figure} must have at least one data set, but none is left of {', '.join(plan.columns)}; "
            f"{'leave `--quick` out' if not datasets else 'put the files there, or name their folder by `--data-dir`'}."
        )
    if plan is FIGURES[1]:
        print(*gains(columns), sep="\n")
    name = f"fedprox_figure{figure}" + "_quick" * (len(datasets) < len(plan.columns))
    paths = save(arranged(plan, columns), Path(out, name))
    print(*paths, sep="\n")
    return paths


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # one line for each curve is enough
    run_program(main, goes_on=True)
