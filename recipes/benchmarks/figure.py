"""The picture of a sitting: for each workload a bar for each row, as a ratio to the plain loop."""

from pathlib import Path
from typing import TYPE_CHECKING

from recipes.benchmarks.rows import BOUNDS, Row, reference
from recipes.benchmarks.table import MEASURES, Table, headline
from recipes.benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN, OURS, RIVAL, LIMIT = "#555555", "#1f77b4", "#c9c9c9", "#d62728"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def save(table: Table, path: Path) -> None:
    """Draw the workloads that have a ratio below one another; the same numbers give the same file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {
        workload: [row for row in table.rows(workload) if table.ratio(row, headline(workload))]
        for workload in table.workloads
    }
    drawn = {workload: rows for workload, rows in drawn.items() if rows}
    counts = [len(rows) for rows in drawn.values()]
    figure = Figure((9, 0.9 + sum(0.28 * count + 0.75 for count in counts)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(counts), 1, squeeze=False, height_ratios=[count + 1 for count in counts])
    for axes, (workload, rows) in zip(grid[:, 0], drawn.items(), strict=True):
        _panel(axes, table, workload, rows)
    title = [table.context["date"], table.context["machine"], table.packages, "red: the bound of a row"]
    figure.suptitle("; ".join(title), fontsize=8, color=PLAIN)
    figure.savefig(path, dpi=120)


def _panel(axes: "Axes", table: Table, workload: str, rows: list[Row]) -> None:
    """Bars, their numbers, and a mark where a bound lies."""
    measure = headline(workload)
    ratios = [table.ratio(row, measure) or 0.0 for row in rows]
    axes.barh(range(len(rows)), ratios, color=[_colour(row) for row in rows], height=0.7)
    for place, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        axes.annotate(f"{ratio:.3g}", (ratio, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        for bound in BOUNDS if table.standard else ():
            if (bound.ours, bound.against, bound.measure) == (row, (reference(row),), measure):
                axes.plot([bound.at_most] * 2, [place - 0.45, place + 0.45], color=LIMIT, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [table.label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(axis="x", labelsize=8)
    to = "100 clients" if workload == "scale" else "the plain loop"
    axes.set_title(f"{WORKLOADS[workload].title}: {MEASURES[measure]}, to {to}", fontsize=9, loc="left")
    axes.axvline(1, color=PLAIN, linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)


def _colour(row: Row) -> str:
    return {"plain": PLAIN, "ours": OURS}.get(row.adapter, RIVAL)
