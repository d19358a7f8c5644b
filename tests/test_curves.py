"""`recipes/synthetic.py` against reference curves that were obtained independently of this library.

The numbers are the training loss over all devices and the test accuracy of an independent float64 program that follows
the FedProx paper's, with its own batches, on the same data, the same start and the same participants: hence tolerances,
and those are the reference's own.
"""

import csv
from pathlib import Path

import pytest
from recipe_runner import load

from fedlightning.cli import run_recipe

ROUNDS = (0, 20, 50, 100, 200)
LOSS = {
    ("1_1", "fedavg"): [[3.55203, 0.5597, 0.51003, 0.52061, 0.50207], [3.51251, 1.21296, 0.83193, 0.7812, 0.73757], [4.21143, 1.59147, 1.09217, 1.45543, 0.98159]],
    ("1_1", "fedprox"): [[3.55203, 0.64545, 0.38617, 0.29477, 0.2279], [3.51251, 1.3159, 0.70268, 0.55697, 0.45287], [4.21143, 0.95712, 0.59575, 0.46136, 0.36367]],
    ("iid", "fedavg"): [[2.33515, 0.57015, 0.40294, 0.30833, 0.23659], [2.30058, 0.86114, 0.6395, 0.48765, 0.37193], [2.4687, 0.42277, 0.33383, 0.24984, 0.19672]],
    ("iid", "fedprox"): [[2.33515, 1.50697, 1.27429, 1.10039, 0.92571], [2.30058, 1.57913, 1.33327, 1.14931, 0.96746], [2.4687, 1.1413, 0.96742, 0.83026, 0.6894]],
}  # fmt: skip
ACCURACY = {
    ("1_1", "fedavg"): [[0.04093, 0.82429, 0.85899, 0.88167, 0.8968], [0.1843, 0.6041, 0.77474, 0.79977, 0.82253], [0.0996, 0.7749, 0.78984, 0.74602, 0.82669]],
    ("1_1", "fedprox"): [[0.04093, 0.83319, 0.86477, 0.90169, 0.9226], [0.1843, 0.61547, 0.79067, 0.81911, 0.84073], [0.0996, 0.74602, 0.82171, 0.84761, 0.87948]],
    ("iid", "fedavg"): [[0.08808, 0.83096, 0.89324, 0.91504, 0.93683], [0.12173, 0.69283, 0.76451, 0.83049, 0.88396], [0.03984, 0.86155, 0.89143, 0.91633, 0.93825]],
    ("iid", "fedprox"): [[0.08808, 0.54048, 0.59875, 0.64724, 0.72331], [0.12173, 0.46075, 0.52332, 0.58589, 0.65529], [0.03984, 0.63845, 0.68725, 0.73506, 0.79382]],
}  # fmt: skip
CASES = [(*case, seed, 200) for case in LOSS for seed in range(3)]


def check(tmp_path: Path, kind: str, method: str, seed: int, rounds: int) -> None:
    argv = ["--rounds", str(rounds), "--seed", str(seed), "--evaluate-every", "10", "--iid", str(kind == "iid").lower()]
    run_recipe(
        load("synthetic").main, argv=["--method", method, *argv, *(["--mu", "1"] * (method == "fedprox"))], lr=0.01
    )
    (table,) = tmp_path.rglob("metrics.csv")
    rows = {int(row["step"]): row for row in csv.DictReader(table.read_text().splitlines())}
    for place, round_ in enumerate(ROUNDS):
        if round_ <= rounds:
            loss, accuracy = LOSS[kind, method][seed][place], ACCURACY[kind, method][seed][place]
            tolerance = 0.02 if method == "fedprox" else 0.03
            assert float(rows[round_]["train_all/loss"]) == pytest.approx(loss, abs=tolerance), round_
            assert float(rows[round_]["val/accuracy"]) == pytest.approx(accuracy, abs=0.02), round_


@pytest.mark.parametrize(("kind", "method"), list(LOSS))
def test_the_first_twenty_rounds(kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(tmp_path, kind, method, 1, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "seed", "rounds"), CASES)
def test_two_hundred_rounds(
    kind: str, method: str, seed: int, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(tmp_path, kind, method, seed, rounds)
