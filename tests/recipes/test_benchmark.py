"""The program that measures a round here and in other frameworks: the work is the same, and the table says what was measured."""

import importlib
import importlib.util
import json
import math
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recipe_runner import RECIPES

from fedlightning import FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.contrib.fedprox_program import RoundSeeded
from fedlightning.execution.runners.compiled import build as packages

NAMES = ("workloads", "meter", "networks", "plain", "ours", "rows", "sitting", "table", "figure")
TINY: dict[str, dict[str, int]] = {
    "cnn": {"clients": 6, "participants": 3, "examples": 12, "batch": 5, "rounds": 3},
    "fedprox": {"clients": 6, "participants": 3, "epochs": 1, "rounds": 3},
    "fedprox_run": {"clients": 6, "participants": 2, "epochs": 1, "rounds": 2},
    "crop": {"clients": 5, "participants": 2, "examples": 7, "batch": 4, "rounds": 2},
    "regression": {"clients": 40, "participants": 20, "examples": 10, "rounds": 3},
    "scale": {"clients": 5000, "participants": 4, "rounds": 2},
}


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of `recipes/rivals` that need nothing else; the number of threads is left as it was."""
    monkeypatch.setattr(sys, "path", [str(RECIPES), *sys.path])
    threads = torch.get_num_threads()
    yield SimpleNamespace(**{name: importlib.import_module(f"rivals.{name}") for name in NAMES})
    torch.set_num_threads(threads)


@pytest.fixture
def benchmark(rivals: Any) -> ModuleType:
    return importlib.import_module("benchmark")


def tiny(rivals: Any, name: str, **sizes: int) -> Any:
    return rivals.workloads.resized(rivals.workloads.WORKLOADS[name], {**TINY[name], **sizes})


# -- the work ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TINY)
def test_plain_and_ours_take_the_same_steps(rivals: Any, name: str) -> None:
    work, reports, losses = tiny(rivals, name), {}, {}
    for adapter, mode in (("plain", ""), ("ours", "auto"), ("ours", "looped")):
        meter = rivals.meter.Meter()
        losses[adapter, mode] = getattr(rivals, adapter).train(work, mode, meter)
        reports[adapter, mode] = meter.report(work)
    expected = [work.steps_of(t) for t in range(work.rounds)]
    assert sum(expected) > work.rounds
    for report in reports.values():
        assert report["steps"] == expected[1:]
        assert len(report["wall"]) == len(report["processor"]) == work.rounds - 1
        assert min(report["wall"]) > 0
        assert report["total"] >= report["first"] + sum(report["wall"]) - 1e-5
        assert report["peak_mib"] > 50
    start = rivals.networks.mean_loss(rivals.networks.network(work), work.data())
    assert all(math.isfinite(loss) and loss < start for loss in losses.values())


@pytest.mark.parametrize("name", ["cnn", "fedprox"])
def test_plain_and_ours_reach_the_same_weights(rivals: Any, name: str) -> None:
    """With the same order of the examples; the clients of FedProx's work differ in size, so the weights of the mean matter."""
    work = tiny(rivals, name)
    module, data = rivals.ours.data_module(work)
    module.setup()

    def order(t: int, client: int, epoch: int, count: int) -> torch.Tensor:
        index = module.schedule(client, t, 0, module.num_steps(client)).index.flatten()
        return index[index >= 0] - int(data.offsets[client])

    loop = rivals.plain.Loop(work, order)
    for t in range(work.rounds):
        loop.run_round(t)
    task = rivals.ours.Classification(rivals.networks.network(work), work.classes)
    strategy = SlotStrategy(1, runner="loop")
    arguments: dict[str, Any] = {"logger": False, "callbacks": [], "evaluate_every": 0, "sampler": RoundSeeded()}
    trainer = FederatedTrainer(work.rounds, work.participants, strategy, **arguments)
    ours = trainer.fit(FedAvg(lr=work.lr), task, module).server.x
    plain = torch.cat([parameter.detach().flatten() for parameter in loop.model.parameters()])
    start = torch.cat([parameter.detach().flatten() for parameter in rivals.networks.network(work).parameters()])
    assert (plain - start).abs().max() > 1e-3
    assert torch.allclose(plain, ours, rtol=0, atol=1e-5)


