"""Methods compared on one data set: the same start, the same data, several seeds, a table and a figure.

python recipes/compare.py --dataset synthetic --methods fedavg "fedadam server_lr=0.1" "fedprox mu=1" --seeds 0 1 --rounds 10

Each run is an ordinary one, with TensorBoard's events, metrics.csv and checkpoints, in `<out>/runs/<method>/seed_<seed>`. The
same command goes on where it was stopped, and runs nothing twice. `<out>` ends up with the table as text, CSV and Markdown
and with the curves as PNG and PDF. `--jobs 2` makes two runs side by side. Methods are tuned on the first seed:

python recipes/compare.py --methods fedavg fedadam --tune lr=0.03,0.1 fedadam:server_lr=0.03,0.1 --tune-rounds 20 --seeds 0 1

and what they depend on is swept:

python recipes/compare.py --dataset cifar100 --methods fedavg "fedprox mu=0.01" --sweep lr=0.01,0.1 alpha=0.01,0.1,1

A method's field, lr among them, is swept for the methods that have it; the others are run once. `alpha` is that of the
partition, and draws accuracy against α and against measured heterogeneity. The tables of the points lie in `<out>/<point>`.
"""

import json
import logging
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from fedlightning.cli.flags import as_words, of_function
from fedlightning.cli.recipe import (  # first: it looks at the command line before torch is imported
    Gathered,
    run_program,
)

# isort: split

from fedlightning import SlotStrategy
from fedlightning.analysis import dissimilarity_at
from fedlightning.analysis.figures import require_matplotlib, write_figure
from fedlightning.analysis.partition import class_counts, effective_classes
from fedlightning.compare import Comparison, Table, figures, name_methods, run_together
from fedlightning.compare.board import Board
from fedlightning.compare.diary import check_folder, read_diary, write
from fedlightning.compare.names import assigned
from fedlightning.compare.settings import (
    check_seeds,
    data_of,
    require_choice,
    setting_named,
    task_of,
    usual_grids,
    values_of_all,
)
from fedlightning.compare.specs import Spec, Values
from fedlightning.compare.sweep_table import rows_of, save_sweep
from fedlightning.compare.sweeps import USUAL, Point, grids, points
from fedlightning.participation import UniformSampling


