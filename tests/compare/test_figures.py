"""A curve for each method, with a band over the seeds."""

import math
from pathlib import Path

import pytest

from fedlightning.compare import Outcome, Table, figures

pytest.importorskip("matplotlib", reason="drawing needs the extra `figures`")

pytestmark = pytest.mark.quick


def outcome(name: str, seed: int, curve: dict[int, float], failure: str | None = None) -> Outcome:
    return Outcome(name, seed, Path(), curve, max(curve), 1.0, 0.0, 0.0, failure)


def test_a_curve_a_method_and_a_band_where_there_are_seeds() -> None:
    runs = [
        outcome("a", 0, {0: 0.1, 2: 0.5}),
        outcome("a", 1, {0: 0.3, 2: 0.7}),
        outcome("b", 0, {0: 0.1, 2: 0.4}),
        outcome("b", 1, {0: 0.1}, "diverged"),
        outcome("c", 0, {0: 0.1}, "diverged"),
    ]
    (axes,) = figures.curves(Table(tuple(runs), target=0.6), "title", "10 clients").get_axes()
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["a", "b", "c (diverged)", "_target"]
    assert list(lines["a"].get_xdata()) == [0, 2]
    assert list(lines["a"].get_ydata()) == pytest.approx([20, 60])
    assert list(lines["b"].get_ydata()) == pytest.approx([10, 40])
    (band,) = axes.collections
    heights = {round(float(y), 6) for _, y in band.get_paths()[0].vertices}
    deviation = 100 * math.sqrt(0.02)
    assert heights == {round(middle + sign * deviation, 6) for middle in (20, 60) for sign in (-1, 1)}
    assert len(figures.curves(Table(tuple(runs[:2]) * 2), "", "").get_axes()[0].collections) == 1
