"""Methods compared on one task: learning rates tuned on one seed, accuracies over several.

python recipes/methods.py --dataset synthetic --out results/synthetic

For each method every point of a grid is tried on the first seed, in fewer rounds; the one that ends best is run on all
seeds, and where a seed diverges the next best is. Each finished run leaves a small JSON file in the folder and is not run
again, so a comparison that was stopped goes on where it was, and more methods or seeds can be added. The folder ends up
with table.md and table.csv.
"""

import csv
import io
import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from comparison.settings import build_method, check_seeds, number
from torch import nn

from fedlightning import (
    Callback,
    Classification,
    ClientError,
    ConfigurationError,
    FederatedDataModule,
    FederatedTrainer,
    SlotStrategy,
)
from fedlightning.cli.flags import as_words, of_function
from fedlightning.cli.recipe import Repeated, run_program
from fedlightning.compare.diary import check_folder, write
from fedlightning.datasets import FashionMNIST, Synthetic
from fedlightning.errors import nearest, require_within
from fedlightning.method import field_names, hyperparameters
from fedlightning.methods import method_named
from fedlightning.models import LogisticRegression, build_model

LAST = 4
"""Evaluations whose mean is the final accuracy: with few of the clients a round, a single one says little."""

Values = dict[str, Any]
Grid = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Setting:
    """What all methods share on a data set.

    Attributes:
        description: of the task, for the table.
        data: the clients' data, from the seed and the folder.
        model: the start model, from the seed.
        clients: m, how many take part in a round.
        target: the accuracy that rounds are counted to.
        grid: what is tried with every method.
        own: what is tried with one method in its place, or fixed for it, as a grid of one point.
    """

    description: str
    data: Callable[[int, str], FederatedDataModule]
    model: Callable[[int], nn.Module]
    clients: int
    target: float
    grid: Grid
    own: dict[str, Grid]


SETTINGS = {
    "fashion_mnist": Setting(
        "Fashion-MNIST over 100 clients, Dirichlet(0.10), LeNet, 10 local steps of 32 images",
        lambda seed, folder: FashionMNIST("A0d10C100", root=folder, batch_size=32, steps=10, seed=seed),
        lambda seed: build_model("lenet", (1, 28, 28), 10, seed=seed),
        clients=10,
        target=0.7,
        grid={"lr": (0.03, 0.1, 0.3)},
        own={
            "deltasgd": {"lr": (0.02, 0.06, 0.2)},  # η_0, 0.2 in the paper
            "fedadam": {"lr": (0.03, 0.1), "server_lr": (0.003, 0.01, 0.03)},
            "fedavgm": {"lr": (0.01, 0.03, 0.1)},  # its server's steps add up to 1 / (1 − β) = 10 times as much
            "fednar": {"lr": (0.03, 0.1, 0.3), "weight_decay": (0.005,)},  # η u as in the paper, whose η is 0.01
            # Without clipping SCAFFOLD diverges at each rate of the grid.
            "scaffold": {"lr": (0.03, 0.1), "clip_norm": (10.0,)},
            # 1 / p steps, as the others.
            "scaffnew": {"lr": (0.03, 0.1), "p": (0.1,), "clip_norm": (10.0,), "allow_partial": (True,)},
        },
    ),
    "synthetic": Setting(
        "Synthetic (1, 1) over 30 devices, logistic regression, 20 local steps of 10 examples",
        lambda seed, _: Synthetic(1.0, 1.0, seed=seed, batch_size=10, steps=20, evaluate_on=("test",)),
        lambda seed: LogisticRegression.glorot(60, 10, seed=seed),
        clients=10,
        target=0.8,
        grid={"lr": (0.03, 0.1, 0.3)},
        own={
            "deltasgd": {"lr": (0.02, 0.06, 0.2)},
            "fedadam": {"lr": (0.03, 0.1), "server_lr": (0.03, 0.1, 0.3)},
            "fedavgm": {"lr": (0.01, 0.03, 0.1)},
            "fednar": {"lr": (0.03, 0.1, 0.3), "weight_decay": (0.005,)},
            "scaffnew": {"lr": (0.03, 0.1, 0.3), "p": (0.05,), "allow_partial": (True,)},
        },
    ),
}