def test_the_workloads_are_those_of_the_bounds(rivals: Any) -> None:
    works = rivals.workloads.WORKLOADS
    weights = {name: sum(value.size for value in work.start().values()) for name, work in works.items()}
    assert (weights["cnn"], weights["fedprox"], weights["regression"]) == (62_006, 610, 7_850)
    cnn, fedprox, regression = works["cnn"], works["fedprox"], works["regression"]
    assert (cnn.clients, cnn.participants, cnn.examples, cnn.batch, cnn.epochs, cnn.lr) == (100, 10, 100, 50, 1, 0.05)
    assert (fedprox.clients, fedprox.participants, fedprox.batch, fedprox.epochs, fedprox.lr) == (30, 10, 10, 20, 0.01)
    assert (regression.clients, regression.participants, regression.examples, regression.batch) == (1000, 50, 50, 10)
    drawn = np.random.RandomState(1).lognormal(4, 2, 30).astype(int) + 50
    assert fedprox.sizes().tolist() == [int(0.9 * count) for count in drawn]
    assert works["fedprox_run"] == replace(fedprox, name="fedprox_run", title=works["fedprox_run"].title, rounds=200)
    assert replace(works["crop"], pixels=False, rounds=20, name="cnn", title=cnn.title) == cnn
    assert [fedprox.participants_of(t) for t in range(3)] == [RoundSeeded().sample(t, 30, 10, 5) for t in range(3)]


def test_data_are_the_same_every_time_and_belong_to_the_clients(rivals: Any) -> None:
    work = tiny(rivals, "fedprox")
    one, two = work.data(), work.data()
    assert all(np.array_equal(first, second) for first, second in zip(one, two, strict=True))
    inputs, targets = one.client(2)
    assert (len(inputs), len(targets)) == (work.sizes()[2],) * 2
    assert np.shares_memory(inputs, one.inputs)
    assert tiny(rivals, "crop").data().inputs.dtype == np.uint8
    scale = tiny(rivals, "scale")
    assert len(scale.data().targets) == scale.distinct == 400
    assert scale.data().positions.max() == 399
    for client in (99, 1234):  # the last whose examples lie side by side, and one from a later turn
        owned = scale.data().positions[4 * client : 4 * client + 4]
        assert np.array_equal(scale.data().client(client)[0], scale.data().inputs[owned])


@pytest.mark.parametrize("sizes", [{"clients": 0}, {"lr": 1}, {"rounds": "2"}])
def test_impossible_sizes_are_refused(rivals: Any, sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"[Ss]ize .*{next(iter(sizes))}|not '{next(iter(sizes))}'"):
        rivals.workloads.resized(rivals.workloads.WORKLOADS["cnn"], sizes)
    with pytest.raises(ValueError, match="clients=1000"):
        rivals.workloads.parse_sizes(["clients"])


# -- one measurement ---------------------------------------------------------------------------------------------------
BUSY = """
import sys, time
held = bytearray(150 * 2**20)
for i in range(0, len(held), 4096): held[i] = 1
while time.process_time() < 0.5: pass
print(flush=True)
sys.stdin.read()
"""


def test_the_meter_sees_its_children_while_they_live_and_after(rivals: Any) -> None:
    work, meter = tiny(rivals, "cnn"), rivals.meter.Meter()
    meter.start()
    before = time.process_time()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        alone = Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]
        meter.mark()
        meter._look()
        child.communicate("")
    meter.mark()
    own = time.process_time() - before
    seconds = [ended.processor - begun.processor for (_, begun), (ended, _) in pairwise(meter.marks)]
    assert seconds[0] > 0.4
    assert -0.05 < seconds[1] < 0.3  # what the child took is not counted again when it has ended
    assert sum(seconds) == pytest.approx(0.5 + own, abs=0.3)
    assert meter.report(work)["peak_mib"] > 140
    assert meter.report(work)["peak_mib"] < int(alone) / 1024 + 400


