"""One sitting: which Python has which framework, and each measurement in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.benchmarks.rows import PACKAGES, Row

ROOT = Path(__file__).parents[2]
"""The repository's."""
Result = dict[str, Any]

_PROBE = """
import importlib.util, json, platform, sys, sysconfig
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(json.dumps({"found": found, "free": free, "version": platform.python_version()}))
"""


class Failed(Exception):
    """There is no result; the message says why."""


@dataclass(frozen=True)
class Interpreter:
    """A Python.

    Attributes:
        path: of its program.
        version: e.g. "3.11.7".
        free: whether it was built free-threaded; it is then run without the GIL.
        adapters: those whose framework it has.
    """

    path: str
    version: str
    free: bool
    adapters: tuple[str, ...]

    @classmethod
    def probe(cls, path: str) -> "Interpreter":
        """Ask a Python what it is and what it has.

        Raises:
            Failed: it is none.
        """
        modules = [module for _, module in PACKAGES.values()]
        try:
            with tempfile.TemporaryDirectory() as nowhere:
                command = [path, "-c", _PROBE, *modules]
                done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=nowhere)
            told = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise Failed(
                f"`--python` must name Python interpreters, but {path} does not run as one: {error}"
            ) from error
        adapters = tuple(adapter for adapter, (_, module) in PACKAGES.items() if module in told["found"])
        return cls(path, told["version"], told["free"], adapters)


@dataclass
class Sitting:
    """Runs measurements one at a time.

    Args:
        interpreters: those there are; the first that fits a row runs it.
        folder: where compiled graphs are kept while the sitting lasts.
        sizes: other sizes for every workload, e.g. the number of rounds.
        timeout: seconds that one measurement may take.
    """

    interpreters: Sequence[Interpreter]
    folder: Path
    sizes: Mapping[str, int] = field(default_factory=dict)
    timeout: float = 3600.0
    _compiled: set[tuple[str, str, bool]] = field(default_factory=set, init=False)
    _filled: dict[bool, Path] = field(default_factory=dict, init=False)

    def interpreter_of(self, row: Row) -> Interpreter | None:
        """Where a row runs; None if it cannot."""
        fits = (one for one in self.interpreters if one.free == row.free and row.adapter in one.adapters)
        return next(fits, None)

    def measure(self, row: Row) -> Result:
        """What a row costs: the JSON object that the adapter prints last. Graphs in the shared cache are built before.

        Raises:
            Failed: no Python fits, or the adapter did not end well.
        """
        python = self.interpreter_of(row)
        if python is None:
            raise Failed(
                f"it needs {PACKAGES[row.adapter][0]} in {'a free-threaded' if row.free else 'an ordinary'} Python, "
                "but none such was given by `--python`"
            )
        if row.compiled and row.cache == "shared" and (row.workload, row.mode, row.free) not in self._compiled:
            self._compiled.add((row.workload, row.mode, row.free))
            self._run(python, row, {"rounds": 2})
        return self._run(python, row, {})

    def _run(self, python: Interpreter, row: Row, other: dict[str, int]) -> Result:
        sizes = [f"{name}={value}" for name, value in {**self.sizes, **dict(row.sizes), **other}.items()]
        command = [python.path, *["-Xgil=0"] * python.free, "-m", f"recipes.benchmarks.{row.adapter}"]
        command += ["--workload", row.workload, "--mode", row.mode, "--sizes", *sizes]
        return run(command, self.environment(row), self.timeout)

    def environment(self, row: Row) -> dict[str, str]:
        """One thread each unless the framework is told otherwise, no GPU, and the row's own cache.

        Raises:
            Failed: the row needs a filled cache, and no row from an empty one ran before.
        """
        cache = str(self._cache(row))
        ours = {
            "FEDLIGHTNING_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor"), "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        return {**os.environ, **ours}

    def _cache(self, row: Row) -> Path:
        if row.cache == "empty":
            self._filled[row.free] = Path(tempfile.mkdtemp(dir=self.folder))
        if row.cache == "shared":
            return self.folder / ("free" if row.free else "ordinary")
        if row.free not in self._filled:
            raise Failed("no run from an empty cache came before it, which would have filled the cache")
        return self._filled[row.free]


def run(command: list[str], environment: Mapping[str, str], timeout: float) -> Result:
    """Run an adapter in the repository's root, where `-m` finds it in any Python; its result.

    Raises:
        Failed: it did not end well, or not within so many seconds.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    try:
        output, complaints = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it took more than {timeout:g} seconds") from error
    finally:
        if process.poll() is None:  # with the workers that it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = [line.strip() for line in complaints.splitlines() if line.strip()]
        raise Failed(f"it ended with status {process.returncode}: {lines[-1] if lines else 'no message'}")
    return last_result(output)


def last_result(output: str) -> Result:
    """The last line that is a JSON object; frameworks print much before it.

    Raises:
        Failed: there is none.
    """
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError):
            result = json.loads(line)
            if isinstance(result, dict):
                return result
    raise Failed("it printed no result")
