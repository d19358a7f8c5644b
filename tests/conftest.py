"""What tests of several rooms share, as fixtures. Plain functions, such as `fit`, are in `helpers/small_runs.py`."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Said(logging.Handler):
    """What the library says on the terminal. Called, it gives the lines since the last call.

    Attributes:
        then: is given each line, while whoever says it waits.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.then: Callable[[str], None] = lambda line: None

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.then(self.lines[-1])

    def __call__(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def said() -> Iterator[Said]:
    """The lines that the library says."""
    logger, said = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Said()
    level = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    yield said
    logger.removeHandler(said)
    logger.setLevel(level)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
