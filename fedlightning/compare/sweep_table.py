"""The table of all points of a sweep."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlightning.compare.diary import write
from fedlightning.compare.names import assigned
from fedlightning.compare.sweeps import SWEPT, Point
from fedlightning.compare.table import Table

MEASURED = ("B", "variance", "classes")
"""What may be known of the clients' heterogeneity: see `fedlightning.analysis`."""


def rows_of(point: Point, table: Table, measured: Mapping[str, float]) -> list[dict[str, Any]]:
    """A point's rows: what is swept, what was measured, and the rows of its own table, with a label for figures."""
    flags = {key: value for key, value in point.swept.items() if key in SWEPT and key != "alpha"}
    return [
        {**point.swept, **measured, "label": ", ".join([row["method"], *assigned(flags)]), **row}
        for row in table.rows()
    ]


def save_sweep(rows: Sequence[Mapping[str, Any]], swept: Sequence[str], scale: int, folder: Path) -> list[Path]:
    """Write `sweep.csv`, and `sweep.md` with the columns that matter.

    Args:
        rows: of all points.
        swept: the names of what is swept.
        scale: see `Table`.
        folder: where to.
    """
    text, paths = io.StringIO(), [folder / "sweep.csv", folder / "sweep.md"]
    names = [name for name in rows[0] if name != "label"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    shown = [*swept, *(key for key in MEASURED if key in rows[0]), "method", "final", "best"]
    lines = [shown, ["---"] * len(shown), *([_cell(row, key, scale) for key in shown] for row in rows)]
    write(paths[0], text.getvalue())
    write(paths[1], "".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return paths


def _cell(row: Mapping[str, Any], key: str, scale: int) -> str:
    if key not in ("final", "best"):
        return f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
    if row[key] is None:
        return "diverged"
    return f"{scale * row[key]:.2f}" + ("" if row[f"{key}_std"] is None else f" ± {scale * row[f'{key}_std']:.2f}")
