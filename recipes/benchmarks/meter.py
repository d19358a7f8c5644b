"""What a run costs, measured from inside: wall clock, processor seconds and peak memory of the process and its children.

An adapter is a program, `python -m recipes.benchmarks.plain --workload cnn`, whose last line is one JSON object.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from recipes.benchmarks.rows import PACKAGES
from recipes.benchmarks.workloads import WORKLOADS, Workload, parse_sizes, resized

_VERSIONS_OF = dict.fromkeys((*(package for package, _ in PACKAGES.values()), "torchvision", "numpy", "ray", "jax"))
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class _Clocks(NamedTuple):
    wall: float
    processor: float


class Meter:
    """Notes the time at the end of each round, and watches memory meanwhile.

    What it does itself is left out: half a millisecond to look at the clocks of all processes, which is a tenth of a short
    round. Memory is that of a lone process, as the kernel keeps its peak (VmHWM), or, looked at five times a second while it
    has children, the sum over the tree (PSS: a page that they share counts once), which takes the kernel ten milliseconds;
    `None` where there is no /proc.

    Attributes:
        marks: the end of each round and the begin of the next: wall clock and processor seconds at both.
        steps: local steps of each round's clients, as far as they were counted.
        peak: bytes.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[_Clocks, _Clocks]] = []
        self.steps: list[int] = []
        self.peak = 0
        self._ended = threading.Event()

    def start(self) -> None:
        """The work begins: the data are there, nothing is set up yet."""
        _forget_peak()
        threading.Thread(target=self._watch, daemon=True).start()
        self.mark()

    def mark(self, steps: int | None = None) -> None:
        """A round has ended, in which the clients took so many steps."""
        wall, own, others = time.perf_counter(), time.process_time(), processor_seconds_of_children()
        ended = _Clocks(wall, own + others)
        self.marks.append((ended, _Clocks(time.perf_counter(), time.process_time() + others)))
        if steps is not None:
            self.steps.append(steps)

    def report(self, work: Workload) -> dict[str, Any]:
        """Seconds of each round but the first, of the first, and of all; steps of these rounds; the peak of memory."""
        self._ended.set()
        self.peak = max(self.peak, peak_of_this_process())
        pairs = [(begun, ended) for (_, begun), (ended, _) in pairwise(self.marks)]
        wall, processor = ([round(ended[i] - begun[i], 6) for begun, ended in pairs] for i in range(2))
        steps = self.steps or [work.steps_of(t) for t in range(len(pairs))]
        return {
            "wall": wall[1:], "processor": processor[1:], "steps": steps[1:], "first": wall[0],
            "total": round(sum(wall), 6),
            "peak_mib": round(self.peak / 2**20, 1) if self.peak else None,
            "partition_mib": round((work.sizes().sum() + work.clients + 1) * 8 / 2**20, 1),
        }  # fmt: skip

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.look()

    def look(self) -> None:
        """Note the memory of the whole tree, where there are children."""
        tree = list(_tree(os.getpid()))
        if len(tree) > 1:
            self.peak = max(self.peak, sum(map(_share, tree)))


def _tree(process: int) -> Iterator[int]:
    """A process and all its descendants that live; only itself where the kernel does not tell."""
    yield process
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = listed.read_text().split()
        except OSError:  # the thread or the process has ended
            continue
        for child in children:
            yield from _tree(int(child))


def _share(process: int) -> int:
    """Bytes of a process, with shared pages by their share; 0 if it has ended."""
    try:
        return _bytes(Path(f"/proc/{process}/smaps_rollup"), "Pss:")
    except OSError:
        return 0


def peak_of_this_process() -> int:
    """The most bytes that this process has had, with shared pages in full; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    return _bytes(status, "VmHWM:") if status.is_file() else 0


def _forget_peak() -> None:
    """Let the peak be what the process has now, where the kernel allows it: what made the data does not count."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _bytes(listing: Path, name: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in listing.read_text().splitlines() if line.startswith(name))


def processor_seconds_of_children() -> float:
    """User and system seconds of this process's children that have ended, and of its descendants that live."""
    ended, ticks = os.times(), sum(_ticks(child) for child in _tree(os.getpid()) if child != os.getpid())
    return ended.children_user + ended.children_system + ticks / _TICKS


def _ticks(process: int) -> int:
    """Clock ticks of a process and of its children that have ended; 0 if it has ended itself."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(train: Callable[[Workload, str, Meter], float]) -> None:
    """Be the program of an adapter: train as the command line says and print what it cost.

    Args:
        train: does the work in one of its modes, calls the meter's `start` and, after each round, its `mark`, and gives the
            loss of the last global model over all examples, which shows that something was learned.
    """
    parser = argparse.ArgumentParser(description="One measurement; the last line of the output is JSON.")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--mode", default="", help="which of the adapter's ways to do it")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="NAME=NUMBER", help="other sizes of the workload")
    given = parser.parse_args()
    try:
        work = resized(WORKLOADS[given.workload], parse_sizes(given.sizes))
    except ValueError as error:
        parser.error(str(error))
    meter = Meter()
    loss = train(work, given.mode, meter)
    result = {
        "workload": work.name, "mode": given.mode, "loss": round(loss, 6), **meter.report(work), "versions": _versions(),
        "python": platform.python_version(), "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    }  # fmt: skip
    print("\n" + json.dumps(result), flush=True)
