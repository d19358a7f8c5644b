"""What a slot needs of a GPU's memory, measured before the first round trains anyone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from fedlightning.errors import ConfigurationError, first_line, out_of_memory
from fedlightning.execution.plan import PhasePlan
from fedlightning.execution.runners.base import Runner
from fedlightning.execution.runners.loop import BLOCK
from fedlightning.server.wire import RoundInputs

LIBRARIES = 96 * 2**20
"""Bytes that cuBLAS and cuDNN take for a stream, about: cuBLAS alone has 32 MiB of workspace on a Hopper GPU."""


class Meter(Protocol):
    """Reads a device's memory."""

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes that some work needs at most, beyond what was taken before."""

    def free(self) -> int:
        """Bytes that this process can still take."""


class CudaMeter:
    """Torch's and the driver's numbers for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def peak(self, work: Callable[[], object]) -> int:
        """The allocator's highest mark while the work is done, less what it held before."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def free(self) -> int:
        """What the driver has free, and what the allocator holds unused."""
        torch.cuda.empty_cache()  # what the trial's stream has left is no use to others
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))


@dataclass(frozen=True)
class Bill:
    """What the slots of a device need.

    Attributes:
        device: its name.
        slots: how many there are on it.
        peak: bytes of a trial step of the largest cohort, what the clients remember and upload included.
        graphs: whether the steps are captured: then a slot needs the peak twice, in the graphs' own pool and while a step
            is tried before.
        free: bytes that are free, the data and the server's state being there already.
    """

    device: str
    slots: int
    peak: int
    graphs: bool
    free: int

    @property
    def each(self) -> int:
        """Bytes of a slot."""
        return LIBRARIES + self.peak * (2 if self.graphs else 1)

    def check(self) -> str:
        """One line that says what is needed and what there is.

        Raises:
            ConfigurationError: the slots do not fit.
        """
        fitting = self.free // self.each
        if fitting < self.slots:
            remedy = (
                f"use at most {fitting} slots on it" if fitting else "use a smaller `cohort_size` or a smaller batch"
            )
            raise ConfigurationError(
                f"{self.device} must have memory for its {self.slots} slots, but a slot needs about {_gib(self.each)} and "
                f"{_gib(self.free)} are free; {remedy}."
            )
        slots = f"{self.slots} slot{'s' * (self.slots > 1)}"
        return f"A slot needs about {_gib(self.each)}; {self.device} has {_gib(self.free)} free for {slots}."


def measure(
    meter: Meter,
    runner: Runner,
    plan: PhasePlan,
    cohort: tuple[int, ...],
    inputs: RoundInputs,
    device: str,
    slots: int,
    graphs: bool,
) -> Bill:
    """The bill of a device, from a few trial steps of a cohort, whose result is thrown away.

    Args:
        meter: reads the device's memory.
        runner: a slot's there, how it trains without graphs; no slot works meanwhile.
        plan: the round that begins.
        cohort: its largest.
        inputs: what its clients are given.
        device: its name.
        slots: how many there are on the device.
        graphs: whether steps will be captured.

    Raises:
        ConfigurationError: not even one step has room, or the device fails.
    """
    short = plan.shortened(cohort, BLOCK).draw(cohort)
    try:
        peak = meter.peak(lambda: runner.run([short], inputs))
        return Bill(device, slots, peak, graphs, meter.free())
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise ConfigurationError(
                f"{device} must take a trial step, by which its memory is measured, but fails: {first_line(error)}; see "
                "whether the step runs on a CPU, `slots='cpu/0'`."
            ) from error
        raise ConfigurationError(
            f"{device} must have memory for a local step of {len(cohort)} client{'s' * (len(cohort) > 1)}, but has not: "
            f"{first_line(error)} Use a smaller `cohort_size` or a smaller batch."
        ) from error


def _gib(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count < 100 * 2**30 else f"{count / 2**30:.0f} GiB"
