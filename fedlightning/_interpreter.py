"""Which Python this is, whether its global interpreter lock (GIL) is on, and who switched it on."""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SWITCHED_ON_BY: list[str] = []
"""Modules whose import switched the GIL on."""


@contextmanager
def watch_imports(culprits: list[str] = SWITCHED_ON_BY) -> Iterator[None]:
    """Note which of the imports inside switch the GIL on; the start line of a run names the first, with the remedy."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        found = re.search(r"GIL\) has been enabled to load module '([^']+)'", str(warning.message))
        if found:
            culprits.append(found.group(1))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def gil_enabled() -> bool:
    """Whether only one thread at a time runs Python."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def description(culprits: Sequence[str] = SWITCHED_ON_BY) -> str:
    """E.g. "CPython 3.14.0 free-threaded, GIL off", with the remedy where the GIL is on though it was not wanted."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"{name}, GIL on{_in_vain()}"
    if not gil_enabled():
        return f"{name} free-threaded, GIL off"
    culprit = f"importing {culprits[0]!r}" if culprits else "an import before fedlightning's"
    return f"{name} free-threaded, but GIL on: {culprit} switched it on; start it as `python -Xgil=0 …` to keep it off"


def _in_vain() -> str:
    """What to say where the command line or the environment asks for no GIL, and this Python cannot but have one."""
    for value, how in ((sys._xoptions.get("gil"), "-Xgil=0"), (os.environ.get("PYTHON_GIL"), "PYTHON_GIL=0")):
        if value == "0":
            return f" (`{how}` has no effect on this Python; start a free-threaded one, e.g. python3.14t)"
    return ""
