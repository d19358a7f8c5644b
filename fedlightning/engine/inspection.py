"""What a model does in training besides computing, seen in one forward pass before the first round."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlightning.data.module import FederatedDataModule
from fedlightning.method import Batch
from fedlightning.models.dropout import key_dropout
from fedlightning.task import FederatedTask


class Findings(NamedTuple):
    """What stands in the way of training clients side by side or in a graph.

    Attributes:
        layer: name of one that has no batching rule, or that looks at the whole batch, empty places included.
        buffer: name of one that training changes.
        draws: whether random numbers are drawn of which the process has but one sequence.
    """

    layer: str | None
    buffer: str | None
    draws: bool

    @property
    def obstacle(self) -> str | None:
        """The first of them, in words; None if there is nothing."""
        if self.layer is not None:
            return repr(self.layer)
        if self.buffer is not None:
            return f"{self.buffer!r}, a buffer that training changes"
        return "random numbers that no key reaches" if self.draws else None


def inspect(task: FederatedTask, data: FederatedDataModule) -> Findings:
    """Look at the layers, and at what the loss of two examples leaves behind in a copy of the task on the CPU.

    A model that fails there is taken to do nothing: what is wrong with it is raised in training.
    """
    layer = next((name for name, module in task.named_modules() if _looks_around(module)), None)
    probe = key_dropout(task).to("cpu").train()
    before = {name: (buffer, buffer._version) for name, buffer in probe.named_buffers()}
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        with torch.no_grad():
            probe.loss(first_batch(data, 2))
    except Exception:  # noqa: BLE001 - as said
        return Findings(layer, None, False)
    finally:
        draws = _drawn(generators)
    after = dict(probe.named_buffers())
    changed = [
        name for name, (buffer, version) in before.items() if after[name] is not buffer or buffer._version != version
    ]
    return Findings(layer, next(iter(changed), None), draws)


def first_batch(data: FederatedDataModule, size: int | None = None) -> Batch:
    """The first batch of the first client, or so many of its examples."""
    schedule = data.schedule(0, 0, 0, 1)
    index = schedule.index[0][schedule.index[0] >= 0][:size]
    return data.batch(data.train, index, None if schedule.draws is None else schedule.draws[0, : len(index)])


def _looks_around(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | nn.RNNBase) or bool(getattr(module, "track_running_stats", False))


def _drawn(before: tuple[Any, ...]) -> bool:
    """Whether the process's generators have moved; they are put back."""
    states, legacy, python = before
    drawn = not torch.equal(states, torch.get_rng_state()) or repr(legacy) != repr(np.random.get_state())
    drawn = drawn or python != random.getstate()
    torch.set_rng_state(states)
    np.random.set_state(legacy)
    random.setstate(python)
    return drawn
