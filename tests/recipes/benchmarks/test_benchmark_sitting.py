"""A measurement: what the meter sees, in which Python a row runs, and what is said where it fails."""

import importlib.util
import mmap
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_workloads import TINY, tiny

from recipes.benchmarks import meter as meters
from recipes.benchmarks import sitting as sittings
from recipes.benchmarks.meter import Meter
from recipes.benchmarks.rows import PACKAGES, Row
from recipes.benchmarks.sitting import Failed, Interpreter, Sitting, last_result, run

BUSY = """
import sys, time
held = bytearray(150 * 2**20)
for i in range(0, len(held), 4096): held[i] = 1
while time.process_time() < 0.5: pass
print(flush=True)
sys.stdin.read()
"""


def test_the_meter_sees_its_children_while_they_live_and_after() -> None:
    work, meter = tiny("cnn"), Meter()
    meter.start()
    before = time.process_time()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        alone = Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]
        meter.mark()
        meter.look()
        child.communicate("")
    meter.mark()
    own = time.process_time() - before
    seconds = [ended.processor - begun.processor for (_, begun), (ended, _) in pairwise(meter.marks)]
    assert seconds[0] > 0.4
    assert -0.05 < seconds[1] < 0.3  # what the child took is not counted again when it has ended
    assert sum(seconds) == pytest.approx(0.5 + own, abs=0.3)
    assert meter.report(work)["peak_mib"] > 140
    assert meter.report(work)["peak_mib"] < int(alone) / 1024 + 400


def test_the_meter_leaves_out_what_it_does_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    work, meter = tiny("cnn"), Meter()
    monkeypatch.setattr(meters, "processor_seconds_of_children", lambda: time.sleep(0.2) or 0.0)
    began = time.perf_counter()
    meter.start()
    for _ in range(3):
        meter.mark()
    assert time.perf_counter() - began >= 0.8
    report = meter.report(work)
    assert max(report["first"], *report["wall"]) < 0.1
    assert report["total"] < 0.3


def test_the_peak_of_a_lone_process_is_from_the_start_on() -> None:
    work, meter = tiny("cnn"), Meter()
    held = bytearray(300 * 2**20)
    held[:: mmap.PAGESIZE] = bytes(len(held[:: mmap.PAGESIZE])).replace(b"\0", b"1")
    before = meters.peak_of_this_process()
    del held
    meter.start()
    meter.mark()
    assert 50 < meter.report(work)["peak_mib"] < before / 2**20 - 200


@pytest.mark.parametrize("adapter", PACKAGES)
def test_an_adapter_is_a_program_whose_last_line_is_the_result(adapter: str, tmp_path: Path) -> None:
    package, module = PACKAGES[adapter]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed here")
    python = Interpreter.probe(sys.executable)
    sitting = Sitting([python], tmp_path, TINY["cnn"])
    mode = {"ours": "two slots", "blazefl": "threads"}.get(adapter, "")
    result = sitting.measure(Row("cnn", adapter, mode, free=python.free))
    assert (result["workload"], result["mode"], len(result["wall"])) == ("cnn", mode, 2)
    assert result["steps"] == [9, 9]
    assert result["loss"] < 3
    assert package in result["versions"]
    assert result["gil"] is (not python.free)


def test_only_the_last_json_object_counts() -> None:
    output = 'noise\n{"a": 1}\n{not json}\n{"a": 2}\n[3]\nmore noise\n'
    assert last_result(output) == {"a": 2}
    with pytest.raises(Failed, match="no result"):
        last_result("noise\n12\n")


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    sitting = Sitting([Interpreter.probe(sys.executable)], tmp_path, {"rounds": 2})
    free = sitting.interpreters[0].free
    with pytest.raises(Failed, match="status 1: KeyError: 'nonsense'"):
        sitting.measure(Row("fedprox", "ours", "nonsense", free=free))
    kind = "an ordinary" if free else "a free-threaded"
    with pytest.raises(Failed, match=f"torch in {kind} Python"):
        sitting.measure(Row("cnn", "plain", free=not free))
    began = time.perf_counter()
    with pytest.raises(Failed, match=r"more than 0\.5 seconds"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.5)
    assert time.perf_counter() - began < 30
    with pytest.raises(Failed, match="--python"):
        Interpreter.probe(str(tmp_path / "python"))


def test_rows_run_in_the_first_interpreter_that_fits(tmp_path: Path) -> None:
    pythons = [
        Interpreter("a", "3.11", False, ("plain",)),
        Interpreter("b", "3.14", True, ("plain", "blazefl")),
        Interpreter("c", "3.11", False, ("plain", "pfl")),
    ]
    sitting = Sitting(pythons, tmp_path)
    found = [
        Row("cnn", "plain"),
        Row("cnn", "plain", free=True),
        Row("cnn", "pfl"),
        Row("cnn", "blazefl", "single", True),
    ]
    assert [sitting.interpreter_of(one).path for one in found] == ["a", "b", "c", "b"]
    assert sitting.interpreter_of(Row("cnn", "fedjax")) is None
    assert sitting.interpreter_of(Row("cnn", "pfl", free=True)) is None


def test_runs_from_an_empty_cache_fill_it_for_the_next(tmp_path: Path) -> None:
    sitting = Sitting([], tmp_path)
    empty, shared = Row("fedprox_run", "ours", "auto", cache="empty"), Row("fedprox", "ours", "compiled")
    filled, free = replace(empty, cache="filled"), replace(empty, cache="empty", free=True)

    def folder(one: Any) -> str:
        environment: dict[str, str] = sitting.environment(one)
        assert environment["TORCHINDUCTOR_CACHE_DIR"].startswith(environment["FEDLIGHTNING_CACHE"])
        return environment["FEDLIGHTNING_CACHE"]

    with pytest.raises(Failed, match="empty cache"):
        folder(filled)
    first, again = folder(empty), folder(filled)
    other, second = folder(free), folder(empty)
    assert first == again
    assert len({first, second, other, folder(shared), folder(replace(shared, free=True))}) == 5
    assert (folder(filled), folder(replace(filled, free=True))) == (second, other)
    assert folder(shared) == folder(replace(shared, workload="regression"))


def test_graphs_are_built_before_what_measures_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Interpreter("python", "3.11", False, ("plain", "ours"))
    sitting, commands = Sitting([python], tmp_path, {"rounds": 7}), []
    monkeypatch.setattr(sittings, "run", lambda command, *rest: commands.append(command[command.index("--sizes") + 1]))
    row = Row("fedprox", "ours", "compiled")
    for one in (row, row, replace(row, mode="looped"), row, replace(row, mode="compiled, two slots")):
        sitting.measure(one)
    assert [words.partition("=")[2] for words in commands] == ["2", "7", "7", "7", "7", "2", "7"]
