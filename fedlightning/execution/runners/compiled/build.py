"""Graphs compiled ahead of time, by a process of its own."""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, run
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from fedlightning.errors import ConfigurationError

Compiled = Callable[[list[Tensor]], Any]

OPTIONS = {
    "aot_inductor.precompile_headers": False,  # that takes longer than it ever saves
    "aot_inductor.allow_stack_allocation": True,
    "cpp.enable_floating_point_contract_flag": "fast",
    "realize_reads_threshold": 3,  # w − η g is computed once a step, not anew for each example that looks at it,
    "realize_opcount_threshold": 15,  # and so are the derivatives of the loss
}
"""How graphs are compiled."""

_SPARED = {"TORCHINDUCTOR_VEC_ISA_OK": "1"}
"""Of the compiling process: that a compiler of C++20 knows what this processor can do needs no trial, which takes seconds."""


class Order(NamedTuple):
    """A package to be built.

    Attributes:
        graph: what it will compute.
        inputs: tensors of the shapes it will take.
        threads: intra-operator threads of the compiled code.
        in_place: whether results may be written over what they are computed from. A few channels at a time, that has to wait
            for what was just stored; but it keeps small steps in the cache.
    """

    graph: GraphModule
    inputs: Sequence[Tensor]
    threads: int
    in_place: bool


def build(order: Order, path: Path) -> None:
    """Build a package, by a process that is not left behind, whatever happens.

    What the compiler keeps for itself lies beside the package, and not where others may write, too.

    Raises:
        ConfigurationError: it could not be built.
    """
    source, own = path.with_name("steps.pt"), {"TORCHINDUCTOR_CACHE_DIR": str(path.with_name("inductor"))}
    options = {**OPTIONS, "cpp.threads": order.threads, "inplace_buffers": order.in_place}
    torch.save((order.graph, tuple(order.inputs), options), source)
    program = Path(__file__).with_name("compile_package.py")
    command = [sys.executable, "-P", "-W", "ignore", str(program), str(source), str(path)]
    built = run(command, stdout=DEVNULL, stderr=PIPE, text=True, env={**_SPARED, **os.environ, **own})
    if built.returncode or not path.is_file():
        raise compiler_failed("the local steps", built.stderr)


def compiler_failed(what: str, said: str) -> ConfigurationError:
    """The error for what could not be built; all that the compiler said is its cause."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing")
    error = ConfigurationError(f"The compiler must build {what}, but says: {last[:300]}; use `runner='loop'`.")
    error.__cause__ = RuntimeError(said)
    return error


def load(path: Path) -> Compiled:
    """A copy of the compiled graph, for one slot."""
    with quiet():
        loaded = torch._inductor.aoti_load_package(str(path))
    run: Compiled = loaded.loader.run
    return run


@cache
def compiler() -> str | None:
    """The C++ compiler that a graph would be built with; None if there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports much, and only a compiled run needs it

    try:
        return get_cpp_compiler()
    except RuntimeError:  # inductor's InvalidCxxCompiler is one
        return None


@cache
def processor() -> str:
    """What tells processors apart that the compiled code may not run on alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks that the compiler's own modules make, e.g. on a missing GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
