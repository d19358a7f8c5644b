"""How the figures look: panels of curves with the sizes, styles and colours of the paper's own scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedlightning.analysis.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

GREY = "#dddddd"


class Look(NamedTuple):
    """How a line is drawn: its label in the legend, its style and its colour."""

    label: str
    style: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        lines: each with its values by round.
        title: above it.
        label: of its y axis.
        rounds: the last one that is drawn.
        stride: every so many rounds are drawn.
        limits: of its y axis; None leaves them to matplotlib.
    """

    lines: Sequence[tuple[Look, Mapping[int, float]]]
    title: str
    label: str
    rounds: int
    stride: int = 1
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sheet:
    """Rows of panels.

    Attributes:
        rows: all of one length.
        panel: width and height of a panel in inches.
        names: of the rows, at the left edge; none if empty.
        shared: one bold legend below all panels, bold titles, and x axes that end at the last round; otherwise a legend in
            the last panel of the first row, unless it has more than three lines.
    """

    rows: Sequence[Sequence[Panel]]
    panel: tuple[float, float]
    names: Sequence[str] = ()
    shared: bool = False


def save(sheet: Sheet, stem: Path) -> list[Path]:
    """Draw a sheet as `<stem>.pdf` and `<stem>.png`."""
    return write_figure(draw(sheet), stem, dpi=80)


def draw(sheet: Sheet) -> "Figure":
    """Draw a sheet with matplotlib's Agg backend, without its global state."""
    columns = len(sheet.rows[0])
    figure = new_figure(sheet.panel[0] * columns, sheet.panel[1] * len(sheet.rows))
    grid = figure.subplots(len(sheet.rows), columns, squeeze=False)
    for axes, panels in zip(grid, sheet.rows, strict=True):
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, sheet.shared)
    for ax in grid[-1]:
        ax.set_xlabel("# Rounds", fontsize=22)
    for ax, name in zip(grid[:, 0], sheet.names, strict=False):
        ax.set_ylabel(f"{name}\n{ax.get_ylabel()}", fontsize=20)
    lines = grid[0, -1].get_lines()
    if sheet.shared or len(lines) > 3:
        _legend_below(figure, lines, columns)
    else:
        grid[0, -1].legend(fontsize=18 if len(lines) < 3 else 13)
    return figure


def _draw_panel(axes: "Axes", panel: Panel, shared: bool) -> None:
    for look, values in panel.lines:
        drawn = [t for t in sorted(values) if t % panel.stride == 0 and t <= panel.rounds]
        height = [values[t] for t in drawn]
        axes.plot(drawn, height, linestyle=look.style, color=look.colour, linewidth=3, label=look.label)
    axes.set_title(panel.title, fontsize=22, fontweight="bold" if shared else "normal")
    axes.set_ylabel(panel.label, fontsize=22)
    axes.tick_params(color=GREY, labelsize=17)
    axes.spines[:].set_color(GREY)
    if shared:
        axes.set_xlim(0, panel.rounds)
    if panel.limits is not None:
        axes.set_ylim(panel.limits)


def _legend_below(figure: "Figure", lines: Sequence["Line2D"], columns: int) -> None:
    side_by_side = 1 if columns < 3 else 3 if len(lines) < 4 else 2
    figure.legend(
        lines,
        [str(line.get_label()) for line in lines],
        loc="outside lower center",
        ncols=side_by_side,
        frameon=False,
        prop={"weight": "bold", "size": 26 if side_by_side == 3 else 18},
    )
