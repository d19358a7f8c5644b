"""What a model does in training besides computing, seen in one forward pass before the first round."""

from __future__ import annotations

import random
import traceback
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
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


def inspect(task: FederatedTask, data: FederatedDataModule, on_cpu: bool = True) -> Findings:
    """Look at the layers, and at what the loss of the first client's first batch leaves behind in a copy of the task.

    Args:
        task: the model and its loss.
        data: whose batch it is.
        on_cpu: whether the model will be trained on the CPU, as it is tried here; else one that fails is taken to do nothing.

    Raises:
        ConfigurationError: the shapes or types of the data do not fit the model.
    """
    layer = next((name for name, module in task.named_modules() if _looks_around(module)), None)
    probe = key_dropout(task).to("cpu").train()
    before = {name: (buffer, buffer._version) for name, buffer in probe.named_buffers()}
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    batch = first_batch(data)
    if not len(batch[0]):
        return Findings(layer, None, False)
    try:
        with torch.no_grad():
            probe.loss(batch)
    except (RuntimeError, ValueError, IndexError) as error:
        if on_cpu and _raised_by_torch(error):
            raise _misfit(batch, error) from error
    except Exception:  # noqa: BLE001 - it is raised in training, with all that led to it
        pass
    finally:
        draws = _drawn(generators)
    after = dict(probe.named_buffers())
    changed = [
        name for name, (buffer, version) in before.items() if after[name] is not buffer or buffer._version != version
    ]
    return Findings(layer, next(iter(changed), None), draws)


def _raised_by_torch(error: BaseException) -> bool:
    """Whether it comes from a layer or a function of torch, and not from the user's own code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "torch"


def _misfit(batch: Batch, error: Exception) -> ConfigurationError:
    what = " and ".join(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in batch)
    return ConfigurationError(
        f"The task must give the losses of a batch, but fails on the first one of client 0, which is {what}: "
        f"{type(error).__name__}: {str(error).splitlines()[0][:300]}; look at the shapes and types of the data and the model."
    )


def first_batch(data: FederatedDataModule) -> Batch:
    """The first batch of the first client; no example where its schedule has no batch, which training will refuse."""
    schedule = data.schedule(0, 0, 0, 1)
    index, draws = schedule.index[:1], schedule.draws
    index = index[index >= 0]
    return data.batch(data.train, index, None if draws is None else draws[:1].flatten(0, 1)[: len(index)])


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
