"""The curves as ordinary runs in `logs/fedprox_paper`: made where they are missing, and read."""

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedlightning import (
    Batching,
    ClientError,
    ConfigurationError,
    FederatedTrainer,
    ModelCheckpoint,
    SlotStrategy,
    Throughput,
)
from fedlightning.analysis import Dissimilarity
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.loggers import run_loggers
from fedlightning.participation.samplers import SizeWeighted
from fedlightning.participation.stragglers import Stragglers
from recipes.reproductions.fedprox.settings import BATCH, CLIENTS, SETTINGS, SYNTHETIC, Curve, Loaded, Options

ROOT = Path("logs", "fedprox_paper")

Values = dict[int, float]
"""A metric by round."""


class DataMissing(Exception):
    """A data set's files are not there; the message says which, and where they belong."""


class Column:
    """The curves of one data set.

    Args:
        dataset: its name.
        options: of the sitting.
    """

    def __init__(self, dataset: str, options: Options) -> None:
        self.dataset, self.setting, self.options = dataset, SETTINGS[dataset], options
        self.rounds = options.rounds or self.setting.rounds
        self._loaded: dict[int, Loaded] = {}

    def folder(self, curve: Curve) -> Path:
        """Where a curve is kept."""
        sampled = self.options.labels == "sample" and self.dataset in SYNTHETIC[2:]
        return ROOT / f"{self.dataset}{'_sample' * sampled}" / curve.name(self.options.seed)

    def complete(self, curves: Sequence[Curve]) -> None:
        """Run the curves that are not there or not finished; one line for each.

        Raises:
            DataMissing: some must be run, but the data are not there.
            ConfigurationError: a folder holds a run of other hyperparameters.
        """
        for curve in curves:
            folder = self.folder(curve)
            self._check(folder, curve)
            how = "finished before" if self._is_finished(folder) else self._run(folder, curve)
            print(f"{folder.relative_to(ROOT)}: {how}{_summary(folder)}", flush=True)

    def _is_finished(self, folder: Path) -> bool:
        reached = max(read(folder, "train_all/loss"), default=-1)
        return reached >= self.rounds or (reached >= 0 and (folder / "failure.txt").is_file())

    def _describe(self, curve: Curve) -> dict[str, Any]:
        """Everything that a curve depends on but its rounds and the code."""
        own = {"seed": self.options.seed, "lr": self.setting.lr, "clients_per_round": CLIENTS, "batch_size": BATCH}
        return {**asdict(curve), **own}

    def _check(self, folder: Path, curve: Curve) -> None:
        path, wanted = folder / "curve.json", self._describe(curve)
        if not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        if differing := sorted(name for name in wanted if found.get(name) != wanted[name]):
            given = ", ".join(f"{name} {found.get(name)} instead of {wanted[name]}" for name in differing)
            raise ConfigurationError(
                f"The run in {folder} must be the curve of that name, but has {given}; move the folder away."
            )

    def _load(self, epochs: int) -> Loaded:
        if epochs not in self._loaded:
            try:
                data, task = self.setting.load(self.options, Batching(BATCH, epochs=epochs))
                data.prepare_data()
                data.setup("fit")
            except ConfigurationError as error:
                raise DataMissing(str(error)) from error
            self._loaded[epochs] = data, task
        return self._loaded[epochs]

    def _run(self, folder: Path, curve: Curve) -> str:
        """Run a curve from its start, or from where it was left, and say how it went."""
        data, task = self._load(curve.epochs)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        resumed = checkpoint.is_file() and (folder / "metrics.csv").is_file()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curve.json").write_text(json.dumps(self._describe(curve), indent=1), encoding="utf-8")
        trainer, began = self.trainer(folder, curve), time.perf_counter()
        try:
            trainer.fit(curve.configured(), task, data, ckpt_path=checkpoint if resumed else None)
        except ClientError as error:
            (folder / "failure.txt").write_text(f"{error}\n", encoding="utf-8")
            return f"ended after round {trainer.round}: {error}"
        goes_on = f"on from round {trainer.start_round} " if resumed else ""
        return f"{goes_on}to round {trainer.round} in {time.perf_counter() - began:.0f} s"

    def trainer(self, folder: Path, curve: Curve) -> FederatedTrainer:
        """The trainer of a curve, which logs to a folder."""
        return FederatedTrainer(
            max_rounds=self.rounds,
            clients_per_round=CLIENTS,
            strategy=SlotStrategy(self.options.slots),
            callbacks=[
                Throughput(),
                Dissimilarity(every=self.setting.measured),
                ModelCheckpoint(save_top_k=0, every_n_rounds=10),
            ],
            evaluate_on=("test", "train"),
            logger=run_loggers(folder.parent, folder.name),
            sampler=RoundSeeded() if curve.sampling == "uniform" else SizeWeighted(),
            stragglers=Stragglers(curve.drop, partial=curve.method != "fedavg") if curve.drop else None,
            seed=self.options.seed,
        )


def read(folder: Path, metric: str) -> Values:
    """What a run has logged of a metric, by round; nothing where there is no run."""
    path, found = folder / "metrics.csv", {}
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get(metric) and (row["step"] or "").isdecimal():
                found[int(row["step"])] = float(row[metric])
    return found


def _summary(folder: Path) -> str:
    loss, accuracy = read(folder, "train_all/loss"), read(folder, "test/accuracy")
    return f"; training loss {loss[max(loss)]:.4f}, test accuracy {accuracy[max(accuracy)]:.4f}" if loss else ""


@dataclass(frozen=True)
class Reading:
    """Where a curve's accuracy is read: the round, why there ("converged", "diverged" or "exhausted"), and what it is."""

    round: int
    why: str
    accuracy: float

    def __str__(self) -> str:
        return f"{self.accuracy:.4f}, {self.why} in round {self.round}"


def reading(loss: Values, accuracy: Values, rounds: int) -> Reading:
    """The accuracy in the first round t in which the training loss f has converged or begun to diverge, or at the end.

    Converged is |f_t − f_{t−1}| < 10⁻⁴, diverged is f_t − f_{t−10} > 1.

    Args:
        loss: f by round, of every round.
        accuracy: of the same rounds.
        rounds: T; what was logged after it does not count.
    """
    last = max(t for t in loss if t <= rounds)
    for t in range(1, last + 1):
        if abs(loss.get(t, math.nan) - loss.get(t - 1, math.nan)) < 1e-4:
            return Reading(t, "converged", accuracy[t])
        if loss.get(t, math.nan) - loss.get(t - 10, math.nan) > 1:
            return Reading(t, "diverged", accuracy[t])
    return Reading(last, "exhausted", accuracy[last])
