"""What a run costs, measured from inside: wall clock, processor seconds and peak memory of the process and its children.

An adapter is a program, `python -m rivals.plain --workload cnn`, whose last line is one JSON object.
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
from pathlib import Path
from typing import Any

from rivals.workloads import WORKLOADS, Workload, parse_sizes, resized

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "fedlightning",
    "pfl",
    "fedlab",
    "fluke-fl",
    "flwr",
    "ray",
    "blazefl",
    "fedjax",
    "jax",
)
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Meter:
    """Notes the time at the end of each round, and watches memory meanwhile.

    Memory is that of a lone process (RSS), or the sum over the processes of the tree (PSS: a page that they share counts
    once), looked at five times a second; `None` where there is no /proc.

    Attributes:
        marks: wall clock and processor seconds at the start and at the end of each round.
        steps: local steps of each round's clients, as far as they were counted.
        peak: bytes.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.steps: list[int] = []
        self.peak = 0
        self._ended = threading.Event()

    def start(self) -> None:
        """The work begins: the data are there, nothing is set up yet."""
        threading.Thread(target=self._watch, daemon=True).start()
        self.marks.append((time.perf_counter(), _processor_seconds()))

    def mark(self, steps: int | None = None) -> None:
        """A round has ended, in which the clients took so many steps."""
        self.marks.append((time.perf_counter(), _processor_seconds()))
        if steps is not None:
            self.steps.append(steps)

    def report(self, work: Workload) -> dict[str, Any]:
        """Seconds of each round but the first, of the first, and of all; steps of these rounds; the peak of memory."""
        self._ended.set()
        self._look()
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        wall, processor = ([round(after[i] - before[i], 6) for before, after in pairs] for i in range(2))
        steps = self.steps or [work.steps_of(t) for t in range(len(pairs))]
        return {
            "wall": wall[1:], "processor": processor[1:], "steps": steps[1:], "first": wall[0],
            "total": round(self.marks[-1][0] - self.marks[0][0], 6),
            "peak_mib": round(self.peak / 2**20, 1) if self.peak else None,
            "partition_mib": round((work.sizes().sum() + work.clients + 1) * 8 / 2**20, 1),
        }  # fmt: skip

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._look()

    def _look(self) -> None:
        tree = list(_tree(os.getpid()))
        share = "Rss:" if len(tree) == 1 else "Pss:"
        self.peak = max(self.peak, sum(_memory(process, share) for process in tree))


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


def _memory(process: int, share: str) -> int:
    """Bytes of a process, with shared pages in full or by their share; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(share))


def _processor_seconds() -> float:
    """User and system seconds of this process, of its children that have ended, and of its descendants that live."""
    ended, ticks = os.times(), sum(_ticks(child) for child in _tree(os.getpid()) if child != os.getpid())
    return time.process_time() + ended.children_user + ended.children_system + ticks / _TICKS


def _ticks(process: int) -> int:
    """Clock ticks of a process and of its children that have ended; 0 if it has ended itself."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
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
