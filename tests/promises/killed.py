"""Kills a short run at random moments, lets it go on, and compares what it left with the run in one go.

    python tests/promises/killed.py FOLDER KILLS SEED

Each run is a child that is forked once everything is imported, so that a kill may hit any moment of it: files of every kind
are written in each round.
"""

import csv
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    EarlyStopping,
    Examples,
    FederatedTrainer,
    ModelCheckpoint,
    Partition,
    Scaffold,
    SlotStrategy,
    TensorData,
    Throughput,
)
from fedlightning.loggers import run_loggers
from fedlightning.server.checkpoint import load_checkpoint

ROUNDS = 25


class Counts(Callback):
    """Remembers something."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = list(state["rounds"])

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        self.rounds.append(trainer.round)


def train(folder: Path) -> None:
    """Begin a run, or go on with it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(240, 6, generator=generator)
    targets = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
    clients = Partition.of(torch.arange(240).split(20))
    data = TensorData(Examples(inputs, targets), clients, batching=Batching(10))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    callbacks = [
        Throughput(), Counts(), EarlyStopping("test/loss", patience=5),
        ModelCheckpoint(monitor="test/accuracy", save_top_k=3),
        ModelCheckpoint(folder / "lowest", monitor="train/loss", mode="min", filename="r{round}", save_last=False),
    ]  # fmt: skip
    trainer = FederatedTrainer(
        ROUNDS, 4, SlotStrategy(2), callbacks, run_loggers(folder.parent, folder.name), evaluate_every=3
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(Scaffold(lr=0.1), Classification(model), data, ckpt_path=last if last.is_file() else None)


def start(folder: Path) -> int:
    """The number of a new process that trains."""
    child = os.fork()
    if child == 0:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - goes with the process
        status = 1
        try:
            train(folder)
            status = 0
        finally:
            os._exit(status)
    return child


def left(folder: Path) -> dict[str, Any]:
    """All that a run left, but for the clock."""
    state, meta = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("throughput/")} for row in csv.DictReader(file)]
    meta["row"] = {k: v for k, v in meta["row"].items() if not k.startswith("throughput/")}
    tensors = {**state.server, "buffers": state.buffers}
    tensors |= {f"{client}.{name}": row[name] for client, row in state.memory.rows().items() for name in row}
    hidden = [name for name in os.listdir(folder / "checkpoints") if name.startswith(".")]
    return {
        "meta": json.dumps(meta, sort_keys=True),
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "rows": rows,
        "files": sorted([*os.listdir(folder / "checkpoints"), *os.listdir(folder / "lowest"), *hidden]),
    }


def main(root: Path, kills: int, seed: int) -> None:
    """Kill so many times, and say how many runs ended as the one that was not killed."""
    draw, began = random.Random(seed), time.perf_counter()
    _, status = os.waitpid(start(root / "whole"), 0)
    seconds = time.perf_counter() - began
    assert status == 0
    expected, done, runs, unequal = left(root / "whole"), 0, 0, []
    while done < kills:
        folder, again = root / f"run{runs}", True
        runs += 1
        while True:
            child = start(folder)
            if again:  # one kill, and now and then another one while it goes on
                time.sleep(draw.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
                again = draw.random() < 0.3
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                break
            done += 1
        assert status == 0, folder
        found = left(folder)
        unequal += [f"{folder.name}: {name}" for name in expected if found[name] != expected[name]]
    print(f"{done} kills, {runs} runs, unequal: {unequal or 'none'}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
