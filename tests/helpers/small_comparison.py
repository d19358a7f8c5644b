"""A small comparison, whose parts stand at the top of a module, so that they can be sent to another process."""

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlightning import (
    Callback,
    Classification,
    Dirichlet,
    Examples,
    FedAvg,
    FederatedTrainer,
    Scaffold,
    SlotStrategy,
    TensorData,
)
from fedlightning.compare import Table, compare
from fedlightning.data import Batching

ROUNDS = 6
METHODS = {"fedavg": FedAvg(lr=0.5), "scaffold": Scaffold(lr=0.5)}


def task(seed: int) -> Classification:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classification(nn.Linear(4, 3))


def data(seed: int, validation: bool = False) -> TensorData:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(120, 4, generator=rng)
    targets = (inputs @ torch.randn(4, 3, generator=rng)).argmax(1)
    clients = Dirichlet(alpha=1.0, num_clients=5).split(targets, seed=seed)
    val = Examples(inputs[::3], targets[::3]) if validation else None
    return TensorData(Examples(inputs, targets), clients, val=val, batching=Batching(8, steps=3))


def options(root: Path, **changed: Any) -> dict[str, Any]:
    trainer = {"max_rounds": ROUNDS, "clients_per_round": 3, "evaluate_every": 2, "strategy": SlotStrategy(1)}
    trainer |= changed.pop("trainer", {})
    return {"root": root, "seeds": (0, 1), "target": 0.5, "trainer": trainer, **changed}


def run(root: Path, methods: Any = METHODS, **changed: Any) -> Table:
    return compare(methods, task, data, **options(root, **changed))


def numbers(table: Table) -> list[tuple[Any, ...]]:
    """All that does not depend on the clock, unrounded."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in table.rows()]
    runs = [(r.name, r.seed, dict(r.curve), r.rounds, r.up_bytes, r.down_bytes, r.failure) for r in table.outcomes]
    return [*(tuple(row.items()) for row in rows), *runs]


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_clock(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if "throughput" not in key} for row in logged(folder)]


def diary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


class Slow(Callback):
    """Makes a round last."""

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        time.sleep(0.4)


def slow(name: str, seed: int) -> list[Callback]:
    return [Slow()]


class Broken(FedAvg):
    """Fails in the second round."""

    def on_aggregate(self, server: Any, mean: Any, round: Any) -> Any:
        if round.index == 1:
            raise RuntimeError("no such thing")
        return super().on_aggregate(server, mean, round)


class Dots(FedAvg):
    """Takes a step that depends on a sum over all weights."""

    def on_aggregate(self, server: Any, mean: Any, round: Any) -> Any:
        return super().on_aggregate(server, mean.replace(delta=mean.delta * (1 + mean.delta.dot(mean.delta))), round)


def wide_task(seed: int) -> Classification:
    """So many weights that torch sums over them in several threads."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classification(nn.Sequential(nn.Linear(4, 20_000), nn.ReLU(), nn.Linear(20_000, 3)))
