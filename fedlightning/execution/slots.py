"""Slots: virtual devices, each with a stream and a copy of the model of its own."""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.errors import ConfigurationError, first_line, out_of_memory
from fedlightning.execution.model import Replica

CAPTURE = threading.Lock()
"""Held while a CUDA graph is captured and while memory is given back: a process may do but one of these at a time."""


@dataclass(frozen=True, order=True)
class Slot:
    """A virtual device: `cuda:0/1` is slot 1 of the device cuda:0, `cuda:0` its slot 0, `cpu/2` slot 2 of the CPU.

    Attributes:
        kind: "cpu" or "cuda".
        index: of the device; 0 for the CPU.
        number: of the slot on its device.
    """

    kind: str
    index: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Slot:
        """Read a slot's name.

        Raises:
            ConfigurationError: it is no slot's name, or the device is not there.
        """
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?(?:/(\d+))?", text.strip())
        if match is None or (match[1] == "cpu" and int(match[2] or 0) > 0):
            raise ConfigurationError(
                f"A slot must be written like 'cuda:0/1' (slot 1 of device cuda:0), 'cuda:0' or 'cpu/0', but is {text!r}."
            )
        slot = cls(match[1], int(match[2] or 0), int(match[3] or 0))
        if slot.kind == "cuda" and slot.index >= torch.cuda.device_count():
            raise ConfigurationError(
                f"Slot {text!r} needs device cuda:{slot.index}, but this machine has "
                f"{torch.cuda.device_count() or 'no'} CUDA devices; use 'auto' or 'cpu/0'."
            )
        return slot

    @property
    def device(self) -> torch.device:
        """The device it is on."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)

    def __str__(self) -> str:
        return f"cpu/{self.number}" if self.kind == "cpu" else f"cuda:{self.index}/{self.number}"


class Worker:
    """A slot at work: its thread takes work from the pool's queue until the pool closes.

    Args:
        slot: which slot it is.
        replica: its own copy of the model; no other thread touches it.
        data: whose clients are trained.
        examples: the training set on the slot's device.
        threads: intra-operator threads, set by the worker for itself, since a setting of the main thread does not bind it.

    Attributes:
        device: the slot's device.
        stopping: set once the run is being stopped.
    """

    def __init__(
        self, slot: Slot, replica: Replica, data: FederatedDataModule, examples: Examples, threads: int
    ) -> None:
        self.slot, self.replica, self.threads = slot, replica, threads
        self.data, self.examples, self.device = data, examples, slot.device
        self.stopping = threading.Event()
        on_gpu = slot.kind == "cuda"
        self._stream = torch.cuda.Stream(slot.device) if on_gpu else None
        self._trainers = torch.cuda.current_stream(slot.device) if on_gpu else None

    def cancelled(self) -> bool:
        """Whether the run is being stopped."""
        return self.stopping.is_set()

    def prepare(self) -> AbstractContextManager[Any]:
        """Set the calling thread up as this slot's; enter the result to run on its stream."""
        torch.set_num_threads(self.threads)
        torch.autograd.set_multithreading_enabled(False)
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def begin(self) -> None:
        """Let the slot's stream wait for what the trainer's thread has queued: the aggregate, the data.

        The slot reads tensors that the trainer's thread made, and need not mark them: none is let go before `finish`.
        """
        if self._stream and self._trainers:
            self._stream.wait_stream(self._trainers)

    def finish(self) -> None:
        """Wait until what was queued on the slot's stream is done, so that any thread may read the results at once.

        Whoever reads them on another stream and lets go of them marks them for it (`record_stream`), or the slot may write
        to their memory while they are read.
        """
        if self._stream:
            self._stream.synchronize()

    def release(self) -> None:
        """Give back the memory that the slot holds, once nothing refers to it any more."""
        self.replica.release()
        gc.collect()
        if self._stream:
            with CAPTURE:  # what is cached cannot be given back while a graph is captured
                self._stream.synchronize()
                torch.cuda.empty_cache()


def make_workers(slots: Sequence[Slot], make: Callable[[Slot], Worker]) -> list[Worker]:
    """The workers of slots.

    Args:
        slots: which they are.
        make: makes one, with its own copy of the model.

    Raises:
        ConfigurationError: there is no memory for one, or CUDA fails.
    """
    workers = list[Worker]()
    for slot in slots:
        try:
            workers.append(make(slot))
        except (RuntimeError, MemoryError) as error:
            if slot.kind == "cpu" and not out_of_memory(error):
                raise
            other = "" if slot.kind == "cpu" else " on this GPU, or those of a CPU, `slots='cpu/0'`"
            raise ConfigurationError(
                f"Slot {slot} must have a copy of the model, and a stream if it is on a GPU, but {len(workers)} slots have "
                f"theirs when it fails: {first_line(error)}; use fewer `slots`{other}."
            ) from error
    return workers


_THREADS, _THREADS_PER_CORE = 256, 16
"""The most threads of all slots together, or of a core if that is more: beyond them nothing can become faster."""


def check_threads(slots: int, threads: int) -> None:
    """Check that so many slots of so many threads are not so many that it must be a mistake.

    Raises:
        ConfigurationError: they are.
    """
    most = max(_THREADS, _THREADS_PER_CORE * cpu_count())
    if slots * threads > most:
        given = f"{slots:,} slot{'s' * (slots > 1)} of `threads_per_slot={threads}` have {slots * threads:,}"
        raise ConfigurationError(
            f"The slots of SlotStrategy must have at most {most:,} threads together on {cpu_count()} cores, but {given}; use "
            "fewer `slots` or a smaller `threads_per_slot`."
        )


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
