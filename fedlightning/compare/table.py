"""The runs of a comparison, and the table that they add up to."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedlightning._checked import COUNT, check_fields, checked
from fedlightning.compare.diary import read_diary, write
from fedlightning.errors import ConfigurationError

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Outcome:
    """One run, as its folder holds it.

    Attributes:
        name: of the method.
        seed: of the run.
        folder: of its logs, checkpoints and `run.json`.
        curve: the metric by evaluated round.
        rounds: finished rounds.
        seconds: wall time, summed over the pieces of a run that was stopped; rounds that were lost and run again count
            twice, for that is the time that was spent.
        up_bytes, down_bytes: sent by and to all participants, over all rounds.
        failure: why it diverged, or None.
    """

    name: str
    seed: int
    folder: Path
    curve: Mapping[int, float]
    rounds: int
    seconds: float
    up_bytes: float
    down_bytes: float
    failure: str | None

    def final(self, last: int = 1) -> float:
        """The mean of the last evaluations."""
        return statistics.fmean([self.curve[t] for t in sorted(self.curve)][-last:])

    def best(self, mode: Mode = "max") -> float:
        """The best of all evaluations."""
        return (max if mode == "max" else min)(self.curve.values())

    def rounds_to(self, target: float | None, mode: Mode = "max") -> int | None:
        """The first evaluated round whose metric is as good as the target; None where there is none."""
        if target is None:
            return None
        sign = 1 if mode == "max" else -1
        return next((t for t in sorted(self.curve) if sign * self.curve[t] >= sign * target), None)


@dataclass(frozen=True)
class Tuned:
    """The point of a grid that a method is shown with.

    Attributes:
        values: by field.
        grid: what was tried, by field.
    """

    values: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]

    def cells(self) -> dict[str, str]:
        """The point, and what it was chosen from, as a table shows them."""
        tried = {key: few for key, few in self.grid.items() if len(few) > 1}
        return {
            "tuned": ", ".join(f"{key} {value}" for key, value in self.values.items()),
            "from": "; ".join(f"{key} {', '.join(map(str, few))}" for key, few in tried.items()),
        }


@dataclass(frozen=True)
class Table:
    """What `compare` returns: the runs, and their summary by method.

    Attributes:
        outcomes: the runs that count, method by method, seeds in their order.
        metric: of the evaluations that is compared.
        mode: whether a larger ("max") or a smaller ("min") one is better.
        target: that rounds are counted to, or None.
        last: evaluations whose mean is the final value.
        tuned: the point of the grid of each method that has one.
        tuning: how the points were chosen, in a sentence; empty where nothing was tuned.
    """

    outcomes: tuple[Outcome, ...]
    metric: str = "test/accuracy"
    mode: Mode = "max"
    target: float | None = None
    last: int = 1
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    tuning: str = ""

    def __post_init__(self) -> None:
        check_fields(self, last=COUNT)

    @property
    def names(self) -> list[str]:
        """The methods."""
        return list(dict.fromkeys(outcome.name for outcome in self.outcomes))

    def of(self, name: str) -> list[Outcome]:
        """The runs of a method."""
        return [outcome for outcome in self.outcomes if outcome.name == name]

    def rows(self) -> list[dict[str, Any]]:
        """One row a method: means over the seeds, and sample standard deviations (None for fewer than two seeds).

        Runs that diverged are counted and left out of the means; `rounds_to_target` is the mean over `seeds_at_target`.
        Where a method was tuned, all rows say what was, and from which grid.
        """
        return [self._row(name) for name in self.names]

    def _row(self, name: str) -> dict[str, Any]:
        runs = self.of(name)
        whole = [run for run in runs if run.failure is None]
        final, best = [run.final(self.last) for run in whole], [run.best(self.mode) for run in whole]
        reached = [t for run in whole if (t := run.rounds_to(self.target, self.mode)) is not None]
        return {
            "method": name,
            **self._tuned_cells(name),
            "final": _mean(final),
            "final_std": _std(final),
            "best": _mean(best),
            "best_std": _std(best),
            "rounds_to_target": _mean(reached),
            "seeds_at_target": len(reached),
            "seeds": len(runs),
            "diverged": len(runs) - len(whole),
            "seconds": _mean([run.seconds for run in runs]),
            "up_bytes": _mean([run.up_bytes for run in whole]),
            "down_bytes": _mean([run.down_bytes for run in whole]),
        }

    def _tuned_cells(self, name: str) -> dict[str, str]:
        """What was tuned, in the columns of a table that has them."""
        return self.tuned.get(name, Tuned({}, {})).cells() if self.tuned else {}

    def __str__(self) -> str:
        """The table for a terminal."""
        lines, words = [self._headings(), *map(self._cells, self.rows())], self._words
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            [*map(str.ljust, cells[:words], widths), *map(str.rjust, cells[words:], widths[words:])] for cells in lines
        )
        return "\n".join("  ".join(cells).rstrip() for cells in aligned)

    def markdown(self) -> str:
        """The table in Markdown."""
        headings, words = self._headings(), self._words
        rules = ["---"] * words + ["---:"] * (len(headings) - words)
        lines = [headings, rules, *map(self._cells, self.rows())]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def csv(self) -> str:
        """The rows as they are, without rounding; a field without a value is empty."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def save(self, folder: str | Path, about: str = "") -> list[Path]:
        """Write `table.txt`, `table.csv` and `table.md`, the last one below what `about` says of it."""
        above = f"{about}\n\n" if about else ""
        texts = {"table.txt": f"{self}\n", "table.csv": self.csv(), "table.md": f"{above}{self.markdown()}\n"}
        paths = [Path(folder, name) for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            write(path, text)
        return paths

    @property
    def scale(self) -> int:
        """Accuracies are shown in percent: 100 for them, else 1."""
        return 100 if self.metric.endswith("accuracy") else 1

    @property
    def _words(self) -> int:
        """Columns of words, which come before those of numbers."""
        return 3 if self.tuned else 1

    def _headings(self) -> list[str]:
        what = self.metric.rpartition("/")[2] + " %" * (self.scale == 100)
        target = [] if self.target is None else [f"rounds to {self.scale * self.target:g}"]
        tuned = ["tuned", "from"] if self.tuned else []
        return ["method", *tuned, f"final {what}", f"best {what}", *target, "seconds", "MB up", "MB down"]

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        failed = f" ({row['diverged']} of {row['seeds']} diverged)" * bool(row["diverged"])
        both = [self._spread(row[key], row[f"{key}_std"]) for key in ("final", "best")]
        missed = row["seeds"] - row["seeds_at_target"]
        never = f"never in {missed} of {row['seeds']}" * bool(missed)
        reached = "" if row["rounds_to_target"] is None else f"{row['rounds_to_target']:.4g}"
        target = [] if self.target is None else [", ".join(filter(None, (reached, never)))]
        sent = ["" if row[key] is None else f"{row[key] / 1e6:,.4g}" for key in ("up_bytes", "down_bytes")]
        words = [row["method"], *self._tuned_cells(row["method"]).values()]
        return [*words, (both[0] + failed).strip(), both[1], *target, f"{row['seconds']:.4g}", *sent]

    def _spread(self, mean: float | None, std: float | None) -> str:
        if mean is None:
            return ""
        digits = 2 if self.scale == 100 else 4
        deviation = "" if std is None else f" ± {self.scale * std:.{digits}f}"
        return f"{self.scale * mean:.{digits}f}{deviation}"


@checked()
def read_run(folder: Path, name: str, seed: int, metric: str = "test/accuracy") -> Outcome:
    """A finished run from its folder.

    Raises:
        ConfigurationError: its metrics.csv cannot be read, a round is missing from it, or it has no such metric.
    """
    path, diary = folder / "metrics.csv", read_diary(folder)
    if not diary.get("pieces") or not path.is_file():
        raise ConfigurationError(f"{folder.absolute()} must be the folder of a run of a comparison, but holds none.")
    rounds: int = diary["pieces"][-1]["to"]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file)}
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise ConfigurationError(
            f"{path} must hold each of {rounds} rounds, but cannot be read ({type(error).__name__}: {error}); move {folder} away "
            "and run it again."
        ) from error
    missing = sorted(set(range(rounds + 1)) - set(rows))
    curve = {t: float(rows[t][metric]) for t in sorted(rows) if rows[t].get(metric)}
    if missing or not curve:
        lacks = f"round {missing[0]}" if missing else f"the metric {metric!r}"
        raise ConfigurationError(
            f"{path} must hold each of {rounds} rounds and {metric!r}, but lacks {lacks}; move {folder} away and run it again."
        )
    up, down = (
        math.fsum(float(row.get(f"communication/{w}_bytes") or 0) for row in rows.values()) for w in ("up", "down")
    )
    seconds = sum(piece["seconds"] for piece in diary["pieces"])
    return Outcome(name, seed, folder, curve, rounds, seconds, up, down, diary["failure"])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