class Accuracies(Callback):
    """Keeps (round, accuracy) of each evaluation."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float]] = []

    def on_evaluation_end(self, trainer: FederatedTrainer, metrics: Any) -> None:
        """Keep it."""
        self.curve.append((trainer.round, metrics["test/accuracy"]))


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        run: everything that determines it.
        curve: (round, accuracy) of each evaluation.
        seconds: wall time.
        failure: why it ended early, if it did.
    """

    run: dict[str, Any]
    curve: list[tuple[int, float]]
    seconds: float
    failure: str | None

    @property
    def final(self) -> float:
        """Mean accuracy of the last evaluations; 0 for a run that failed."""
        return 0.0 if self.failure else statistics.mean(accuracy for _, accuracy in self.curve[-LAST:])

    @property
    def best(self) -> float:
        """The highest accuracy of all evaluations."""
        return max(accuracy for _, accuracy in self.curve)

    def rounds_to(self, target: float) -> int | None:
        """The first evaluated round with this accuracy."""
        return next((round for round, accuracy in self.curve if accuracy >= target), None)


class Comparison:
    """The runs of one folder.

    Args:
        options: the command line.
    """

    def __init__(self, options: SimpleNamespace) -> None:
        self.options, self.setting = options, SETTINGS[options.dataset]
        self.clients = self.setting.clients if options.clients is None else options.clients
        self.data = cache(lambda seed: self.setting.data(seed, options.data_dir))

    def check(self) -> None:
        """Check the command line, and build every method at every point of its grid, without a run.

        Raises:
            ConfigurationError: a number is too small, a method is not known or has not a field, a field
                is outside its interval, or the folder cannot be written.
        """
        options = self.options
        check_seeds(options.seeds)
        for flag in ("clients", "rounds", "tune_rounds", "evaluate_every"):
            shown = f"`--{flag.replace('_', '-')}`"
            require_within(getattr(options, flag), "[1, 1000000000]", shown, "leave it out for the usual number")
        SlotStrategy(options.slots)
        for name in options.methods:
            self.check_fields(name)
            for values in self.points(name):
                build_method(method_named(name), values)
        check_folder(Path(options.out, "runs"), "`--out`")

    def check_fields(self, name: str) -> None:
        """Check that a method has what `--set` sets.

        Raises:
            ConfigurationError: there is no such method, or it has no such field.
        """
        known = field_names(method_named(name))
        for key, _ in self.options.set:
            if key not in known:
                raise ConfigurationError(
                    f"`--set` must name a field of each of `--methods`, but {key!r} is none of {name}; leave one of them out. "
                    f"{nearest(key, known)}"
                )

    def grid(self, name: str) -> Grid:
        """What is tried with a method; `--lr` replaces its learning rates, and `--set` adds to it."""
        lr = {} if self.options.lr is None else {"lr": self.options.lr}
        return self.setting.own.get(name, self.setting.grid) | lr | {key: (value,) for key, value in self.options.set}

    def points(self, name: str) -> list[Values]:
        """The grid of a method, point by point."""
        grid = self.grid(name)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def result(self, name: str, values: Values, seed: int, rounds: int) -> Result:
        """The run from its file, or run now."""
        options, method = self.options, build_method(method_named(name), values)
        run = {"dataset": options.dataset, "method": name, **hyperparameters(method)}
        run |= {"seed": seed, "rounds": rounds, "evaluate_every": options.evaluate_every, "clients": self.clients}
        run = json.loads(json.dumps(run))  # as a file has it, where tuples are lists
        point = "_".join(f"{key}={value}" for key, value in values.items())
        path = Path(options.out, "runs", f"{name}_{point}_seed={seed}_rounds={rounds}.json")
        if path.is_file() and (found := json.loads(path.read_text()))["run"] == run:
            return Result(**found)
        accuracies = Accuracies()
        trainer = FederatedTrainer(
            max_rounds=rounds,
            clients_per_round=self.clients,
            strategy=SlotStrategy(options.slots),
            callbacks=[accuracies],
            logger=False,
            evaluate_every=options.evaluate_every,
            seed=seed,
        )
        began, failure = time.perf_counter(), None
        try:
            trainer.fit(method, Classification(self.setting.model(seed), 10), self.data(seed))
        except ClientError as error:
            failure = str(error)
        result = Result(run, accuracies.curve, round(time.perf_counter() - began, 2), failure)
        write(path, json.dumps(vars(result)))
        print(f"{path.stem}: {result.final:.4f} in {result.seconds:.0f} s{', failed' * bool(failure)}", flush=True)
        return result

    def row(self, name: str) -> dict[str, Any]:
        """Tune a method, run it on all seeds and sum it up."""
        options, points = self.options, self.points(name)
        grid = {key: sorted(set(few)) for key, few in self.grid(name).items() if len(few) > 1}
        first = partial(self.result, name, seed=options.seeds[0], rounds=options.tune_rounds)
        for tuned in sorted(points, key=lambda values: first(values).final, reverse=True):
            results = [self.result(name, tuned, seed, options.rounds) for seed in options.seeds]
            if not any(result.failure for result in results):
                break
        reached = [t for result in results if (t := result.rounds_to(self.setting.target)) is not None]
        final, best = [result.final for result in results], [result.best for result in results]
        return {
            "method": name,
            "tuned": ", ".join(f"{key} {value}" for key, value in tuned.items()),
            "grid": "; ".join(f"{key} {', '.join(map(str, few))}" for key, few in grid.items() if len(few) > 1),
            "final": statistics.mean(final),
            "final_std": statistics.stdev(final) if len(final) > 1 else "",
            "best": statistics.mean(best),
            "best_std": statistics.stdev(best) if len(best) > 1 else "",
            "rounds_to_target": statistics.mean(reached) if reached else "",
            "seeds_at_target": len(reached),
            "seeds": len(results),
            "diverged": sum(result.failure is not None for result in results),
            "seconds": statistics.mean(result.seconds for result in results),
        }