def main(
    *,
    dataset: Literal["cifar10", "cifar100", "fashion_mnist", "mnist", "shakespeare", "synthetic"] = "synthetic",
    partition: str | None = None,
    methods: list[str],
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - it is read alone
    tune: Gathered = [],  # noqa: B006
    tune_rounds: int | None = None,
    sweep: Gathered = [],  # noqa: B006
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
    validation: float | None = None,
    last: int = 1,
    checkpoint_every: int = 10,
    data_alpha: float | None = None,
    data_beta: float | None = None,
    sampler: Literal["own", "uniform"] = "own",
    jobs: int = 1,
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
        seeds: of the runs of each method; the first one tunes.
        tune: NAME=VALUE,VALUE with a field, or METHOD:NAME=VALUE,VALUE for one method alone; usual for the data set's own grids.
        tune_rounds: rounds in which points of a grid are tried; whole runs unless given.
        sweep: NAME=VALUE,VALUE with a field of a method, a flag, or alpha of the partition.
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
        validation: fraction of each client's training examples that is set aside, on which methods are then tuned.
        last: evaluations whose mean is the final accuracy.
        checkpoint_every: rounds between checkpoints.
        data_alpha: α of the synthetic data.
        data_beta: β of the synthetic data.
        sampler: who draws the clients of a round: own is that of the data set's recipe, uniform depends on the seed alone.
        jobs: runs side by side, each in a process with its share of the cores.
        slots: of each job: auto, a number, or names such as cpu/0,cpu/1.
        runner: what takes the local steps.
        data: real, or fake for images made on the spot.
        data_dir: where the data are, or are downloaded to.
        out: the folder of the runs and tables; logs/compare/<dataset>/<settings> unless given.
    """
    options = SimpleNamespace(**locals())
    require_matplotlib("compare")
    check_seeds(seeds)
    values = values_of_all(options)
    found = points(sweep, values, [Spec.parse(text) for text in methods])
    require_choice(dataset, found[0].swept)
    root, board = Path(out or default_folder(options, values)), Board()
    comparisons = [compared(point, options, root, board) for point in found]
    for point, comparison in zip(found, comparisons, strict=True):
        for folder in (root / point.name, comparison.root):
            check_folder(folder, "`--out`")
    written: list[Path] = []
    rows: list[Values] = []

    def save(place: int, table: Table) -> None:
        point, title = found[place], title_of(found[place])
        board.close(title)
        about = f"{title}; {work_of(point.values)} a round. {table.tuning}".strip()
        written.extend(table.save(root / point.name, f"{about} Made by\n\n    {command_of(options)}"))
        written.extend(write_figure(figures.curves(table, title, work_of(point.values)), root / point.name / "curves"))
        print(
            f"\n{title}; a round is {work_of(point.values)}. {table.tuning}".rstrip(),
            f"{table}\n",
            sep="\n",
            flush=True,
        )
        measured = heterogeneity(table, point, options, comparisons[place].root) if "alpha" in point.swept else {}
        rows.extend(rows_of(point, table, measured))

    with board:
        tables = run_together(comparisons, jobs, save)
    if sweep:
        written += save_sweep(rows, list(found[0].swept), tables[0].scale, root)
        print(written[-1].read_text(encoding="utf-8"))
    if "alpha" in found[0].swept:
        title = setting_named(dataset).title_with(values)
        written += write_figure(figures.heterogeneity(rows, tables[0], title), root / "heterogeneity")
    print(*written, sep="\n")
    return written


def compared(point: Point, options: SimpleNamespace, root: Path, board: Board) -> Comparison:
    """The comparison of a point of the sweep; without a sweep there is one."""
    setting, values = setting_named(options.dataset), point.values
    given = {} if options.lr is None else {"lr": options.lr}
    methods = name_methods([(spec.text, spec.build(setting.fields, given)) for spec in point.specs])
    usual = usual_grids(options.dataset) if USUAL in options.tune else {}
    title = title_of(point)
    return Comparison(
        methods,
        partial(task_of, options.dataset, values),
        partial(data_of, options.dataset, values),
        seeds=options.seeds,
        trainer={
            "max_rounds": values["rounds"],
            "clients_per_round": values["clients_per_round"],
            "evaluate_every": values["evaluate_every"],
            "evaluate_on": ("val", "test", "train") if values["evaluate_train"] else ("val", "test"),
            "strategy": SlotStrategy(options.slots, runner=values["runner"]),
            "sampler": UniformSampling() if options.sampler == "uniform" else setting.sampler(),
        },
        tune=dict(zip(methods, grids(options.tune, point.specs, usual), strict=True)),
        tune_rounds=options.tune_rounds,
        root=root / "runs" / point.place,
        target=values["target"],
        last=options.last,
        checkpoint_every=options.checkpoint_every,
        on_progress=partial(board.goes_on, title),
        on_run_end=partial(board.ended, title),
    )


def heterogeneity(table: Table, point: Point, options: SimpleNamespace, root: Path) -> dict[str, float]:
    """How much the clients differ, on average over the seeds: B and the variance of their gradients at the start model, and
    their mean number of effective classes. It is kept beside the runs until the data change."""  # noqa: D209
    found = []
    for seed in options.seeds:
        made = next(run for run in table.outcomes if run.seed == seed)
        identity = read_diary(made.folder)["run"]
        key, path = (
            [identity[part] for part in ("start", "training_data", "partition")],
            root / f"heterogeneity_{seed}.json",
        )
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("of") != key:
            kept = {"of": key, "values": measure(point.values, seed, options)}
            write(path, json.dumps(kept))
        found.append(kept["values"])
    return {name: sum(values[name] for values in found) / len(found) for name in found[0]}


def measure(values: Values, seed: int, options: SimpleNamespace) -> dict[str, float]:
    """The heterogeneity of one seed's clients."""
    data: Any = data_of(options.dataset, values, seed)
    measured = dissimilarity_at(task_of(options.dataset, values, seed), data, strategy=SlotStrategy(options.slots))
    counts: Any = class_counts(data.clients, data.train.targets)
    classes = float(effective_classes(counts).mean())
    return {"B": measured["B"], "variance": measured["variance"], "classes": classes}


def default_folder(options: SimpleNamespace, values: Values) -> Path:
    """The folder, when it is not named: the values that matter."""
    shown = [f"fake_{values['partition']}" if values["data"] == "fake" else values["partition"], values["model"]]
    if values["data_alpha"] is not None:
        shown.append(f"{values['data_alpha']:g}_{values['data_beta']:g}")
    work = f"K{values['local_steps']}" if values["local_epochs"] is None else f"E{values['local_epochs']}"
    shown += [f"T{values['rounds']}", f"m{values['clients_per_round']}", work, f"B{values['batch_size']}"]
    shown += [f"V{values['validation']:g}"] if values["validation"] else []
    shown += [f"lr{options.lr:g}"] if options.lr else []
    shown += ["uniform"] if options.sampler == "uniform" else []
    return Path("logs", "compare", options.dataset, "_".join(str(part) for part in shown if part is not None))


def command_of(options: SimpleNamespace) -> str:
    """The command that makes the table; where the data lie is the reader's own affair."""
    words = as_words({**vars(options), "data_dir": None}, of_function(main))
    return shlex.join(["python", "recipes/compare.py", *words])


def title_of(point: Point) -> str:
    """What is compared on."""
    values = point.values
    partition = values["partition"]
    if values["data_alpha"] is not None:
        partition = f"α = {values['data_alpha']:g}, β = {values['data_beta']:g}"
    swept = ", ".join(assigned({key: value for key, value in point.swept.items() if key != "alpha"}))
    return ", ".join(filter(None, (setting_named(values["dataset"]).title_with(values), partition, swept)))


def work_of(values: Values) -> str:
    """What a round is: the same methods take other curves with other local work."""
    epochs, clients = values["local_epochs"], values["clients_per_round"]
    steps = f"{values['local_steps']} local steps" if epochs is None else f"{epochs} local epochs"
    share = f"{clients:.0%} of the clients" if isinstance(clients, float) else f"{clients} clients"
    return f"{share} with {steps} of {values['batch_size']} examples"


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the board is enough
    run_program(main, goes_on=True)
