"""Methods compared on one data set: the same start, the same data, several seeds, a table and a figure.

python recipes/compare.py --dataset synthetic --methods fedavg "fedadam server_lr=0.1" "fedprox mu=1" --seeds 0 1 --rounds 10

Each run is an ordinary one, with TensorBoard's events, metrics.csv and checkpoints, in `<out>/runs/<method>/seed_<seed>`. The
same command goes on where it was stopped, and runs nothing twice. `<out>` ends up with the table as text, CSV and Markdown
and with the curves as PNG and PDF. Sweeps repeat `--sweep`:

python recipes/compare.py --dataset cifar100 --methods fedavg "fedprox mu=0.01" --sweep lr=0.01,0.1 --sweep alpha=0.01,0.1,1

A method's field, lr among them, is swept for the methods that have it; the others are run once. `alpha` is that of the
partition, and draws accuracy against α and against measured heterogeneity. The tables of the points lie in `<out>/<point>`.
"""

import contextlib
import csv
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from fedlightning.cli.recipe import (  # first: it looks at the command line before torch is imported
    Repeated,
    run_program,
)

# isort: split

import torch
from comparison import figures
from comparison.board import Board
from comparison.settings import Spec, Values, assigned, check_seeds, data_of, require_choice, setting_named, task_of
from comparison.sweeps import Point, points

from fedlightning import Callback, Dissimilarity, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.analysis.figures import require_matplotlib, write_figure
from fedlightning.compare import Comparison, Table
from fedlightning.compare.diary import check_folder
from fedlightning.loggers import run_loggers

NOT_VALUES = ("dataset", "methods", "seeds", "out", "sweep", "slots", "runner", "lr", "last", "checkpoint_every")


class Measured(Exception):
    """What was to be measured is measured."""


class Stop(Callback):
    """Ends a run before its first round."""

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """End it."""
        raise Measured


def heterogeneity(comparison: Comparison, point: Point, options: SimpleNamespace, seed: int) -> Values:
    """How much the clients differ: B and the variance of their gradients at the start model, and their mean number of
    classes, exp(−Σ p_c ln p_c) with a client's shares p_c. It is kept beside the runs until their data change."""  # noqa: D209
    name = next(iter(comparison.methods))
    diary = json.loads((comparison.folder(name, seed) / "run.json").read_text(encoding="utf-8"))["run"]
    key = [diary["start"], diary["data"], diary["partition"]]
    path = comparison.root / f"heterogeneity_{seed}.json"
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["of"] == key:
        return dict(found["values"])
    data: Any = data_of(options.dataset, point.values, seed)
    with tempfile.TemporaryDirectory() as nowhere, contextlib.suppress(Measured):
        trainer = FederatedTrainer(
            strategy=SlotStrategy(options.slots),
            callbacks=[Dissimilarity(), Stop()],
            logger=run_loggers(nowhere),
            seed=seed,
        )
        trainer.fit(FedAvg(), task_of(options.dataset, point.values, seed), data)
    counts = data.clients.histogram(data.train.targets, data.classes).to(torch.float64)
    shares = counts / counts.sum(1, keepdim=True)
    values = {name: trainer.metrics[f"dissimilarity/{name}"] for name in ("B", "variance")}
    values["classes"] = float(torch.special.entr(shares).sum(1).exp().mean())
    path.write_text(json.dumps({"of": key, "values": values}), encoding="utf-8")
    return values


