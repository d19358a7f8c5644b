"""The table of a sitting: medians, ratios, and whether the bounds hold."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from recipes.benchmarks.rows import BOUNDS, PACKAGES, ROWS, Bound, Row, reference
from recipes.benchmarks.sitting import Result
from recipes.benchmarks.workloads import WORKLOADS

MEASURES = {
    "wall": "wall a round", "step": "wall a client-step", "total": "wall of the run", "processor": "processor a round",
    "first": "the first round", "peak": "peak memory", "beyond": "peak memory beyond the partition",
}  # fmt: skip


def measured(result: Result, measure: str) -> float | None:
    """One of `MEASURES` in a repetition: seconds, microseconds of a client's step, or MiB; None where it is unknown."""
    peak = result["peak_mib"]
    if measure in ("wall", "processor"):
        average = statistics.median if measure == "wall" else statistics.fmean
        return float(average(result[measure]))
    if measure == "step":
        return 1e6 * sum(result["wall"]) / sum(result["steps"])
    if measure in ("peak", "beyond"):
        return peak and float(peak - (measure == "beyond") * result["partition_mib"])
    return float(result[measure])


class Verdict(NamedTuple):
    """A bound, the ratio that was measured, or None, and whether it holds, or None."""

    bound: Bound
    ratio: float | None
    holds: bool | None


@dataclass
class Table:
    """What was measured so far.

    Attributes:
        results: of each row, one for each repetition that ended well.
        missing: why a row has none, or fewer.
        context: date, machine and whatever else is to stand above.
        standard: whether the workloads have the sizes that the bounds are of.
    """

    context: Mapping[str, str]
    standard: bool = True
    results: dict[Row, list[Result]] = field(default_factory=dict)
    missing: dict[Row, str] = field(default_factory=dict)

    def add(self, row: Row, result: Result) -> None:
        """Note a repetition."""
        self.results.setdefault(row, []).append(result)

    def median(self, row: Row, measure: str) -> float | None:
        """The median over the repetitions; None if there is none."""
        found = [measured(result, measure) for result in self.results.get(row, [])]
        known = [value for value in found if value is not None]
        return statistics.median(known) if known else None

    def ratio(self, row: Row, measure: str, against: Sequence[Row] = ()) -> float | None:
        """A row's median to that of its reference, or to the best of other rows; None if either is unknown."""
        own, others = self.median(row, measure), [self.median(other, measure) for other in against or (reference(row),)]
        known = [value for value in others if value]
        return own / min(known) if own is not None and known else None

    @property
    def workloads(self) -> list[str]:
        """Those that have a result, in order."""
        return [name for name in WORKLOADS if any(row.workload == name for row in self.results)]

    def rows(self, workload: str) -> list[Row]:
        """Its rows that have a result, in order."""
        return [row for row in ROWS if row.workload == workload and row in self.results]

    def verdicts(self) -> list[Verdict]:
        """Of each bound on the workloads that were run; none at other sizes than those the bounds are of."""
        verdicts = []
        for bound in BOUNDS if self.standard else ():
            if bound.ours.workload in self.workloads:
                ratio = self.ratio(bound.ours, bound.measure, bound.against)
                verdicts.append(Verdict(bound, ratio, None if ratio is None else ratio <= bound.at_most))
        return verdicts

    def label(self, row: Row) -> str:
        """The row's name, with the version of a rival."""
        if row.adapter in ("plain", "ours"):
            return row.label
        version = self.results[row][0]["versions"][PACKAGES[row.adapter][0]]
        return row.label.replace(row.name, f"{row.name} {version}", 1)

    @property
    def packages(self) -> str:
        """What the plain loop and ours ran on."""
        found = [
            result["versions"]
            for row, results in self.results.items()
            if row.adapter in ("plain", "ours")
            for result in results
        ]
        pairs = [f"{name} {versions[name]}" for versions in found for name in ("torch", "numpy") if name in versions]
        return ", ".join(dict.fromkeys(pairs))

    def markdown(self) -> str:
        """Everything, as markdown."""
        lines = [f"* {name}: {value}" for name, value in {**self.context, "packages": self.packages}.items()]
        for workload in self.workloads:
            lines += ["", f"### {WORKLOADS[workload].title}", "", *self._rows(workload)]
        if verdicts := self.verdicts():
            lines += ["", "### Bounds", "", *_bound_lines(verdicts)]
        if self.missing:
            lines += [
                "",
                "### Not measured",
                "",
                *(f"* {row.workload}: {row.label}: {why}" for row, why in self.missing.items()),
            ]
        return "\n".join(lines) + "\n"

    def _rows(self, workload: str) -> list[str]:
        main = headline(workload)
        peak = "beyond" if workload == "scale" else "peak"
        to = f"to {'100 clients' if workload == 'scale' else 'plain'}"
        head = ["", f"{MEASURES[main]}, s", to, "µs a client-step", "processor s a round", to, "first round, s"]
        head += [f"{MEASURES[peak]}, MiB", to, "Python"]
        lines = [_line(head), "|---|" + "---:|" * (len(head) - 2) + "---|"]
        for row in self.rows(workload):
            results = self.results[row]
            python = f"{results[0]['python']}, GIL {'on' if results[0]['gil'] else 'off'}"
            numbers = [
                self.median(row, main), self.ratio(row, main), self.median(row, "step"), self.median(row, "processor"),
                self.ratio(row, "processor"), self.median(row, "first"), self.median(row, peak), self.ratio(row, peak),
            ]  # fmt: skip
            lines.append(_line([self.label(row), *map(_number, numbers), python]))
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file; each row with all its repetitions."""
        rows = [
            {"row": row.label, "workload": row.workload, "repetitions": found} for row, found in self.results.items()
        ]
        verdicts = [
            {**_describe(verdict.bound), "ratio": verdict.ratio, "holds": verdict.holds} for verdict in self.verdicts()
        ]
        missing = [{"row": row.label, "workload": row.workload, "why": why} for row, why in self.missing.items()]
        return {**self.context, "packages": self.packages, "rows": rows, "bounds": verdicts, "missing": missing}


def headline(workload: str) -> str:
    """The measure that a workload is about."""
    return "total" if workload == "fedprox_run" else "wall"


def _describe(bound: Bound) -> dict[str, Any]:
    against = " or ".join(row.label for row in bound.against)
    return {
        "workload": bound.ours.workload,
        "ours": bound.ours.label,
        "measure": MEASURES[bound.measure],
        "against": against,
        "at most": bound.at_most,
    }


def _bound_lines(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [
        _line(["workload", "ours", "measure", "against", "at most", "measured", ""]),
        "|---|---|---|---|---:|---:|---|",
    ]
    for bound, ratio, holds in verdicts:
        word = "not measured" if holds is None else "holds" if holds else "**missed**"
        lines.append(_line([*map(str, _describe(bound).values()), _number(ratio), word]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
