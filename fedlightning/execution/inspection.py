"""What a model does in training besides computing, seen in one forward pass before the first round."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlightning._capabilities import own_hooks
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, FedLightningError, MethodError
from fedlightning.execution.model import Replica, mean_loss
from fedlightning.execution.step import Clients, LocalStep
from fedlightning.hooks.diagnose import calling, where
from fedlightning.hooks.generators import Generators, no_draws
from fedlightning.layout import Layout
from fedlightning.method import Batch, FedMethod, FlatModel, visible
from fedlightning.models.dropout import KeyedDropout, key_dropout
from fedlightning.state import State
from fedlightning.task import FederatedTask


class Obstacle(NamedTuple):
    """Why clients can be trained neither side by side nor in a graph.

    Attributes:
        what: what the model, or the loss, has.
        remedy: what to do about it.
    """

    what: str
    remedy: str


_ALONE = "`runner='loop'`"

ACROSS = Obstacle(
    "a loss that looks across a batch, empty places included",
    f"leave out what `batch.mask` does not fill, or use {_ALONE}",
)


class Findings(NamedTuple):
    """What stands in the way of training clients side by side or in a graph.

    Attributes:
        layer: name of one that has no batching rule, or that looks at the whole batch, empty places included.
        buffer: name of one that training changes.
        draws: whether random numbers are drawn of which the process has but one sequence.
        coupled: whether the loss of one example depends on the others of its batch, as the task or the method says.
        kind: the class of that layer.
    """

    layer: str | None
    buffer: str | None
    draws: bool
    coupled: bool = False
    kind: type[nn.Module] = nn.Module

    @property
    def obstacle(self) -> Obstacle | None:
        """The first of them; None if there is nothing."""
        remedy = f'use group norm in the place of batch norm (models of this library: `norm="group"`), or {_ALONE}'
        if self.layer is not None:
            alone = f"use {_ALONE}"
            return Obstacle(
                f"{self.layer!r} ({self.kind.__name__})", alone if issubclass(self.kind, nn.RNNBase) else remedy
            )
        if self.buffer is not None:
            return Obstacle(f"{self.buffer!r}, a buffer that training changes", remedy)
        if self.draws:
            return Obstacle("random numbers that no key reaches", f"use `nn.Dropout`, or {_ALONE}")
        return ACROSS if self.coupled else None


def inspect(
    method: FedMethod, task: FederatedTask, layout: Layout, data: FederatedDataModule, on_cpu: bool = True
) -> Findings:
    """Look at the layers, and at what the loss of a batch leaves behind in a copy of the task.

    The batch is the first one of the client with most examples.

    Args:
        method: what may change the loss.
        task: the model and its loss.
        layout: where its parameters lie in w.
        data: whose batch it is.
        on_cpu: whether the model will be trained on the CPU, as it is tried here; else one that fails is taken to do nothing.

    Raises:
        ConfigurationError: the shapes or types of the data do not fit the model, or it cannot take a batch of one example
            where a client has one.
        MethodError: the loss is not one number for each example.
    """
    around = ((name, type(module)) for name, module in task.named_modules() if _looks_around(module))
    layer, kind = next(around, (None, nn.Module))
    coupled = task.coupled or method.coupled
    probe = key_dropout(task).to("cpu").train()
    before = {name: (buffer, buffer._version) for name, buffer in probe.named_buffers()}
    client = int(data.clients.sizes.argmax())
    batch = first_batch(data, client)
    if not len(batch.inputs):
        return Findings(layer, None, False, coupled, kind)
    error, draws = _tried(probe, batch)
    if on_cpu and error:
        raise misfit(batch, f"the first one of client {client}", error, layout.dtype) from error
    _check_outputs(probe, batch)
    after = dict(probe.named_buffers())
    changed = [
        name for name, (buffer, version) in before.items() if after[name] is not buffer or buffer._version != version
    ]
    _check_gradient(probe, batch)
    _check_single(probe, data, batch, method.local_steps(0))
    return Findings(layer, next(iter(changed), None), draws, coupled, kind)


def _tried(probe: FederatedTask, batch: Batch) -> tuple[Exception | None, bool]:
    """What a layer or a function of torch raises on a batch, and whether global random numbers are drawn; they are put back.

    Raises:
        MethodError: the loss is not one number for each example.
    """
    generators = Generators()
    try:
        with torch.no_grad():
            losses = probe.loss(batch)
            if not losses.is_floating_point():
                raise ConfigurationError(
                    f"The loss of {type(probe).__name__} must be of floating-point numbers, but is of {losses.dtype}; leave out "
                    "what turns it into whole numbers."
                )
            mean_loss(losses, batch.mask, False, f"The loss of {type(probe).__name__}")
    except FedLightningError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return error if raised_by_torch(error) else None, _drawn(generators)
    except Exception:  # noqa: BLE001 - it is raised in training, with all that led to it
        pass
    return None, _drawn(generators)


def _check_gradient(probe: FederatedTask, batch: Batch) -> None:
    """Refuse a loss that nothing is learned from; two examples show it.

    Raises:
        ConfigurationError: the loss has no gradient.
    """
    generators = Generators()
    try:
        with torch.enable_grad():
            losses = probe.loss(Batch(*(tensor[:2] for tensor in batch)))
    except Exception:  # noqa: BLE001 - it is raised in training, with all that led to it
        return
    finally:
        generators.restore()
    if not losses.requires_grad:
        raise ConfigurationError(
            f"The loss of {type(probe).__name__} must depend on the model's parameters, but has no gradient; leave out "
            "`detach()` and `no_grad`."
        )


def _check_outputs(probe: FederatedTask, batch: Batch) -> None:
    """Let the task look at what its model gives for a batch; a model that fails on it does so again in training.

    Raises:
        ConfigurationError: the outputs are not what the task takes.
    """
    if own_hooks(type(probe), FederatedTask, ("loss",)):
        return
    generators = Generators()
    try:
        with torch.no_grad():
            outputs = probe(batch.inputs)
    except Exception:  # noqa: BLE001 - it is raised in training, with all that led to it
        return
    finally:
        generators.restore()
    probe.check_outputs(outputs, batch.targets)


def _check_single(probe: FederatedTask, data: FederatedDataModule, batch: Batch, steps: int | None) -> None:
    """Refuse a model that cannot take a batch of one example, as batch norm cannot, where a client has such a batch.

    Raises:
        ConfigurationError: it cannot, and a client has.
    """
    if "schedule" in data.own_hooks or len(batch.inputs) < 2:
        return
    sizes, batching = data.clients.sizes, data.batching
    size = batching.size or sizes
    dropped = batching.drop_last & (sizes > size)
    # Only steps of whole epochs come to their last batch.
    reached = sizes <= (steps or batching.steps or math.inf) * size
    single = ((sizes % size == 1) & ~dropped & reached) | (sizes == 1)
    if batching.size == 1 or not bool(single.any()):
        return
    error, _ = _tried(probe, Batch(*(tensor[:1] for tensor in batch)))
    if error is None:
        return
    client, drop = int(single.nonzero()[0]), "" if batching.drop_last else "`drop_last=True` of Batching, "
    raise ConfigurationError(
        f"The model must take a batch of one example, since {int(single.sum())} of {len(sizes)} clients have one (the first: "
        f"client {client}, {int(sizes[client])} examples in batches of {batching.size}), but fails on it: "
        f"{type(error).__name__}: {str(error).splitlines()[0][:200]}; use {drop}another `size`, "
        "or a partition with `min_size=2`."
    ) from error


def raised_by_torch(error: BaseException) -> bool:
    """Whether it comes from a layer or a function of torch, and not from the user's own code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "torch"


