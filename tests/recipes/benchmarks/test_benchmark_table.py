"""The table of a sitting: its rows, its medians, its bounds, and what it says is missing."""

import json

import pytest
from recipe_runner import RECIPES
from tiny_workloads import made_up_result as result

from recipes.benchmarks import ours, rows
from recipes.benchmarks.rows import Row
from recipes.benchmarks.table import MEASURES, Table
from recipes.benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.quick


def test_rows_and_bounds_belong_together() -> None:
    assert len(set(rows.ROWS)) == len(rows.ROWS) == len({(row.workload, row.label) for row in rows.ROWS})
    assert all((RECIPES / "benchmarks" / f"{row.adapter}.py").is_file() for row in rows.ROWS)
    assert {row.adapter for row in rows.ROWS} == set(rows.PACKAGES)
    assert {row.workload for row in rows.ROWS} == set(WORKLOADS)
    assert all(row.mode in ours.MODES for row in rows.ROWS if row.adapter == "ours")
    assert all(rows.reference(row) in rows.ROWS for row in rows.ROWS)
    for bound in rows.BOUNDS:
        assert bound.ours.adapter == "ours"
        assert {bound.ours, *bound.against} <= set(rows.ROWS)
        assert {row.workload for row in bound.against} == {bound.ours.workload}
        assert bound.measure in MEASURES
    asked = {
        ("fedprox", "step", 0.030), ("fedprox", "step", 0.28), ("fedprox", "wall", 0.018), ("fedprox_run", "total", 0.40),
        ("fedprox_run", "total", 0.05), ("cnn", "wall", 0.50), ("cnn", "wall", 0.75), ("cnn", "wall", 0.45),
        ("cnn", "wall", 0.20), ("cnn", "wall", 0.95), ("crop", "wall", 0.15), ("regression", "wall", 0.08),
        ("cnn", "peak", 1.3), ("fedprox", "peak", 1.3), ("crop", "peak", 1.3), ("regression", "peak", 1.3),
    }  # fmt: skip
    assert {(bound.ours.workload, bound.measure, bound.at_most) for bound in rows.BOUNDS} == asked


@pytest.fixture
def table() -> Table:
    return Table({"date": "2026-01-02", "machine": "a machine"})


def test_measures_are_medians_over_the_repetitions(table: Table) -> None:
    plain, ours = Row("cnn", "plain"), Row("cnn", "ours", "auto")
    for wall in (1.0, 2.0, 9.0):
        table.add(plain, result(wall))
    table.add(ours, result(0.5, peak=150.0))
    found = {
        name: table.median(plain, name) for name in ("wall", "processor", "step", "total", "first", "peak", "beyond")
    }
    assert found == pytest.approx(
        {"wall": 2, "processor": 8, "step": 98_000, "total": 100, "first": 5, "peak": 100, "beyond": 70}
    )
    assert table.ratio(ours, "wall") == 0.25
    assert table.ratio(ours, "peak") == 1.5
    assert table.ratio(ours, "wall", (plain, ours)) == 1.0
    assert table.ratio(Row("cnn", "ours", "auto", free=True), "wall") is None
    table.add(Row("crop", "plain"), result(1.0, peak=None))
    assert table.median(Row("crop", "plain"), "peak") is None
    assert table.median(Row("crop", "plain"), "beyond") is None


def test_bounds_hold_are_missed_or_were_not_measured(table: Table) -> None:
    for one, wall in (
        (Row("cnn", "plain", free=True), 1.0),
        (Row("cnn", "ours", "auto", free=True), 0.46),
        (Row("cnn", "blazefl", "single", free=True), 0.9),
        (Row("cnn", "blazefl", "threads", free=True), 0.6),
        (Row("cnn", "flower"), 2.3),
    ):
        table.add(one, result(wall, blazefl="3.0", flwr="1.41"))
    verdicts = {
        (v.bound.against[0].adapter, v.bound.measure, v.bound.ours.free): (v.ratio, v.holds)
        for v in table.verdicts()
        if v.bound.ours.mode == "auto"
    }
    assert verdicts["plain", "wall", True] == (pytest.approx(0.46), True)
    assert verdicts["blazefl", "wall", True] == (pytest.approx(0.46 / 0.6), False)
    assert verdicts["flower", "wall", True] == (pytest.approx(0.2), True)
    assert verdicts["pfl", "wall", True] == (None, None)
    assert verdicts["plain", "wall", False] == (None, None)
    assert {v.bound.ours.workload for v in table.verdicts()} == {"cnn"}
    assert Table({}, standard=False, results=table.results).verdicts() == []


def test_the_table_names_versions_and_what_is_missing(table: Table) -> None:
    table.add(Row("cnn", "plain"), result(2.0))
    table.add(Row("cnn", "pfl"), result(3.0, pfl="0.6.0"))
    table.add(Row("scale", "ours", "one slot", sizes=(("clients", 100),)), result(0.001))
    table.add(Row("scale", "ours", "one slot", sizes=(("clients", 10_000),)), result(0.002, peak=65.0))
    table.missing[Row("cnn", "flower")] = "it ended with status 1: no space"
    lines = table.markdown().splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith("| ")
    }
    assert cells["plain loop"] == ["2", "1", "98,000", "8", "1", "5", "100", "1", "3.11.7, GIL on"]
    assert cells["pfl 0.6.0"][:2] == ["3", "1.5"]
    assert cells["ours, one slot, 10,000 clients"][:2] == ["0.002", "2"]
    assert cells["ours, one slot, 10,000 clients"][6:8] == ["35", "0.5"]  # the partition's 30 MiB are left out
    assert "* date: 2026-01-02" in lines
    assert "* packages: torch 2.9" in lines
    assert "* cnn: Flower: it ended with status 1: no space" in lines
    assert any(
        line.startswith("| cnn | ours, auto | wall a round | plain loop | 0.95 | – | not measured") for line in lines
    )
    assert json.loads(json.dumps(table.as_json()))["rows"][1]["repetitions"][0]["versions"]["pfl"] == "0.6.0"
