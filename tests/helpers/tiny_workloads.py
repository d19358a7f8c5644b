"""The workloads of the benchmarks in small, and results that were not measured."""

from typing import Any

from recipes.benchmarks.workloads import WORKLOADS, Workload, resized

TINY: dict[str, dict[str, int]] = {
    "cnn": {"clients": 6, "participants": 3, "examples": 12, "batch": 5, "rounds": 3},
    "fedprox": {"clients": 6, "participants": 3, "epochs": 1, "rounds": 3},
    "fedprox_run": {"clients": 6, "participants": 2, "epochs": 1, "rounds": 2},
    "crop": {"clients": 5, "participants": 2, "examples": 7, "batch": 4, "rounds": 2},
    "regression": {"clients": 40, "participants": 20, "examples": 10, "rounds": 3},
    "scale": {"clients": 5000, "participants": 4, "rounds": 2},
}


def tiny(name: str) -> Workload:
    return resized(WORKLOADS[name], TINY[name])


def made_up_result(wall: float, *, peak: float | None = 100.0, **versions: str) -> dict[str, Any]:
    return {
        "wall": [wall, 3 * wall, 0.9 * wall], "processor": [2 * wall, 4 * wall, 6 * wall], "steps": [10, 20, 70], "first": 5.0,
        "total": 50 * wall, "peak_mib": peak, "partition_mib": 30.0, "versions": {"torch": "2.9", **versions}, "python": "3.11.7",
        "gil": True,
    }  # fmt: skip
