"""Records the bits of many runs, so that a change of the machine can be shown to change none.

    python tests/promises/bits.py record before.json        # on the commit before
    python tests/promises/bits.py compare before.json       # after the change; names each run, and what of it differs

A run is a method, a way to take its steps, a number of slots and something that makes it hard: dropout, augmentation,
stragglers, batch norm. Of each run are hashed: the server's state, the clients' rows, the buffers, the last checkpoint's tensors and
JSON, and metrics.csv but for `throughput/`. `--only TEXT` takes the runs whose names hold a text. Graphs are compiled once and
kept in fedlightning's cache: the first time takes ten minutes on two cores, later ones two.
"""

import argparse
import csv
import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Classification,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    Partition,
    Scaffold,
    SlotStrategy,
    Stragglers,
    TensorData,
)
from fedlightning.data.transforms import RandomCropFlip
from fedlightning.loggers import run_loggers
from fedlightning.methods import DeltaSGD, FedDane, FedExP, FedInit, FedSAM, Scaffnew

METHODS: dict[str, FedMethod] = {
    "plain": FedAvg(lr=0.1, clip_norm=1.0, weight_decay=0.01),
    "client state": Scaffold(lr=0.05),
    "first step": DeltaSGD(),
    "gradient pass": FedDane(lr=0.05, mu=0.1),
    "two gradients": FedSAM(lr=0.05, rho=0.05),
    "another point": FedExP(lr=0.05),
    "random coin": Scaffnew(lr=0.05, p=0.3, allow_partial=True),
    "start of its own": FedInit(lr=0.05, beta=0.1),
}
RUNNERS: dict[str, dict[str, Any]] = {
    "loop": {},
    "vmap": {"cohort_size": 3},
    "traced": {"cohort_size": 3},
    "compiled": {"cohort_size": 3},
}
HARD = ("dropout", "augmentation", "stragglers", "batch norm")
SLOTS = (1, 3)
SIZES = [9, 24, 13, 17, 8, 30, 12, 22, 10, 15]


def names() -> Iterator[tuple[str, str, str, int]]:
    """Every run; batch norm is for the loop alone."""
    for method in METHODS:
        for hard in HARD:
            for runner in RUNNERS if hard != "batch norm" else ["loop"]:
                for slots in SLOTS:
                    yield method, hard, runner, slots


def recorded_run(method: str, hard: str, runner: str, slots: int, folder: Path) -> FederatedTrainer:
    """Five rounds of images of 6x6 pixels over ten clients of unequal sizes, four of them a round."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sum(SIZES), 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (sum(SIZES),), generator=generator)
    own = Partition.of(torch.arange(sum(SIZES)).split(SIZES))
    crop = RandomCropFlip(padding=1) if hard == "augmentation" else None
    data = TensorData(Examples(images, labels), own, batching=Batching(5, epochs=2), augmentation=crop)
    torch.manual_seed(1)
    middle: nn.Module = nn.BatchNorm1d(8) if hard == "batch norm" else nn.Dropout(0.3 * (hard == "dropout"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), middle, nn.ReLU(), nn.Linear(8, 3))
    trainer = FederatedTrainer(
        max_rounds=5,
        clients_per_round=4,
        strategy=SlotStrategy(slots, runner=runner, **RUNNERS[runner]),
        callbacks=[ModelCheckpoint(monitor="test/loss", mode="min")],
        logger=run_loggers(folder, "run"),
        evaluate_every=2,
        stragglers=Stragglers(0.5) if hard == "stragglers" else None,
    )
    trainer.fit(METHODS[method], Classification(model, 3), data)
    return trainer


def digest(value: Any) -> str:
    """A hash of tensors, and of lists and dictionaries of them and of plain values."""
    found = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                visit(value[key])
        elif isinstance(value, list | tuple):
            found.update(str(len(value)).encode())
            for each in value:
                visit(each)
        else:
            found.update(repr(value).encode())

    visit(value)
    return found.hexdigest()[:16]


def as_before(recorded: Any) -> Any:
    """What was logged and saved as JSON, with the names of the test set that runs were first recorded with."""
    text = json.dumps(recorded)
    for name in ("test/", "test_clients/", "test_loss"):
        text = text.replace(name, f"val{name.removeprefix('test')}")
    return json.loads(text)


def record(name: tuple[str, str, str, int]) -> dict[str, str]:
    """The hashes of one run."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        trainer = recorded_run(*name, Path(folder))
        state = trainer.state
        saved = torch.load(trainer.log_dir / "checkpoints" / "last.ckpt", weights_only=True)
        meta = json.loads(saved.pop("meta"))
        with (trainer.log_dir / "metrics.csv").open(newline="") as file:
            rows = [{k: v for k, v in row.items() if not k.startswith("throughput/")} for row in csv.DictReader(file)]
    return {
        "server": digest(dict(state.server)),
        "rows": digest({client: dict(row) for client, row in state.memory.rows().items()}),
        "buffers": digest(state.buffers),
        "checkpoint": digest({key: value for key, value in saved.items() if key != "digest"}),
        "json": digest(as_before({key: meta[key] for key in ("round", "callbacks")})),
        "metrics.csv": digest(as_before(rows)),
    }


def main(argv: list[str]) -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(prog="bits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="runs whose names hold this text")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args(argv)
    wanted = [name for name in names() if given.only in ", ".join(map(str, name))]
    # Forked processes would inherit torch's threads.
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        found = {
            ", ".join(map(str, name)): hashes for name, hashes in zip(wanted, pool.map(record, wanted), strict=True)
        }
    if given.what == "record":
        given.file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} runs in {given.file}")
        return 0
    before: dict[str, dict[str, str]] = json.loads(given.file.read_text())
    new = [name for name in found if name not in before]
    wrong = {
        name: [part for part in found[name] if found[name][part] != before[name].get(part)]
        for name in found
        if name in before and found[name] != before[name]
    }
    for name, parts in wrong.items():
        print(f"{name}: {', '.join(parts)}")
    print(f"{len(found) - len(wrong) - len(new)} of {len(found)} runs are equal" + f", {len(new)} are new" * bool(new))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
