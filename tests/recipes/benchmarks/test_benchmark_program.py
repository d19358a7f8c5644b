"""The program of the benchmarks: what it writes, what it keeps, and what it refuses."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_workloads import TINY
from tiny_workloads import made_up_result as result

from fedlightning.execution.runners.compiled import build as packages
from recipes.benchmarks import __main__ as benchmarks
from recipes.benchmarks import figure
from recipes.benchmarks.rows import Row
from recipes.benchmarks.sitting import Failed, Interpreter
from recipes.benchmarks.table import Table


def test_the_program_writes_table_numbers_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `figures`")
    if packages.compiler() is None:
        pytest.skip("a row of compiled steps needs a C++ compiler")
    sizes = [f"{name}={value}" for name, value in TINY["crop"].items() if name != "rounds"]
    arguments = ["--workloads", "crop", "--only", "plain", "ours", "--rounds", "2", "--repeat", "1", "--sizes", *sizes]
    assert benchmarks.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "left out, no fedlightning in" in shown
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    kind = " (no GIL)" * Interpreter.probe(sys.executable).free
    assert [row["row"] for row in content["rows"]] == [
        f"{name}{kind}" for name in ("plain loop", "ours, one slot", "ours, auto", "ours, compiled, two slots")
    ]
    assert [len(row["repetitions"]) for row in content["rows"]] == [1, 1, 1, 1]
    assert content["bounds"] == []  # of other sizes
    assert content["repetitions"] == "1"
    assert (tmp_path / "out" / "table.md").read_text() in shown
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_failures_are_noted_and_what_was_measured_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table({})
    plain, pfl, ours = (Row("cnn", name) for name in ("plain", "pfl", "ours"))
    asked: list[Any] = []

    def measure(row: Any) -> dict[str, Any]:
        asked.append(row)
        if row == pfl:
            raise Failed("it broke")
        if len(asked) == 5:
            raise KeyboardInterrupt
        return result(1.0)

    assert benchmarks.measure([plain, pfl, ours], SimpleNamespace(measure=measure), table, 2) == 130
    assert asked == [plain, pfl, ours, plain, ours]
    assert {row: len(found) for row, found in table.results.items()} == {plain: 2, ours: 1}
    assert table.missing == {pfl: "it broke"}
    assert "failed: it broke" in capsys.readouterr().out
    asked.clear()
    again = Table({})
    assert benchmarks.measure([plain, pfl], SimpleNamespace(measure=measure), again, 1) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "at least 2"),
        (["--repeat", "0"], "at least 1"),
        (["--sizes", "clients"], "clients=1000"),
        (["--sizes", "lr=3"], "not 'lr'"),
        (["--workloads", "mnist"], "invalid choice"),
        (["--only", "tff"], "invalid choice"),
        (["--repeat", "many"], "invalid int value"),
        (["--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmarks.parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks: error: ")
    assert message in line
    assert line.endswith("; `--help` lists what there is.")


def test_without_matplotlib_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main([])
    assert "figures" in capsys.readouterr().err


def test_a_sitting_without_a_framework_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figure, "can_draw", lambda: True)
    nothing = Interpreter("python", "3.11", False, ())
    monkeypatch.setattr(Interpreter, "probe", lambda path: nothing)
    with pytest.raises(SystemExit, match="none could be"):
        benchmarks.main(["--workloads", "cnn", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