class Sitting:
    """One call of the program: the comparison of each point, checked before the first run of any.

    Args:
        options: the command line.
    """

    def __init__(self, options: SimpleNamespace) -> None:
        self.options, self.setting = options, setting_named(options.dataset)
        given = {key: value for key, value in vars(options).items() if key not in NOT_VALUES and value is not None}
        require_choice(options.dataset, given)
        check_seeds(options.seeds)
        if {"local_steps", "local_epochs"} & set(given):
            given = {"local_steps": None, "local_epochs": None, **given}
        self.values = {
            "data_dir": "data",
            "evaluate_train": options.dataset == "synthetic",
            **self.setting.values,
            **given,
        }
        self.points = points(options.sweep, self.values, [Spec.parse(text) for text in options.methods])
        require_choice(options.dataset, self.points[0].swept)
        self.out = Path(options.out or Path("logs", "compare", options.dataset, self._describe(self.values)))
        self.comparisons = [self._comparison(point) for point in self.points]

    def _describe(self, values: Values) -> str:
        """The folder, when it is not named: the values that matter."""
        shown = [f"fake_{values['partition']}" if values["data"] == "fake" else values["partition"], values["model"]]
        if values["data_alpha"] is not None:
            shown.append(f"{values['data_alpha']:g}_{values['data_beta']:g}")
        work = f"K{values['local_steps']}" if values["local_epochs"] is None else f"E{values['local_epochs']}"
        shown += [f"T{values['rounds']}", f"m{values['clients_per_round']}", work, f"B{values['batch_size']}"]
        shown += [f"lr{self.options.lr:g}"] if self.options.lr else []
        return "_".join(str(part) for part in shown if part is not None)

    def _comparison(self, point: Point) -> Comparison:
        options, values = self.options, point.values
        lr = {} if options.lr is None else {"lr": options.lr}
        strategy = partial(SlotStrategy, options.slots, runner=options.runner)
        SlotStrategy(options.slots, runner=options.runner)
        keys = {"max_rounds": values["rounds"]} | {k: values[k] for k in ("clients_per_round", "evaluate_every")}
        return Comparison(
            [(spec.text, spec.build(self.setting.fields, lr)) for spec in point.specs],
            lambda seed: task_of(options.dataset, values, seed),
            lambda seed: data_of(options.dataset, values, seed),
            seeds=options.seeds,
            trainer=lambda **own: FederatedTrainer(strategy=strategy(), sampler=self.setting.sampler(), **keys, **own),
            root=self.out / "runs" / point.place,
            target=values["target"],
            last=options.last,
            checkpoint_every=options.checkpoint_every,
        )

    def run(self) -> list[Path]:
        """Run what is missing, write the tables and figures, and return their files.

        Raises:
            ConfigurationError: a method cannot run, or a folder cannot be written.
        """
        for point, comparison in zip(self.points, self.comparisons, strict=True):
            for folder in (self.out / point.name, comparison.root):
                check_folder(folder, "`--out`")
            comparison.check()
        written, rows = [], []
        for point, comparison in zip(self.points, self.comparisons, strict=True):
            table = self._run_point(point, comparison)
            folder = self.out / point.name
            written += [
                *table.save(folder),
                *write_figure(figures.curves(table, self._title(point), _work(point.values)), folder / "curves"),
            ]
            print(f"\n{self._title(point)}; a round is {_work(point.values)}\n{table}\n", flush=True)
            rows += self._sweep_rows(point, comparison, table)
        return [*written, *self._sweep(rows, table)] if self.options.sweep else written

    def _run_point(self, point: Point, comparison: Comparison) -> Table:
        board = Board(self._title(point), list(comparison.methods), comparison.seeds)
        comparison.callbacks, comparison.on_run_end = board.callbacks, board.ended
        with board:
            return comparison.run()

    def _title(self, point: Point) -> str:
        values = point.values
        partition = values["partition"]
        if values["data_alpha"] is not None:
            partition = f"α = {values['data_alpha']:g}, β = {values['data_beta']:g}"
        fake = " (made-up images)" * (values["data"] == "fake")
        swept = ", ".join(assigned({key: value for key, value in point.swept.items() if key != "alpha"}))
        return ", ".join(filter(None, (self.setting.title + fake, partition, swept)))

    def _sweep_rows(self, point: Point, comparison: Comparison, table: Table) -> list[Values]:
        """The point's rows of the table of all points, with heterogeneity where alpha is swept."""
        measured: Values = {}
        if "alpha" in point.swept:
            found = [heterogeneity(comparison, point, self.options, seed) for seed in self.options.seeds]
            measured = {key: sum(values[key] for values in found) / len(found) for key in found[0]}
        flags = assigned(
            {k: v for k, v in point.swept.items() if k != "alpha" and f"{k}={v}" in point.place.split("_")}
        )
        return [{**point.swept, **measured, "label": ", ".join([row["method"], *flags]), **row} for row in table.rows()]

    def _sweep(self, rows: Sequence[Values], table: Table) -> list[Path]:
        """The table of all points, and the figure of accuracy against alpha."""
        text = io.StringIO()
        names = [name for name in rows[0] if name != "label"]
        writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        shown = [
            *self.points[0].swept,
            *(key for key in ("B", "variance", "classes") if key in rows[0]),
            "method",
            "final",
            "best",
        ]
        lines = [shown, ["---"] * len(shown), *([_cell(row, key, table.scale) for key in shown] for row in rows)]
        paths = [self.out / "sweep.csv", self.out / "sweep.md"]
        paths[0].write_text(text.getvalue(), encoding="utf-8")
        paths[1].write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines), encoding="utf-8")
        print(paths[1].read_text(encoding="utf-8"))
        if "alpha" in rows[0]:
            title = self.setting.title + " (made-up images)" * (self.values["data"] == "fake")
            paths += write_figure(figures.heterogeneity(rows, table, title), self.out / "heterogeneity")
        return paths


