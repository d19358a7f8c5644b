"""What a round costs: ours, a plain loop, and whichever other framework is installed, on the same work.

python -m recipes.benchmarks --workloads cnn --only plain ours --rounds 5 --repeat 1

    cnn          100 clients of 100 images 3x32x32, ten a round, LeNet of 62,006 weights
    fedprox      FedProx's own: 30 clients by a power law, logistic regression 60x10, E = 20, batches of 10
    fedprox_run  200 rounds of it in all, from an empty cache of compiled graphs and from a filled one
    crop         cnn from uint8 images with random crop and flip; the plain loop transforms each image by itself
    regression   784x10 logistic regression, 1,000 clients of 50 examples, 50 a round, batches of 10
    scale        100, 10,000 and 1,000,000 registered clients, ten a round

Frameworks need not share an environment: name the Python of each by `--python`; what is importable in one is measured there.
A free-threaded one runs without the GIL. Each measurement is a process of its own, on a CPU, with one thread for each worker.
The whole table is repeated in turn, and ratios are of medians. The adapters lie beside this file, one a framework, and are
programs themselves:

python -m recipes.benchmarks.plain --workload cnn --sizes rounds=5
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from recipes.benchmarks import figure
from recipes.benchmarks.rows import PACKAGES, ROWS, Row
from recipes.benchmarks.sitting import Failed, Interpreter, Sitting
from recipes.benchmarks.table import Table
from recipes.benchmarks.workloads import WORKLOADS, parse_sizes, resized


class Parser(argparse.ArgumentParser):
    """One that ends with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and what there is."""
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')}; `--help` lists what there is.\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="benchmarks", description="What a round costs, here and elsewhere.", allow_abbrev=False)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME",
        help=f"of {', '.join(WORKLOADS)}; all unless given")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES), metavar="FRAMEWORK",
        help=f"of {', '.join(PACKAGES)}; whatever is installed unless given")  # fmt: skip
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="PATH", help="the interpreters to use")
    parser.add_argument("--rounds", type=int, help="of each measurement, from 2 on; the workload's own unless given")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of the whole table, in turn")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="NAME=NUMBER",
        help="other sizes of all workloads, such as clients=20 examples=30; bounds are then left out")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that one measurement may take")
    parser.add_argument("--output", default="logs/benchmarks", metavar="FOLDER",
        help="where table.md, results.json and figure.png go")  # fmt: skip
    given = parser.parse_args(argv)
    for name, value, least in (("rounds", given.rounds, 2), ("repeat", given.repeat, 1)):
        if value is not None and value < least:
            parser.error(f"`--{name}` must be at least {least}, but is {value}.")
    try:
        given.sizes = parse_sizes(given.sizes)
        resized(WORKLOADS["cnn"], given.sizes)
    except ValueError as error:
        parser.error(str(error))
    if not figure.can_draw():
        parser.exit(
            2,
            "benchmarks: error: it draws with matplotlib, but that cannot be imported; run `pip install -e "
            '".[figures]"`.\n',
        )
    return given


def context(pythons: Sequence[Interpreter], repeat: int) -> dict[str, str]:
    """What stands above a table: when, on which machine, with which Pythons."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = dict.fromkeys(f"{python.version}{' free-threaded' * python.free}" for python in pythons)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{processor()}, {cores} cores, {platform.system()} {platform.machine()}",
        "Python": ", ".join(versions),
        "repetitions": str(repeat),
    }


def processor() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown processor")


def chosen_rows(given: argparse.Namespace, sitting: Sitting, table: Table) -> list[Row]:
    """The rows that can be measured; one line for each framework or kind of Python that is left out."""
    rows = [row for row in ROWS if row.workload in given.workloads and row.adapter in given.only]
    left = [row for row in rows if sitting.interpreter_of(row) is None]
    for free, adapter in dict.fromkeys((row.free, row.adapter) for row in left):
        kind = "a free-threaded" if free else "an ordinary"
        why = f"no {PACKAGES[adapter][0]} in {kind} Python; name one that has it by `--python`"
        print(f"{adapter}{' without the GIL' * free}: left out, {why}", flush=True)
        table.missing.update({row: why for row in left if (row.free, row.adapter) == (free, adapter)})
    return [row for row in rows if row not in left]


def measure(rows: Sequence[Row], sitting: Sitting, table: Table, repeat: int) -> int:
    """Every row in turn, several times; a row that fails is noted and not tried again.

    Returns:
        The program's status: 0, 1 if a measurement failed, 130 if it was stopped by Ctrl-C; what was measured is kept.
    """
    status = 0
    for repetition, row in itertools.product(range(repeat), rows):
        if row in table.missing:
            continue
        print(f"{repetition + 1}/{repeat} {row.workload}: {row.label} … ", end="", flush=True)
        try:
            result = sitting.measure(row)
        except Failed as error:
            table.missing[row], status = str(error), 1
            print(f"failed: {error}", flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            return 130
        else:
            table.add(row, result)
            print(f"{result['total']:.1f} s", flush=True)
    return status


def write(table: Table, folder: Path) -> None:
    """The table as markdown, all numbers as JSON, and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
    content = json.dumps(table.as_json(), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(content + "\n", encoding="utf-8")
    figure.save(table, folder / "figure.png")
    print(*(folder / name for name in ("table.md", "results.json", "figure.png")), sep="\n")


def main(argv: Sequence[str]) -> int:
    """Measure, print the table and write it; the program's status.

    Raises:
        SystemExit: the command line is wrong, or nothing could be measured.
    """
    given = parse(argv)
    try:
        pythons = [Interpreter.probe(path) for path in given.python]
    except Failed as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    sizes = given.sizes | ({"rounds": given.rounds} if given.rounds else {})
    table = Table(context(pythons, given.repeat), standard=not given.sizes)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sitting = Sitting(pythons, Path(folder), sizes, given.timeout)
        status = measure(chosen_rows(given, sitting, table), sitting, table, given.repeat)
    if not table.results:
        sys.exit("benchmarks: error: at least one row must be measured, but none could be; see the lines above.")
    print(f"\n{table.markdown()}")
    write(table, Path(given.output))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
