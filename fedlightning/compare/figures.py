"""The figures of a comparison: a curve for each method, and accuracy against heterogeneity."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedlightning.analysis.figures import new_figure
from fedlightning.compare.table import Outcome, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "alpha": "α of the partition",
    "B": "B at the start model",
    "classes": "effective classes a client",
}
"""What accuracy is drawn against, with the labels of the axes."""


def curves(table: Table, title: str, work: str) -> Figure:
    """One curve a method, the mean over the seeds, with a band of one sample deviation where there are several seeds.

    Args:
        table: the runs.
        title: above them.
        work: what a round is.
    """
    figure = new_figure(11, 4.5)
    axes = figure.subplots()
    for index, name in enumerate(table.names):
        mean, deviation = _mean_curve([run for run in table.of(name) if run.failure is None])
        if not mean:
            axes.plot([], [], color=_colour(index), label=f"{name} (diverged)")
            continue
        rounds, middle = list(mean), [table.scale * value for value in mean.values()]
        axes.plot(rounds, middle, color=_colour(index), linestyle=_style(index), linewidth=1.8, label=name)
        if deviation:
            spread = [table.scale * deviation[t] for t in rounds]
            low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(rounds, low, high, color=_colour(index), alpha=0.18, linewidth=0)
    if table.target is not None:
        axes.axhline(table.scale * table.target, color="#888888", linewidth=0.8, linestyle=":", label="_target")
    if table.scale == 100:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    axes.set_title(title)
    axes.set_xlabel(f"round ({work})")
    axes.set_ylabel(_metric(table))
    _finish(figure, axes)
    return figure


def heterogeneity(rows: Sequence[dict[str, Any]], table: Table, title: str) -> Figure:
    """Final accuracy against α and against what was measured; one line a method, bars of one deviation over the seeds.

    Args:
        rows: of the sweep's table, with "label", "final", "final_std" and the keys of `AXES`.
        table: of any point, for the metric.
        title: above all.
    """
    figure = new_figure(13, 4.5)
    panels = figure.subplots(1, len(AXES), sharey=True)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    for axes, (key, text) in zip(panels, AXES.items(), strict=True):
        for index, label in enumerate(labels):
            found = [row for row in rows if row["label"] == label and row["final"] is not None]
            line = sorted({(row[key], row["final"], row["final_std"] or 0.0) for row in found})
            x, y, bar = ([entry[part] for entry in line] for part in range(3))
            y, bar = [table.scale * value for value in y], [table.scale * value for value in bar]
            axes.errorbar(x, y, bar, color=_colour(index), linestyle=_style(index), marker="o", capsize=3, label=label)
        axes.set_xlabel(text)
        if key == "alpha":
            axes.set_xscale("log")
    panels[0].set_ylabel(f"final {_metric(table)}")
    figure.suptitle(title)
    _finish(figure, panels[0])
    for axes in panels[1:]:
        _plain(axes)
    return figure


def _mean_curve(runs: Sequence[Outcome]) -> tuple[dict[int, float], dict[int, float]]:
    """Mean and sample deviation over the runs, in the rounds that all of them evaluated; no deviation of a single run."""
    shared = sorted(set.intersection(*(set(run.curve) for run in runs))) if runs else []
    mean = {t: statistics.fmean(run.curve[t] for run in runs) for t in shared}
    several = len(runs) > 1
    return mean, {t: statistics.stdev(run.curve[t] for run in runs) for t in shared} if several else {}


def _metric(table: Table) -> str:
    return table.metric.rpartition("/")[2] + " (%)" * (table.scale == 100)


def _finish(figure: Figure, axes: Axes) -> None:
    """A legend beside the panels, which covers no curve."""
    _plain(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _style(index: int) -> str:
    return ("-", "--", "-.", ":")[index // 10 % 4]
