"""Killed at any moment and resumed, a run leaves what it leaves in one go."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "killed.py"


def check(folder: Path, kills: int, seed: int) -> None:
    """Kill at least so many times; the last run that is begun may be killed more than once."""
    command = [sys.executable, str(PROGRAM), str(folder), str(kills), str(seed)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(said.split()[0]) >= kills
    assert "unequal: none" in said


def test_a_few_kills(tmp_path: Path) -> None:
    check(tmp_path, 8, 0)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    check(tmp_path, 100, 1)
