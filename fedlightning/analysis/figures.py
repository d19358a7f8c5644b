"""How the analyses and the recipes draw: with matplotlib's Agg backend, without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedlightning.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from fedlightning.trainer import FederatedTrainer


def require_matplotlib(owner: str) -> None:
    """Check that one can draw, before a run is spent on what is to be drawn.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f'{owner} draws with matplotlib, but it cannot be imported; run `pip install -e ".[figures]"`.'
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def whole_numbers(axis: Axis) -> None:
    """Put an axis' ticks at integers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def write_figure(figure: Figure, stem: Path, dpi: int = 120) -> list[Path]:
    """Write `<stem>.pdf` and `<stem>.png`; the same values give the same files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    for path, metadata in zip(paths, ({"CreationDate": None}, {}), strict=True):
        figure.savefig(path, dpi=dpi, metadata=metadata)
    return paths


def save_figure(trainer: FederatedTrainer, name: str, figure: Figure) -> None:
    """Write a figure to the run's folder as `<name>.png`; a run without a logger has none."""
    if trainer.loggers:
        trainer.log_dir.mkdir(parents=True, exist_ok=True)
        figure.savefig(trainer.log_dir / f"{name}.png", dpi=120)


def log_figure(trainer: FederatedTrainer, name: str, figure: Figure) -> None:
    """Show a figure at the trainer's round in those loggers that can, e.g. TensorBoard.

    To be called after the first metrics of this fit, which open TensorBoard's file.
    """
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        if add_figure is not None:
            add_figure(name, figure, trainer.round)
            logger.save()
