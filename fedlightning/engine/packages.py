"""Graphs compiled ahead of time: by a process of its own, and kept on disk.

Run as a program, this file is that process; it imports nothing of the library then.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
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

Run = Callable[[list[Tensor]], Any]

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
        path: where it will lie.
        graph: what it will compute.
        inputs: tensors of the shapes it will take.
        threads: intra-operator threads of the compiled code.
        in_place: whether results may be written over what they are computed from. A few channels at a time, that has to wait
            for what was just stored; but it keeps small steps in the cache.
    """

    path: Path
    graph: GraphModule
    inputs: Sequence[Tensor]
    threads: int
    in_place: bool


def build(order: Order) -> None:
    """Build a package, by a process of its own, which is not left behind, whatever happens.

    Raises:
        RuntimeError: it could not be built.
    """
    with tempfile.TemporaryDirectory(prefix="fedlightning-") as folder:
        source = Path(folder) / "steps.pt"
        torch.save((order.graph, tuple(order.inputs)), source)
        order.path.parent.mkdir(parents=True, exist_ok=True)
        given = (source, order.path, order.threads, int(order.in_place))
        command = [sys.executable, "-P", "-W", "ignore", __file__, *map(str, given)]
        built = run(command, stdout=DEVNULL, stderr=PIPE, text=True, env={**_SPARED, **os.environ})
    if built.returncode:
        raise RuntimeError(f"The compiler must build the local steps, but says: {built.stderr.strip()[-2000:]}")


def _compile(source: str, target: str, threads: int, in_place: bool) -> None:
    """Compile a graph, and put the package in its place once it is whole."""
    beside = Path(target).with_suffix(f".{os.getpid()}.pt2")
    with quiet(), torch.no_grad():
        from torch._functorch.compile_utils import fx_graph_cse
        from torch._inductor import aoti_compile_and_package  # the export needs what this imports

        graph, inputs = torch.load(source, weights_only=False)
        graph.graph = fx_graph_cse(graph.graph)  # a layer's backward pass arranges once more what its forward pass did
        aoti_compile_and_package(
            torch.export.export(graph, inputs, strict=False),
            package_path=str(beside),
            inductor_configs={"cpp.threads": threads, "inplace_buffers": in_place, **OPTIONS},
        )
    beside.replace(target)


def load(path: Path) -> Run:
    """A copy of the compiled graph, for one slot."""
    with quiet():
        loaded = torch._inductor.aoti_load_package(str(path))
    run: Run = loaded.loader.run
    return run


def cache_folder() -> Path:
    """Where compiled graphs are kept: `$FEDLIGHTNING_CACHE`, or fedlightning in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlightning"
    return Path(os.environ.get("FEDLIGHTNING_CACHE") or usual) / "compiled"


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


if __name__ == "__main__":
    _compile(sys.argv[1], sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])))
