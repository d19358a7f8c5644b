"""What a recipe says when its run has ended: where it is, how it went, and what can be done with it."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from fedlightning.callbacks.base import Callback
from fedlightning.callbacks.monitor import Mode, Monitored
from fedlightning.callbacks.progress import clock


def ending(folder: Path, callbacks: Sequence[Callback], seconds: float, goes_on: str | None) -> str:
    """The lines at the end of a run.

    Args:
        folder: of the run.
        callbacks: of the run, one of which may watch a metric.
        seconds: how long it took.
        goes_on: the command that goes on with it; None if there is none.
    """
    lines = [f"The run is in {folder}; it took {clock(seconds)}."]
    lines += _metric(folder, callbacks)
    lines.append(f"Look at it:    tensorboard --logdir {shlex.quote(str(folder))}")
    lines += [f"Go on with it: {goes_on}"] if goes_on else []
    return "\n".join(lines)


def again(recipe: Path, folder: Path, rounds: int) -> str:
    """The command that goes on with a run for more rounds."""
    near = os.path.relpath(recipe)
    words = ["python", str(recipe) if near.startswith("..") else near, "--config", str(folder / "config.yaml")]
    return shlex.join([*words, "--rounds", str(rounds), "--resume", "last", "--name", folder.name])


def _metric(folder: Path, callbacks: Sequence[Callback]) -> list[str]:
    """The last and the best value of the metric that is watched, or of the accuracy, or of the loss."""
    usual: list[tuple[str, Mode]] = [("test/accuracy", "max"), ("test/loss", "min")]
    watched = [(one.watched, one.mode) for one in callbacks if isinstance(one, Monitored) and one.watched is not None]
    for metric, mode in [*watched, *usual]:
        if curve := _curve(folder / "metrics.csv", metric):
            last, best = max(curve), (max if mode == "max" else min)(curve, key=curve.__getitem__)
            return [f"{metric} {curve[last]:.4g} after round {last}, best {curve[best]:.4g} after round {best}."]
    return []


def _curve(path: Path, metric: str) -> dict[int, float]:
    """A metric's values by round, as far as they can be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get(metric) and (row.get("step") or "").isdecimal()]
        return {int(row["step"]): float(row[metric]) for row in rows}
    except (OSError, ValueError, csv.Error):
        return {}