def _work(values: Values) -> str:
    """What a round is: the same methods take other curves with other local work."""
    steps = (
        f"{values['local_steps']} local steps"
        if values["local_epochs"] is None
        else f"{values['local_epochs']} local epochs"
    )
    clients = values["clients_per_round"]
    share = f"{clients:.0%} of the clients" if isinstance(clients, float) else f"{clients} clients"
    return f"{share} with {steps} of {values['batch_size']} examples"


def _cell(row: Values, key: str, scale: int) -> str:
    if key not in ("final", "best"):
        return f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
    if row[key] is None:
        return "diverged"
    return f"{scale * row[key]:.2f}" + ("" if row[f"{key}_std"] is None else f" ± {scale * row[f'{key}_std']:.2f}")


def main(
    *,
    dataset: Literal["cifar10", "cifar100", "fashion_mnist", "mnist", "shakespeare", "synthetic"] = "synthetic",
    partition: str | None = None,
    methods: list[str],
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - it is read alone
    sweep: Repeated = [],  # noqa: B006
    rounds: int | None = None,
    clients_per_round: int | float | None = None,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    batch_size: int | None = None,
    model: str | None = None,
    lr: float | None = None,
    target: float | None = None,
    evaluate_every: int | None = None,
    evaluate_train: bool | None = None,
    last: int = 1,
    checkpoint_every: int = 10,
    data_alpha: float | None = None,
    data_beta: float | None = None,
    slots: str = "auto",
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto",
    data: Literal["real", "fake"] | None = None,
    data_dir: str | None = None,
    out: str | None = None,
) -> list[Path]:
    """Methods compared on one data set; what is not given is the data set's own.

    Args:
        dataset: whose data, model and usual numbers.
        partition: who owns what, e.g. A0d10C100; see the README.
        methods: names, with fields: fedavg "fedprox mu=0.01".
        seeds: of the runs of each method.
        sweep: NAME=VALUE,VALUE with a field of a method, a flag, or alpha of the partition; may be repeated.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        local_steps: local steps of every client in a round.
        local_epochs: passes over a client's data, in the place of local steps.
        batch_size: examples of a local step.
        model: lenet, cnn, mlp, logistic, resnet18 …
        lr: learning rate of every method that does not name its own.
        target: the accuracy that rounds are counted to.
        evaluate_every: rounds between evaluations.
        evaluate_train: evaluate on all training data, too, as adaptivefedprox needs.
        last: evaluations whose mean is the final accuracy.
        checkpoint_every: rounds between checkpoints.
        data_alpha: α of the synthetic data.
        data_beta: β of the synthetic data.
        slots: auto, a number, or names such as cpu/0,cpu/1.
        runner: what takes the local steps.
        data: real, or fake for images made on the spot.
        data_dir: where the data are, or are downloaded to.
        out: the folder of the runs and tables; logs/compare/<dataset>/<settings> unless given.
    """
    options = SimpleNamespace(**locals())
    require_matplotlib("compare")
    paths = Sitting(options).run()
    print(*paths, sep="\n")
    return paths


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the board is enough
    run_program(main, goes_on=True)
