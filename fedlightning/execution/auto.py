"""The rules of "auto": how many slots, how large a cohort, whether to compile, and who trains with whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedlightning import _interpreter as interpreter
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
from fedlightning.execution.inspection import Obstacle, first_batch
from fedlightning.execution.runners.compiled.build import compiler
from fedlightning.execution.slots import Slot, cpu_count
from fedlightning.layout import Layout
from fedlightning.method import Batch, FedMethod
from fedlightning.task import FederatedTask

_HEAVY = 1_000_000
"""Parameters from which clients of a dense model gain nothing side by side, nor from compiling."""

_UNLOCKED = 10_000_000
"""Operations of a step that take about as long, without the GIL, as its Python, with it: measured with 1 and 2 slots."""

_DENSE = (nn.Linear, nn.Flatten, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LayerNorm, nn.Dropout)
"""Layers that are faster side by side than one after another on a CPU."""

_LARGE = 10_000_000
"""Operations of a step beside which a call of a graph costs nothing, nor what else there is to do for a client."""

_CONVOLVING = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that gain from being compiled beside dense ones, by a fifth to a half of a step; norms between them need not."""

_LONG, _LONG_CONVOLVING = 150_000, 50_000
"""Local steps of a client from which compiling, half a minute once, is less than what it saves."""

_FILLED = 0.8
"""The part of a batch's places that must hold an example, lest what a graph saves is spent on the others."""

_WORTH = 500
"""Compiled steps that take longer than what else there is to do for a cohort."""

_TOGETHER, _STEPS_TOGETHER, _BYTES_TOGETHER = 8, 32_768, 32 * 2**20
"""Compiled cohorts that a slot takes at a time, their local steps, and the batches that are made of them beforehand."""


