"""How comparisons are followed."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedlightning.compare import Outcome, Progress
from fedlightning.compare.board import Board

DONE = Outcome("a", 0, Path(), {0: 0.25}, 0, 1.0, 0.0, 0.0, None)

pytestmark = pytest.mark.quick


def test_the_board_is_a_table_in_a_terminal_and_lines_elsewhere() -> None:
    terminal, plain = io.StringIO(), io.StringIO()
    for target, is_terminal in ((terminal, True), (plain, False)):
        console = Console(file=target, force_terminal=is_terminal, width=100, soft_wrap=True)
        with Board(console) as shown:
            shown.goes_on("Here", Progress("b", 7, 3, 9, 0.5))
            shown.ended("Here", DONE)
            shown.ended("There", DONE)
    assert all(text in terminal.getvalue() for text in ("Here", "There", "seed 0", "seed 7", "0.5000, round 3 of 9"))
    assert plain.getvalue().splitlines() == [
        f"{where}: a, seed 0: 0.2500, 0 rounds, 1 s" for where in ("Here", "There")
    ]


def test_a_comparison_that_has_ended_leaves_the_table() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    with Board(console) as shown:
        shown.ended("Here", DONE)
        shown.close("Here")
        terminal.truncate(0)
        shown.ended("There", DONE)
    assert "There" in terminal.getvalue()
    assert "Here" not in terminal.getvalue()


def test_a_line_now_and_then() -> None:
    for pause, lines in (
        (0.0, ["Here: a, seed 0: 0.5000, round 1 of 2", "Here: a, seed 0: 0.7500, round 2 of 2"]),
        (60.0, []),
    ):
        plain = io.StringIO()
        shown = Board(Console(file=plain, width=100), pause)
        shown.goes_on("Here", Progress("a", 0, 1, 2, 0.5))
        shown.goes_on("Here", Progress("a", 0, 2, 2, 0.75))
        assert plain.getvalue().splitlines() == lines