def misfit(batch: Sequence[Tensor], which: str, error: Exception, dtype: torch.dtype) -> ConfigurationError:
    """What to raise where torch fails on a batch of inputs and targets, for a model of this dtype."""
    what = " and ".join(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in batch[:2])
    inputs, remedy = batch[0], "look at the shapes and types of the data and the model"
    if inputs.is_floating_point() and inputs.dtype != dtype:
        remedy = f"use `inputs.to({dtype})`, or `model.to({inputs.dtype})`"
    return ConfigurationError(
        f"The task must give the losses of a batch, but fails on {which}, which is {what}: {type(error).__name__}: "
        f"{str(error).splitlines()[0][:300]}; {remedy}."
    )


def first_batch(data: FederatedDataModule, client: int = 0) -> Batch:
    """A client's first batch; no example where its schedule has no batch, which training will refuse."""
    schedule = data.schedule(client, 0, 0, 1)
    index, draws = schedule.index[:1], schedule.draws
    index = index[index >= 0]
    return Batch.full(*data.batch(data.train, index, None if draws is None else draws[:1].flatten(0, 1)[: len(index)]))


class Trial:
    """The method's objective at the start model, on the first batch of the client with most examples; without dropout.

    Args:
        method: whose objective it is.
        task: the model.
        layout: where its parameters lie in w.
        data: whose batch it is.
        device: where it is tried.
    """

    def __init__(
        self, method: FedMethod, task: FederatedTask, layout: Layout, data: FederatedDataModule, device: torch.device
    ) -> None:
        self._replica = Replica(task, layout, device)
        for module in self._replica.task.modules():
            if isinstance(module, KeyedDropout):
                module.p = 0.0
        self._owner = int(data.clients.sizes.argmax())
        self._batch = Batch(*(tensor.to(device) for tensor in first_batch(data, self._owner)))
        self._x = x = layout.read(task).to(device)
        server, gradient = visible(method, method.configure_server(x)), method.gradient_pass()
        if gradient == "mean":
            server = server.replace(gradient=torch.zeros_like(x))
        self._server, self._step, one = server, LocalStep(method, self._replica, layout), x.new_ones(())
        numbers = State(
            lr=method.client_lr(0) * one, num_steps=one, num_examples=len(self._batch.inputs) * one, round=0 * one
        )
        known = Clients(
            x.new_zeros(len(x) * (gradient != "none")),
            method.configure_client(x),
            numbers,
            one.to(torch.int64),
            x.new_zeros(()),
        )
        self._client = self._step.context(server, known)

    def check(self) -> None:
        """Compute the objective once.

        Raises:
            MethodError: it fails, is not one number for each example, or draws global random numbers.
        """
        if len(self._batch.inputs):
            with no_draws(where(self._step.method, "objective"), self._x.device, models=True):
                self._look(self._batch, padded=False)

    def looks_across(self) -> bool:
        """Whether the mean over some places depends on what stands in those that are empty.

        The last places of the batch are emptied. What is left must give the loss and the gradient that it gives alone: for
        several numbers of places, since a median or the k largest may fall on the same example by chance, and where the loss
        is small, too, since some terms begin to count there.
        """
        count = len(self._batch.inputs)
        scale = self._look(self._batch, padded=False).norm()
        splits = sorted({1, 2, 3, count // 2, count - count // 3, count - 2, count - 1} & set(range(1, count)))
        return any(self._depends(w, kept, scale) for w in (self._x, self._lower()) for kept in splits)

    def _depends(self, w: Tensor, kept: int, scale: Tensor) -> bool:
        """Whether the first places that are kept give something else beside the others, emptied, than alone."""
        alone = self._look(Batch(*(tensor[:kept] for tensor in self._batch)), False, w)
        mask = torch.arange(len(self._batch.inputs), device=w.device) < kept
        beside = self._look(self._batch._replace(mask=mask), True, w)
        # Kernels round otherwise for batches of another size, by far less than the root of a number's precision of what the
        # losses are at the start; where they are small, rounding is not.
        return bool(
            (beside - alone).norm() > torch.finfo(alone.dtype).eps ** 0.5 * torch.maximum(alone.norm(), 0.1 * scale)
        )

    def _lower(self) -> Tensor:
        """Parameters [P] at which the batch's loss is lower: a few steps of Polyak's size, f / ‖∇f‖²."""
        w = self._x
        for _ in range(5):
            gradient, loss = self._look(self._batch, False, w).split([len(w), 1])
            after = w - loss / gradient.square().sum().clamp(min=1e-12) * gradient
            if not bool(torch.isfinite(after).all()):
                break
            w = after
        return w

    def _look(self, batch: Batch, padded: bool, w: Tensor | None = None) -> Tensor:
        """The gradient and the loss [P + 1]."""
        w = (self._x if w is None else w).clone().requires_grad_()
        try:
            with calling(self._step.method, "objective", self._server), torch.enable_grad():
                model = _Quiet(self._replica.at(self._client.key), w.device)
                loss = self._step.mean_objective(model, w, self._client, batch, padded)
                if not loss.requires_grad:
                    raise MethodError(
                        f"{where(self._step.method, 'objective')} must depend on w, but its losses have no gradient; leave "
                        "out `detach()`, `no_grad` and what turns them into whole numbers."
                    )
                (gradient,) = torch.autograd.grad(loss, w)
        except Exception as error:
            error.add_note(f"Before the first round, on the first batch of client {self._owner}.")
            raise
        return torch.cat([gradient, loss.detach()[None]])


class _Quiet:
    """A model that leaves the global random generators as they were: what it draws itself is not what `objective` draws."""

    def __init__(self, model: FlatModel, device: torch.device) -> None:
        self._model, self._device = model, device

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The outputs."""
        return self._run(self._model, w, inputs)

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The losses."""
        return self._run(self._model.loss, w, batch)

    def _run(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        generators = Generators(self._device)
        result = function(*arguments)
        generators.restore()
        return result


def _looks_around(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | nn.RNNBase) or bool(getattr(module, "track_running_stats", False))


def _drawn(generators: Generators) -> bool:
    """Whether the process's generators have moved; they are put back."""
    drawn = generators.moved()
    if drawn:
        generators.restore()
    return drawn