def markdown(rows: Sequence[dict[str, Any]], setting: Setting, options: SimpleNamespace, command: str) -> str:
    """The rows as a table, and what they are."""
    clients = setting.clients if options.clients is None else options.clients
    several = len(options.seeds) > 1
    evaluated = {0, *range(0, options.rounds + 1, options.evaluate_every), options.rounds}
    mean = min(LAST, len(evaluated))
    lines = [
        f"{setting.description}; {clients} clients a round, {options.rounds} rounds, seeds {options.seeds}. Accuracy in",
        f"percent{', mean ± deviation over the seeds' * several}; final is the mean of the last {mean} evaluations. Tuned",
        f"on seed {options.seeds[0]} in {options.tune_rounds} rounds. Made by",
        f"\n    {command}\n",
        f"| method | tuned | from | final | best | rounds to {100 * setting.target:g} | seconds a run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        final, best = (_percent(row[key], row[f"{key}_std"]) for key in ("final", "best"))
        final = f"diverged on {row['diverged']} of {row['seeds']} seeds" if row["diverged"] else final
        missed = row["seeds"] - row["seeds_at_target"]
        rounds = f"{row['rounds_to_target']:.0f}" if row["seeds_at_target"] else ""
        rounds += f" ({missed} of {row['seeds']} seeds never)" if missed else ""
        cells = (row["method"], row["tuned"], row["grid"], final, best, rounds.strip(), f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _percent(mean: float, deviation: float | str) -> str:
    """An accuracy with its deviation over the seeds; a single seed has none."""
    return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if isinstance(deviation, float) else "")


def assignment(text: str) -> tuple[str, Any]:
    """A hyperparameter and its value, from "clip_norm=10".

    Raises:
        ConfigurationError: one of them is missing.
    """
    name, _, value = text.partition("=")
    if not name or not value:
        raise ConfigurationError(f"`--set` must be like clip_norm=10, but is {text!r}; give a name and a value.")
    return name, number(value)


def main(
    *,
    dataset: Literal["fashion_mnist", "synthetic"] = "fashion_mnist",
    methods: list[str] = [  # noqa: B006 - it is read alone
        "fedavg",
        "fedavgm",
        "deltasgd",
        "dualprox",
        "fedexp",
        "fedgm",
        "fedinit",
        "fedlesam",
        "fednar",
        "fedprox",
        "scaffold",
        "scaffnew",
        "fedadam",
    ],
    clients: int | None = None,
    lr: list[float] | None = None,
    set: Repeated = [],  # noqa: B006
    rounds: int = 60,
    tune_rounds: int = 20,
    evaluate_every: int = 5,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    data_dir: str = "data",
    out: str,
    slots: str = "auto",
) -> None:
    """Methods compared on one task: learning rates tuned on one seed, accuracies over several.

    Args:
        dataset: the task.
        methods: names.
        clients: how many take part in a round; ten unless given.
        lr: learning rates to try, in the place of the grid's.
        set: NAME=VALUE, a hyperparameter of all methods, e.g. clip_norm=10; may be repeated.
        rounds: rounds of the runs that count.
        tune_rounds: rounds of the runs that choose a point of the grid.
        evaluate_every: rounds between evaluations.
        seeds: of the runs of each method; the first one tunes.
        data_dir: where Fashion-MNIST is, or is downloaded to.
        out: the folder of the runs and the table.
        slots: auto, a number, or names such as cpu/0,cpu/1.
    """  # fmt: skip
    values = dict(locals())
    options = SimpleNamespace(**values)
    options.set = [assignment(text) for text in set]
    comparison = Comparison(options)
    comparison.check()
    rows = [comparison.row(name) for name in methods]
    command = shlex.join(["python", "recipes/methods.py", *as_words(values, of_function(main))])
    table = markdown(rows, comparison.setting, options, command)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(Path(out, "table.csv"), lines.getvalue())
    write(Path(out, "table.md"), table)
    print(table)


if __name__ == "__main__":
    run_program(main, goes_on=True)