def test_the_meter_leaves_out_what_it_does_itself(rivals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work, meter = tiny(rivals, "cnn"), rivals.meter.Meter()
    monkeypatch.setattr(rivals.meter, "_processor_seconds_of_children", lambda: time.sleep(0.2) or 0.0)
    began = time.perf_counter()
    meter.start()
    for _ in range(3):
        meter.mark()
    assert time.perf_counter() - began >= 0.8
    report = meter.report(work)
    assert max(report["first"], *report["wall"]) < 0.1
    assert report["total"] < 0.3


def test_the_peak_of_a_lone_process_is_from_the_start_on(rivals: Any) -> None:
    work, meter = tiny(rivals, "cnn"), rivals.meter.Meter()
    held = bytearray(300 * 2**20)
    held[:: mmap.PAGESIZE] = bytes(len(held[:: mmap.PAGESIZE])).replace(b"\0", b"1")
    before = rivals.meter._peak()
    del held
    meter.start()
    meter.mark()
    assert 50 < meter.report(work)["peak_mib"] < before / 2**20 - 200


@pytest.mark.parametrize("adapter", ["plain", "ours", "pfl", "fedlab", "fluke", "flower", "blazefl", "fedjax"])
def test_an_adapter_is_a_program_whose_last_line_is_the_result(rivals: Any, adapter: str, tmp_path: Path) -> None:
    package, module = rivals.rows.PACKAGES[adapter]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed here")
    python = rivals.sitting.Interpreter.probe(sys.executable)
    sitting = rivals.sitting.Sitting([python], tmp_path, TINY["cnn"])
    mode = {"ours": "two slots", "blazefl": "threads"}.get(adapter, "")
    result = sitting.measure(rivals.rows.Row("cnn", adapter, mode, free=python.free))
    assert (result["workload"], result["mode"], len(result["wall"])) == ("cnn", mode, 2)
    assert result["steps"] == [9, 9]
    assert result["loss"] < 3
    assert package in result["versions"]
    assert result["gil"] is (not python.free)


def test_only_the_last_json_object_counts(rivals: Any) -> None:
    output = 'noise\n{"a": 1}\n{not json}\n{"a": 2}\n[3]\nmore noise\n'
    assert rivals.sitting.last_result(output) == {"a": 2}
    with pytest.raises(rivals.sitting.Failed, match="no result"):
        rivals.sitting.last_result("noise\n12\n")


def test_a_measurement_that_fails_says_why(rivals: Any, tmp_path: Path) -> None:
    sitting = rivals.sitting.Sitting([rivals.sitting.Interpreter.probe(sys.executable)], tmp_path, {"rounds": 2})
    free = sitting.interpreters[0].free
    with pytest.raises(rivals.sitting.Failed, match="status 1: KeyError: 'nonsense'"):
        sitting.measure(rivals.rows.Row("fedprox", "ours", "nonsense", free=free))
    kind = "an ordinary" if free else "a free-threaded"
    with pytest.raises(rivals.sitting.Failed, match=f"torch in {kind} Python"):
        sitting.measure(rivals.rows.Row("cnn", "plain", free=not free))
    began = time.perf_counter()
    with pytest.raises(rivals.sitting.Failed, match=r"more than 0\.5 seconds"):
        rivals.sitting._output([sys.executable, "-c", "import time; time.sleep(60)"], str(tmp_path), {}, 0.5)
    assert time.perf_counter() - began < 30
    with pytest.raises(rivals.sitting.Failed, match="--python"):
        rivals.sitting.Interpreter.probe(str(tmp_path / "python"))


def test_rows_run_in_the_first_interpreter_that_fits(rivals: Any, tmp_path: Path) -> None:
    make = rivals.sitting.Interpreter
    pythons = [
        make("a", "3.11", False, ("plain",)),
        make("b", "3.14", True, ("plain", "blazefl")),
        make("c", "3.11", False, ("plain", "pfl")),
    ]
    sitting, row = rivals.sitting.Sitting(pythons, tmp_path), rivals.rows.Row
    found = [
        row("cnn", "plain"),
        row("cnn", "plain", free=True),
        row("cnn", "pfl"),
        row("cnn", "blazefl", "single", True),
    ]
    assert [sitting.interpreter_of(one).path for one in found] == ["a", "b", "c", "b"]
    assert sitting.interpreter_of(row("cnn", "fedjax")) is None
    assert sitting.interpreter_of(row("cnn", "pfl", free=True)) is None


def test_runs_from_an_empty_cache_fill_it_for_the_next(rivals: Any, tmp_path: Path) -> None:
    sitting, row = rivals.sitting.Sitting([], tmp_path), rivals.rows.Row
    empty, shared = row("fedprox_run", "ours", "auto", cache="empty"), row("fedprox", "ours", "compiled")
    filled, free = replace(empty, cache="filled"), replace(empty, cache="empty", free=True)

    def folder(one: Any) -> str:
        environment: dict[str, str] = sitting._environment(one)
        assert environment["TORCHINDUCTOR_CACHE_DIR"].startswith(environment["FEDLIGHTNING_CACHE"])
        return environment["FEDLIGHTNING_CACHE"]

    with pytest.raises(rivals.sitting.Failed, match="empty cache"):
        folder(filled)
    first, again = folder(empty), folder(filled)
    other, second = folder(free), folder(empty)
    assert first == again
    assert len({first, second, other, folder(shared), folder(replace(shared, free=True))}) == 5
    assert (folder(filled), folder(replace(filled, free=True))) == (second, other)
    assert folder(shared) == folder(replace(shared, workload="regression"))


def test_graphs_are_built_before_what_measures_them(
    rivals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = rivals.sitting.Interpreter("python", "3.11", False, ("plain", "ours"))
    sitting, commands = rivals.sitting.Sitting([python], tmp_path, {"rounds": 7}), []
    monkeypatch.setattr(
        rivals.sitting, "_output", lambda command, *rest: commands.append(command[command.index("--sizes") + 1])
    )
    row = rivals.rows.Row("fedprox", "ours", "compiled")
    for one in (row, row, replace(row, mode="looped"), row, replace(row, mode="compiled, two slots")):
        sitting.measure(one)
    assert [words.partition("=")[2] for words in commands] == ["2", "7", "7", "7", "7", "2", "7"]


# -- the table ---------------------------------------------------------------------------------------------------------
def test_rows_and_bounds_belong_together(rivals: Any) -> None:
    rows = rivals.rows
    assert len(set(rows.ROWS)) == len(rows.ROWS) == len({(row.workload, row.label) for row in rows.ROWS})
    assert all((RECIPES / "rivals" / f"{row.adapter}.py").is_file() for row in rows.ROWS)
    assert {row.adapter for row in rows.ROWS} == set(rows.PACKAGES)
    assert {row.workload for row in rows.ROWS} == set(rivals.workloads.WORKLOADS)
    assert all(row.mode in rivals.ours.MODES for row in rows.ROWS if row.adapter == "ours")
    assert all(rows.reference(row) in rows.ROWS for row in rows.ROWS)
    for bound in rows.BOUNDS:
        assert bound.ours.adapter == "ours"
        assert {bound.ours, *bound.against} <= set(rows.ROWS)
        assert {row.workload for row in bound.against} == {bound.ours.workload}
        assert bound.measure in rivals.table.MEASURES
    asked = {
        ("fedprox", "step", 0.030), ("fedprox", "step", 0.28), ("fedprox", "wall", 0.018), ("fedprox_run", "total", 0.40),
        ("fedprox_run", "total", 0.05), ("cnn", "wall", 0.50), ("cnn", "wall", 0.75), ("cnn", "wall", 0.45),
        ("cnn", "wall", 0.20), ("cnn", "wall", 0.95), ("crop", "wall", 0.15), ("regression", "wall", 0.08),
        ("cnn", "peak", 1.3), ("fedprox", "peak", 1.3), ("crop", "peak", 1.3), ("regression", "peak", 1.3),
    }  # fmt: skip
    assert {(bound.ours.workload, bound.measure, bound.at_most) for bound in rows.BOUNDS} == asked


def result(wall: float, *, peak: float | None = 100.0, **versions: str) -> dict[str, Any]:
    return {
        "wall": [wall, 3 * wall, 0.9 * wall], "processor": [2 * wall, 4 * wall, 6 * wall], "steps": [10, 20, 70], "first": 5.0,
        "total": 50 * wall, "peak_mib": peak, "partition_mib": 30.0, "versions": {"torch": "2.9", **versions}, "python": "3.11.7",
        "gil": True,
    }  # fmt: skip


@pytest.fixture
def table(rivals: Any) -> Any:
    return rivals.table.Table({"date": "2026-01-02", "machine": "a machine"})


def test_measures_are_medians_over_the_repetitions(rivals: Any, table: Any) -> None:
    plain, ours = rivals.rows.Row("cnn", "plain"), rivals.rows.Row("cnn", "ours", "auto")
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
    assert table.ratio(rivals.rows.Row("cnn", "ours", "auto", free=True), "wall") is None
    table.add(rivals.rows.Row("crop", "plain"), result(1.0, peak=None))
    assert table.median(rivals.rows.Row("crop", "plain"), "peak") is None
    assert table.median(rivals.rows.Row("crop", "plain"), "beyond") is None


def test_bounds_hold_are_missed_or_were_not_measured(rivals: Any, table: Any) -> None:
    row = rivals.rows.Row
    for one, wall in (
        (row("cnn", "plain", free=True), 1.0),
        (row("cnn", "ours", "auto", free=True), 0.46),
        (row("cnn", "blazefl", "single", free=True), 0.9),
        (row("cnn", "blazefl", "threads", free=True), 0.6),
        (row("cnn", "flower"), 2.3),
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
    assert rivals.table.Table({}, standard=False, results=table.results).verdicts() == []


def test_the_table_names_versions_and_what_is_missing(rivals: Any, table: Any) -> None:
    row = rivals.rows.Row
    table.add(row("cnn", "plain"), result(2.0))
    table.add(row("cnn", "pfl"), result(3.0, pfl="0.6.0"))
    table.add(row("scale", "ours", "one slot", sizes=(("clients", 100),)), result(0.001))
    table.add(row("scale", "ours", "one slot", sizes=(("clients", 10_000),)), result(0.002, peak=65.0))
    table.missing[row("cnn", "flower")] = "it ended with status 1: no space"
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


# -- the program -------------------------------------------------------------------------------------------------------
def test_the_program_writes_table_numbers_and_picture(
    rivals: Any, benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `figures`")
    if packages.compiler() is None:
        pytest.skip("a row of compiled steps needs a C++ compiler")
    sizes = [f"{name}={value}" for name, value in TINY["crop"].items() if name != "rounds"]
    arguments = ["--workloads", "crop", "--only", "plain", "ours", "--rounds", "2", "--repeat", "1", "--sizes", *sizes]
    assert benchmark.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "left out, no fedlightning in" in shown
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    kind = " (no GIL)" * rivals.sitting.Interpreter.probe(sys.executable).free
    assert [row["row"] for row in content["rows"]] == [
        f"{name}{kind}" for name in ("plain loop", "ours, one slot", "ours, auto", "ours, compiled, two slots")
    ]
    assert [len(row["repetitions"]) for row in content["rows"]] == [1, 1, 1, 1]
    assert content["bounds"] == []  # of other sizes
    assert content["repetitions"] == "1"
    assert (tmp_path / "out" / "table.md").read_text() in shown
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_failures_are_noted_and_what_was_measured_is_kept(
    rivals: Any, benchmark: ModuleType, table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, pfl, ours = (rivals.rows.Row("cnn", name) for name in ("plain", "pfl", "ours"))
    asked: list[Any] = []

    def measure(row: Any) -> dict[str, Any]:
        asked.append(row)
        if row == pfl:
            raise rivals.sitting.Failed("it broke")
        if len(asked) == 5:
            raise KeyboardInterrupt
        return result(1.0)

    assert benchmark.measure([plain, pfl, ours], SimpleNamespace(measure=measure), table, 2) == 130
    assert asked == [plain, pfl, ours, plain, ours]
    assert {row: len(found) for row, found in table.results.items()} == {plain: 2, ours: 1}
    assert table.missing == {pfl: "it broke"}
    assert "failed: it broke" in capsys.readouterr().out
    asked.clear()
    again = rivals.table.Table({})
    assert benchmark.measure([plain, pfl], SimpleNamespace(measure=measure), again, 1) == 1


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
def test_wrong_flags_are_refused(
    benchmark: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark: error: ")
    assert message in line
    assert line.endswith("; `--help` lists what there is.")


def test_without_matplotlib_nothing_is_measured(
    rivals: Any, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([])
    assert "figures" in capsys.readouterr().err


def test_a_sitting_without_a_framework_is_an_error(
    rivals: Any, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rivals.figure, "can_draw", lambda: True)
    nothing = rivals.sitting.Interpreter("python", "3.11", False, ())
    monkeypatch.setattr(benchmark.Interpreter, "probe", lambda path: nothing)
    with pytest.raises(SystemExit, match="none could be"):
        benchmark.main(["--workloads", "cnn", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
