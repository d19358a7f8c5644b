"""Killed at any moment and resumed, a run leaves what it leaves in one go."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "killed.py"


def killed(folder: Path, kills: int, seed: int) -> str:
    command = [sys.executable, str(PROGRAM), str(folder), str(kills), str(seed)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_few_kills(tmp_path: Path) -> None:
    assert "8 kills" in (said := killed(tmp_path, 8, 0))
    assert "unequal: none" in said


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    assert "100 kills" in (said := killed(tmp_path, 100, 1))
    assert "unequal: none" in said
