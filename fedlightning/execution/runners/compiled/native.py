"""A compiled graph called from C for one client after another, without the interpreter and so without its lock."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlightning.execution.runners.compiled.build import compiler, compiler_failed, load
from fedlightning.execution.runners.compiled.cache import kept
from fedlightning.execution.runners.traced import Given, Walk, Walked, walk_in_python

_FEW_BYTES = 4096
"""Of a call's rows, up to which to copy them costs less than to make a tensor of them."""


class _Input(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("ndim", ctypes.c_int64),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("dtype", ctypes.c_int32),
        ("row", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("index", ctypes.c_void_p),
        ("examples", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("buffer", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("step", ctypes.c_int64))


class NativeWalk:
    """Calls a compiled graph from C, with the interpreter's lock released; for one thread at a time.

    Args:
        library: the compiled graph.
        used: positions of the inputs that it looks at.
        unroll: U, its steps.

    Raises:
        RuntimeError: the graph cannot be loaded, or a call of it fails.
    """

    def __init__(self, library: ctypes.CDLL, used: Sequence[int], unroll: int) -> None:
        self._used, self._unroll = used, unroll
        self._walk = walker().fedlightning_walk
        self._run = ctypes.cast(library.AOTInductorModelContainerRunSingleThreaded, ctypes.c_void_p)
        self._graph = ctypes.c_void_p()
        _check(
            library.AOTInductorModelContainerCreateWithDevice(
                ctypes.byref(self._graph), ctypes.c_size_t(1), b"cpu", None
            )
        )
        weakref.finalize(self, library.AOTInductorModelContainerDelete, self._graph)

    def __call__(self, given: Sequence[Given], calls: Sequence[int]) -> Callable[[], Walked]:
        """What takes the steps."""
        local = [each.tensor for each in given if each.is_state]
        state = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in local]
        losses = local[0].new_empty(sum(calls) * self._unroll)
        taken = [self._taken(i, given[i]) for i in self._used]
        sizes = [tensor[0].numel() * tensor.element_size() for tensor in state]
        sizes.append(self._unroll * losses.element_size())
        outputs = [_Output(tensor.data_ptr(), size) for tensor, size in zip((*state, losses), sizes, strict=True)]
        run = partial(
            self._walk,
            self._run,
            self._graph,
            ctypes.c_int64(len(calls)),
            (ctypes.c_int64 * len(calls))(*calls),
            (_Input * len(taken))(*(described for described, *_ in taken)),
            ctypes.c_size_t(len(taken)),
            (_Output * len(outputs))(*outputs),
            ctypes.c_size_t(len(outputs)),
        )

        def steps() -> Walked:
            _check(run())
            taken.clear()  # what was described is in memory until here
            return state, losses

        return steps

    def _taken(self, i: int, given: Given) -> tuple[Any, ...]:
        """Where C finds an input, and the tensors that must outlive the call."""
        if given.index is not None:
            return self._picked(given.tensor, given.index.contiguous())
        # A start that all clients share is one tensor, expanded, and stays so.
        each = given.tensor[0] if given.each == "client" else given.tensor
        tensor = given.tensor if each.is_contiguous() else given.tensor.contiguous()
        described = self._described(given.each, tensor)
        described.output = i if given.is_state else -1  # the local state comes first among inputs and outputs
        if described.row and described.step <= _FEW_BYTES:
            buffer = tensor.new_empty(described.step // tensor.element_size())
            described.buffer = buffer.data_ptr()
            return described, tensor, buffer
        return described, tensor

    def _described(self, each: str, tensor: Tensor) -> _Input:
        """Where a call finds its part of a tensor: one for all clients, a client's row, or the rows of U steps."""
        if each == "all":
            return _place(tensor, tuple(tensor.shape))
        row = each == "rows"
        described = _place(tensor, (self._unroll, *tensor.shape[1:]) if row else tuple(tensor.shape[1:]))
        described.step = tensor.stride(0) * tensor.element_size() * (self._unroll if row else 1)
        described.row = row
        return described

    def _picked(self, source: Tensor, index: Tensor) -> tuple[Any, ...]:
        """Where C finds examples, and which of them are a call's batches."""
        shape = (self._unroll, *index.shape[1:], *source.shape[1:])
        buffer, described = source.new_empty(shape), _place(source, shape)
        described.row, described.output, described.index = True, -1, index.data_ptr()
        described.examples, described.count = len(source), self._unroll * index[0].numel()
        described.bytes, described.buffer = source[0].numel() * source.element_size(), buffer.data_ptr()
        return described, source, index, buffer


def compiled_walk(path: Path, used: Sequence[int], unroll: int) -> Walk:
    """A slot's own walk through the graph in a package."""
    library = library_in(path)
    return walk_in_python(load(path), used, unroll) if library is None else NativeWalk(library, used, unroll)


def preload(path: Path) -> None:
    """Load what walks through a package need, so that it fails before the first round if it does.

    Raises:
        ConfigurationError: the compiler fails.
        OSError: something cannot be loaded.
    """
    if library_in(path) is not None:
        walker()


@cache
def library_in(path: Path) -> ctypes.CDLL | None:
    """The library in a package; None if it must ask Python's side for an operation that libtorch's interface lacks."""
    with zipfile.ZipFile(path) as package:
        names = package.namelist()
        if any(name.endswith(".json") and not name.endswith("_metadata.json") for name in names):
            return None
        return _loaded(package.read(next(name for name in names if name.endswith(".so"))))


@cache
def walker() -> ctypes.CDLL:
    """The C part, built where it is not there."""
    source = Path(__file__).with_name("native.c")
    known = (source.read_bytes(), torch.__version__, platform.machine())
    name = f"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}.so"
    return _loaded(kept(name, partial(_build, source)).read_bytes())


def _loaded(library: bytes) -> ctypes.CDLL:
    """A library, from a copy that nobody reaches: a file that is cut while it is loaded ends the process, too."""
    with tempfile.TemporaryDirectory(prefix="fedlightning-") as folder:
        copy = Path(folder) / "library.so"
        copy.write_bytes(library)
        return ctypes.CDLL(str(copy))


def _build(source: Path, path: Path) -> None:
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    command = [str(compiler()), "-x", "c", "-O2", "-shared", "-fPIC", str(source), "-o", str(path), *libraries]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise compiler_failed(source.name, built.stderr)


def _place(tensor: Tensor, shape: tuple[int, ...]) -> _Input:
    """Tensors of a shape from where this one lies."""
    return _Input(tensor.data_ptr(), 0, len(shape), *_geometry(shape), _dtype(tensor.dtype))


@cache
def _geometry(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Sizes and strides of a contiguous tensor; for ever in memory, since C is given where they lie."""
    strides = torch.empty(shape, device="meta").stride()
    array = ctypes.c_int64 * max(len(shape), 1)
    return array(*shape), array(*strides)


@cache
def _dtype(dtype: torch.dtype) -> int:
    """The number by which libtorch's interface calls a dtype."""
    libtorch = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))))
    number: int = getattr(libtorch, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    return number


def _check(error: int) -> None:
    if error == -1:
        raise IndexError(
            "A batch must be made of examples that the training set has, but one of `schedule`'s is not there."
        )
    if error:
        raise RuntimeError(
            f"A compiled graph must run, but failed with code {error}; its reason is on the error stream."
        )