@dataclass(frozen=True)
class Workload:
    """What a run asks of its slots.

    Attributes:
        participants: m, clients of a round.
        total: local steps of all clients in all rounds, about.
        longest: local steps of a client, at most, about.
        balanced: whether the clients take similar numbers of steps.
        batched: whether the batches are of one size.
        filled: the part of the places of those batches that hold an example, about; the last one of an epoch may be smaller.
    """

    participants: int
    total: float
    longest: int
    balanced: bool
    batched: bool
    filled: float

    @classmethod
    def of(cls, method: FedMethod, data: FederatedDataModule, participants: int, rounds: int) -> Workload:
        """Estimated from the first thousand clients and the first round."""
        few = range(min(data.clients.num_clients, 1000))
        steps = torch.tensor([data.num_steps(client, method.local_steps(0)) for client in few], dtype=torch.float64)
        balanced = bool(steps.mean() >= 0.5 * steps.max())
        total = rounds * participants * float(steps.mean())
        sizes, batch = torch.from_numpy(data.clients.sizes_of(few)), data.batch_size
        filled = int(sizes.sum()) / int((-(-sizes // batch) * batch).sum()) if batch else 1.0
        return cls(participants, total, int(steps.max()), balanced, batch is not None, filled)


def choose_slots(wish: int | None, participants: int) -> list[Slot]:
    """So many slots, or for None as many as pay if each step is Python for the most part."""
    devices, free = torch.cuda.device_count(), not interpreter.gil_enabled()
    if wish is not None:
        count = wish
    elif devices:
        count = min(participants, devices * (2 if free else 1))
    else:
        count = min(participants, cpu_count() if free else 1)
    if devices:
        return sorted(Slot("cuda", i % devices, i // devices) for i in range(count))
    return [Slot("cpu", 0, i) for i in range(count)]


def slots_under_lock(task: FederatedTask, data: FederatedDataModule, together: int) -> int:
    """The slots that pay on a CPU under the GIL: one, and one more for each 10 MFLOP of a step.

    Args:
        task: the model.
        data: whose batches it takes.
        together: clients of a step.
    """
    return 1 + int(together * step_flops(task, data) // _UNLOCKED)


def step_flops(task: FederatedTask, data: FederatedDataModule) -> float:
    """Floating-point operations of products and convolutions in a local step on a full batch; nothing is computed.

    0 for a model that must see values, e.g. as NumPy's numbers: it cannot be counted, and trains all the same.
    """
    batch = Batch(*(tensor.to("meta") for tensor in first_batch(data)))
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            deepcopy(task).to("meta").loss(batch).mean().backward()
    except Exception:  # noqa: BLE001 - a model may fail in any way where there are no values; a real error comes again in training
        return 0.0
    size = len(data.clients.indices) / data.clients.num_clients
    return float(counter.get_total_flops()) / max(len(batch.inputs), 1) * min(data.batch_size or size, size)


def large_steps(task: FederatedTask, data: FederatedDataModule) -> bool:
    """Whether a local step is so large that it is worth a graph of its own, and a client a cohort of its own."""
    return step_flops(task, data) >= _LARGE


def choose_compile(
    wish: bool | str, task: FederatedTask, layout: Layout, work: Workload, on_cpu: bool, obstacle: Obstacle | None
) -> tuple[Literal["compile", "trace"] | None, str]:
    """How the local steps become graphs, or None and, where it would pay, why not.

    Raises:
        ConfigurationError: it is asked for, but there is no compiler, or the model cannot be lifted.
    """
    if wish is False:
        return None, ""
    if wish == "auto":
        pays = work.total >= _LONG if _dense(task, layout) else _convolving(task, layout, work)
        if not (on_cpu and work.batched and pays) or obstacle:
            return None, ""
        return ("compile", "") if compiler() else (None, "no C++ compiler was found")
    if obstacle:
        raise ConfigurationError(
            f"`compile` must be False for a model with {obstacle.what}, but is {wish!r}; {obstacle.remedy}."
        )
    if wish == "trace":
        return "trace", ""
    if not on_cpu or not compiler():
        raise ConfigurationError(
            f"`compile=True` needs {'slots on a CPU' if not on_cpu else 'a C++ compiler'}, but there is none; use 'auto'."
        )
    return "compile", ""


def choose_cohort(
    wish: str | int,
    task: FederatedTask,
    layout: Layout,
    work: Workload,
    on_cpu: bool,
    compiled: bool,
    large: bool,
    obstacle: Obstacle | None,
) -> int:
    """The clients trained at once, or compiled as steps that are large or not, handed over together.

    Raises:
        ConfigurationError: more than one is asked for, but the model cannot be lifted.
    """
    if isinstance(wish, int):
        if wish > 1 and obstacle:
            raise ConfigurationError(
                f"`cohort_size` must be 1 for a model with {obstacle.what}, but is {wish}; {obstacle.remedy}."
            )
        return min(wish, work.participants)
    half = work.participants // 2
    if compiled:
        return 1 if large else max(1, min(32, half))
    return (
        min(64, half)
        if not obstacle and _dense(task, layout) and work.balanced and on_cpu and work.participants >= 16
        else 1
    )


def pack(
    order: Sequence[int], steps: Sequence[int], size: int, spread: float = math.inf, share: float = 1.0
) -> list[tuple[int, ...]]:
    """Clients of falling numbers of steps in cohorts of at most `size`.

    Args:
        order: the clients.
        steps: how many each takes.
        size: clients of a cohort.
        spread: the longest of a cohort takes at most so many times the steps of the shortest: then few clients stand idle
            beside one that goes on, and narrow graphs are seldom needed.
        share: a cohort of several takes at most this part of all steps, or 500: then no slot is long at work while others
            wait, for cohorts whose clients follow one another.
    """
    cohorts: list[list[int]] = []
    most, longest, total = max(share * sum(steps), _WORTH), 0, 0
    for client, count in zip(order, steps, strict=True):
        if cohorts and len(cohorts[-1]) < size and spread * count >= longest and total + count <= most:
            cohorts[-1].append(client)
            total += count
        else:
            cohorts.append([client])
            longest = total = count
    return [tuple(cohort) for cohort in cohorts]


def share_out(costs: Sequence[int], slots: int, most: int = _STEPS_TOGETHER) -> list[tuple[int, ...]]:
    """The positions of compiled cohorts that a slot takes together.

    A slot takes at most about eight, of about `most` steps; each goes to those that have least to do so far, and all slots
    take as often, so they are done at about the same time.

    Args:
        costs: local steps of each cohort.
        slots: how many share them.
        most: local steps that a slot takes at a time, unless they are one cohort's.
    """
    times = max(1, -(-len(costs) // (slots * _TOGETHER)), -(-sum(costs) // (slots * most)))
    shares = [(0, i, list[int]()) for i in range(min(slots * times, len(costs)))]
    for position, cost in enumerate(costs):
        least, i, positions = heappop(shares)
        heappush(shares, (least + cost, i, [*positions, position]))
    return sorted(tuple(positions) for *_, positions in shares)


def steps_together(data: FederatedDataModule) -> int:
    """Local steps of compiled cohorts whose plans, and batches where those are made beforehand, are in memory at a time."""
    if data.only_gathers:
        return _STEPS_TOGETHER
    batch = first_batch(data)
    example = (batch.inputs.nbytes + batch.targets.nbytes) / max(len(batch.inputs), 1)
    size = data.batch_size or len(batch.inputs)
    return min(_STEPS_TOGETHER, max(1, int(_BYTES_TOGETHER / max(example * size, 1))))


def _convolving(task: FederatedTask, layout: Layout, work: Workload) -> bool:
    """Whether compiling pays for convolutions, which a graph carries out for all places of a batch."""
    return _dense(task, layout, _CONVOLVING) and work.total >= _LONG_CONVOLVING and work.filled >= _FILLED


def _dense(task: FederatedTask, layout: Layout, others: tuple[type[nn.Module], ...] = ()) -> bool:
    leaves = [m for m in task.model.modules() if not list(m.children()) and list(m.parameters())]
    return all(isinstance(leaf, _DENSE + others) for leaf in leaves) and layout.size < _HEAVY
