"""Client after client through one graph of several local steps, run from Python; the compiled runner runs it from C.

A graph holds U steps of one client, so that one is enough: side by side, clients would want a graph for each number of them
and save but little, since a product of a small model fills the processor's vectors by itself. U is 1 where a step is large,
whose call costs nothing beside it. A client's steps are padded to a multiple of U; a step that only pads leaves everything as
it is.

A cohort is planned and its clients are started, then all of its steps are taken, then its clients end: what is done for a
cohort in Python takes several times as long where a graph has just taken the cache. So several cohorts go through each of the
three together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from fedlightning.errors import ConfigurationError
from fedlightning.execution.plan import CohortPlan, RoundInputs, RoundPlan
from fedlightning.execution.runners._over_clients import traced_over_clients
from fedlightning.execution.runners._trace import trace, used_inputs, without_unused
from fedlightning.execution.runners.base import (
    Backend,
    CohortResult,
    begun,
    check_cancelled,
    examples_of,
    result,
    told,
)
from fedlightning.execution.runners.compiled.rewrite import RULES
from fedlightning.execution.slots import Worker
from fedlightning.execution.step import Clients, FlatFunction, LocalStep, flat
from fedlightning.hooks.diagnose import calling
from fedlightning.hooks.generators import NoGlobalNumbers
from fedlightning.method import Batch
from fedlightning.state import State

BLOCK = 512
"""Steps of all clients of a block, if one gather makes their batches; those of more steps would leave the cache. Eight times
as many where no batch is made beforehand, and eight where steps are large."""


Walked = tuple[list[Tensor], Tensor]
"""The local state's entries [C, …] after the steps, and the losses [R]."""


class Walk(Protocol):
    """A slot's way through a graph, for one client after another."""

    def __call__(self, given: Sequence[Given], calls: Sequence[int]) -> Callable[[], Walked]:
        """What takes the steps.

        Args:
            given: the graph's inputs, all of them in its order; the local state comes first, as it does among its outputs.
            calls: of the graph, for each client.
        """


class Given(NamedTuple):
    """One of a graph's inputs, for all clients and steps of a walk.

    Attributes:
        each: whose part of the tensor a call takes: that of "all" […], of a "client" [C, …], or of its U "rows" [R, …].
        tensor: the tensor; or, of batches that are made where they are used and so stay in the cache, the examples [n, …].
        index: of such batches: which examples [R, B] (int64).
        is_state: whether it is the local state, which a call changes.
    """

    each: Literal["all", "client", "rows"]
    tensor: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it
    is_state: bool = False


class Program(NamedTuple):
    """The graph of a phase, for all slots.

    Attributes:
        walk: makes a slot's own walk through it.
        starts, ends: what clients do before and after it.
    """

    walk: Callable[[], Walk]
    starts: Callable[..., State]
    ends: Callable[..., tuple[State, State]]


class TracedBackend(Backend):
    """The graphs of a run, one for each phase; they serve all slots, rounds and servers.

    Args:
        unroll: U, local steps of a graph.
        large: whether a step is large.
        cohort_size: how many clients are planned and handed over together.
        gathers: whether the data module does no more than pick examples, so that the runner may pick them itself.
    """

    together = True
    share = 0.125

    def __init__(self, unroll: int, large: bool, cohort_size: int, gathers: bool) -> None:
        self.unroll, self.large, self.cohort_size, self.gathers = unroll, large, cohort_size, gathers
        self.seconds = 0.0
        self._programs: dict[str, Program] = {}

    def prepare(self, step: LocalStep, plan: RoundPlan, inputs: RoundInputs, slot: Worker) -> None:
        """Trace the phase's graph from the first steps of the longest client, and build it if it is not there.

        Raises:
            MethodError: a hook cannot be traced.
            RuntimeError: the model cannot be traced.
            ConfigurationError: the graph cannot be built.
        """
        began = time.perf_counter()
        one = plan.draw((max(plan.clients, key=plan.num_steps),))
        with torch.no_grad():
            server = begun(inputs, slot)
            clients = one.known(step.method, inputs, slot.device)
            with calling(step.method, "on_client_start", server):
                starts = traced_over_clients(step.starts, server, clients)
            local = starts(server, clients)
            with calling(step.method, "on_client_end", server):
                ends = traced_over_clients(step.ends, server, local, one.after(clients))
            rows = self.rows(one, server.x.dtype, slot.device).some(0, self.unroll)
            client = clients.some(0)._replace(key=rows.keys, step=rows.step)
            batches = Batch(*examples_of(slot, rows.index, rows.draws), rows.mask)
            given = local.apply(lambda tensor: tensor[0]), server, client, batches, rows.active
            self._programs[step.phase.name] = Program(self._built(step, given), starts, ends)
        self.seconds += time.perf_counter() - began

    def __call__(self, step: LocalStep, slot: Worker) -> TracedRunner:
        """A slot's runner."""
        return TracedRunner(step, slot, self, self._programs[step.phase.name])

    def block(self) -> int:
        """The most rows that are taken without a look at whether the run is being stopped."""
        if self.large:
            return 8
        return max((8 * BLOCK if self.gathers else BLOCK) // self.unroll, 1) * self.unroll

    def rows(self, plan: CohortPlan, dtype: torch.dtype, device: torch.device) -> Rows:
        """A plan's rows, padded for the graph."""
        return Rows.of(plan, self.unroll, self._width(plan), dtype, device)

    def _width(self, plan: CohortPlan) -> int:
        """B of the graph; with whole data sets as batches, the largest client's."""
        data = plan.round.data
        size = data.largest_batch
        if plan.index.shape[1] > size:
            raise ConfigurationError(
                f"`schedule` must give batches of at most {size} examples, as `batching` says, where steps are graphs, but that "
                f'of {type(data).__name__} gives {plan.index.shape[1]}; use a larger `size` of Batching, or `runner="loop"`.'
            )
        return size

    def _built(self, step: LocalStep, given: tuple[State, State, Clients, Batch, Tensor]) -> Callable[[], Walk]:
        """What makes a slot's walk through the graph of the steps that were given."""
        graph = traced_steps(step, given)
        used = used_inputs(graph)
        without_unused(graph, used)
        walk = walk_in_python(lambda inputs: graph(*inputs), used, self.unroll)
        return lambda: walk


def traced_steps(step: LocalStep, given: tuple[State, State, Clients, Batch, Tensor]) -> GraphModule:
    """The steps as a graph, from flat inputs to the local state's entries and the losses [U]."""

    def steps(local: State, server: State, *others: Any) -> tuple[State, Tensor]:
        with NoGlobalNumbers():  # type: ignore[no-untyped-call]
            local, losses = step.in_turn(server, local, *others)
        return local.apply(Tensor.contiguous), losses

    with calling(step.method, "on_local_step", given[1]):
        tensors = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in flat(*given)]
        return trace(FlatFunction(steps, *given), tensors, rules=RULES)


class Rows(NamedTuple):
    """A plan's rows with each client's padded to a multiple of U, client after client.

    Attributes:
        index: positions of examples [R, B]; 0 in a row that only pads.
        mask: whether each place is filled [R, B].
        active: whether a row is a step [R].
        keys: randomness [R].
        step: which of its client's steps a row is, of w's dtype [R].
        draws: the augmentation's integers [R, B, D], or None.
        places: where the plan's rows lie among these, or None where they are the same.
        lengths: rows of each client.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of rows
    mask: Tensor
    active: Tensor
    keys: Tensor
    step: Tensor
    draws: Tensor | None
    places: NDArray[np.int64] | None
    lengths: list[int]

    @classmethod
    def of(cls, plan: CohortPlan, unroll: int, width: int, dtype: torch.dtype, device: torch.device) -> Rows:
        """The plan's rows, padded to batches of `width` places and to multiples of `unroll` steps."""
        taken = np.array(plan.num_steps)
        lengths = -(-taken // unroll) * unroll
        total, places = int(lengths.sum()), None
        if total > len(plan.step):
            places = (np.cumsum(lengths) - lengths)[plan.owner] + plan.step

        def laid(rows: NDArray[Any]) -> Tensor:
            if places is not None:
                table = np.zeros((total, *rows.shape[1:]), rows.dtype)
                table[places] = rows
                rows = table
            return torch.from_numpy(rows).to(device)

        index, mask = plan.index.numpy(), plan.mask.numpy()
        draws = None if plan.draws is None else plan.draws.numpy()
        if (more := width - index.shape[1]) > 0:
            index = np.concatenate([index, np.repeat(index[:, :1], more, axis=1)], axis=1)
            mask = np.pad(mask, ((0, 0), (0, more)))
            draws = None if draws is None else np.pad(draws, ((0, 0), (0, more), (0, 0)))
        filled = laid(mask)
        return cls(
            laid(index),
            filled,
            filled[:, 0].contiguous(),  # the filled places are those in front
            laid(plan.keys.numpy()),
            laid(plan.step).to(dtype),
            None if draws is None else laid(draws),
            places,
            lengths.tolist(),
        )

    def some(self, first: int, last: int) -> Rows:
        """The rows from `first` to before `last`."""
        if first == 0 and last == len(self.index):
            return self
        draws = None if self.draws is None else self.draws[first:last]
        index, mask, active, keys, step = (tensor[first:last] for tensor in self[:5])
        return self._replace(index=index, mask=mask, active=active, keys=keys, step=step, draws=draws)


@dataclass
class _Cohort:
    """A cohort between its start and its end.

    Attributes:
        plan: what it was to do.
        server: what the server sent, on the slot's device.
        clients: the clients' tensors.
        rows: the plan's rows as the graph takes them.
        local: the local states [C, …].
        steps: takes the first block's steps.
        blocks: the first client, the lengths and the first row of each block.
        losses: of the blocks that were taken [R].
    """

    plan: CohortPlan
    server: State
    clients: Clients
    rows: Rows
    local: State
    steps: Callable[[], Walked]
    blocks: list[tuple[int, tuple[int, ...], int]]
    losses: list[Tensor]


class TracedRunner:
    """Takes U steps of a client a call.

    Args:
        step: what a local step is.
        slot: where it is taken.
        backend: how rows are laid out for the graph.
        program: the phase's graph.
    """

    def __init__(self, step: LocalStep, slot: Worker, backend: TracedBackend, program: Program) -> None:
        self._step, self._slot, self._backend, self._program = step, slot, backend, program
        self._walk = program.walk()

    @torch.no_grad()
    def run(self, plans: Sequence[CohortPlan], inputs: RoundInputs) -> list[CohortResult]:
        """Train the cohorts: start all of them, take the steps of all of them, end all of them."""
        cohorts = [self._begin(plan, inputs) for plan in plans]
        for cohort in cohorts:
            self._take(cohort)
        return [self._end(cohort, inputs) for cohort in cohorts]

    def _begin(self, plan: CohortPlan, inputs: RoundInputs) -> _Cohort:
        """Start the clients, and describe the first block's steps."""
        step, slot = self._step, self._slot
        with told(plan, slot):
            server = begun(inputs, slot)
            clients = plan.known(step.method, inputs, slot.device)
            with calling(step.method, "on_client_start", server):
                local: State = self._program.starts(server, clients)
            rows = self._backend.rows(plan, server.x.dtype, slot.device)
            blocks = list(_blocks(rows.lengths, self._backend.block()))
            steps = self._described(server, local, clients, rows, *blocks[0])
        return _Cohort(plan, server, clients, rows, local, steps, blocks, [])

    def _take(self, cohort: _Cohort) -> None:
        """Take all steps of a cohort."""
        count = len(cohort.plan.clients)
        with told(cohort.plan, self._slot):
            for number, (first, lengths, row) in enumerate(cohort.blocks):
                check_cancelled(self._slot)
                if number:  # the first block's are described before any cohort's steps are taken
                    described = cohort.server, cohort.local, cohort.clients, cohort.rows
                    cohort.steps = self._described(*described, first, lengths, row)
                states, losses = cohort.steps()
                after = State(**dict(zip(cohort.local, states, strict=True)))
                whole = len(lengths) == count
                cohort.local = after if whole else _put(cohort.local, after, slice(first, first + len(lengths)))
                cohort.losses.append(losses)

    def _end(self, cohort: _Cohort, inputs: RoundInputs) -> CohortResult:
        """End the clients."""
        plan, slot, step = cohort.plan, self._slot, self._step
        with told(plan, slot), calling(step.method, "on_client_end", cohort.server):
            ends = self._program.ends(cohort.server, cohort.local, plan.after(cohort.clients))
        losses = torch.cat(cohort.losses)
        if cohort.rows.places is not None:
            losses = losses[torch.from_numpy(cohort.rows.places).to(losses.device)]
        buffers = slot.replica.buffers().expand(len(plan.clients), -1)
        return result(plan, inputs, ends, losses, buffers, slot)

    def _described(
        self, server: State, local: State, clients: Clients, rows: Rows, first: int, lengths: tuple[int, ...], row: int
    ) -> Callable[[], Walked]:
        """What takes a block's steps: so many rows of each client from `first` on, the first of them at `row`."""
        slot, unroll = self._slot, self._backend.unroll
        if len(lengths) < len(clients.key):
            some = slice(first, first + len(lengths))
            local, clients = local.apply(lambda tensor: tensor[some]), clients.some(some)
        part = rows.some(row, row + sum(lengths))
        own = (clients.gradient, *clients.state.values(), *clients.numbers.values())
        if self._backend.gathers:
            batches = [Given("rows", tensor, part.index) for tensor in slot.examples]
        else:
            batches = [Given("rows", tensor) for tensor in examples_of(slot, part.index, part.draws)]
        given = [
            *(Given("client", tensor, is_state=True) for tensor in local.values()),
            *(Given("all", tensor) for tensor in server.values()),
            *(Given("client", tensor) for tensor in own),
            *(Given("rows", tensor) for tensor in (part.keys, part.step)),
            *batches,
            *(Given("rows", tensor) for tensor in (part.mask, part.active)),
        ]
        return self._walk(given, [length // unroll for length in lengths])


def walk_in_python(run: Callable[[list[Tensor]], Any], used: Sequence[int], unroll: int) -> Walk:
    """Call the graph from Python.

    Args:
        run: the graph; it takes the inputs at the positions `used`.
        used: those that it looks at.
        unroll: U, its steps.
    """

    def walk(given: Sequence[Given], calls: Sequence[int]) -> Callable[[], Walked]:
        return lambda: steps(given, calls)

    def steps(given: Sequence[Given], calls: Sequence[int]) -> Walked:
        count = sum(calls)
        # What each call takes of each input, but for the state; a client's part is the same in all of its calls.
        owners = [c for c, times in enumerate(calls) for _ in range(times)]
        taken = {i: _for_calls(given[i], owners, count, unroll) for i in used if not given[i].is_state}
        local = [each.tensor for each in given if each.is_state]
        ends, losses, at = [], [], 0
        for c, times in enumerate(calls):
            state = [tensor[c] for tensor in local]
            for call in range(at, at + times):
                # A compiled graph may write its next results to where these lie.
                *state, loss = (
                    result.clone() for result in run([state[i] if i not in taken else taken[i][call] for i in used])
                )
                losses.append(loss)
            at += times
            ends.append(state)
        return [torch.stack(entries) for entries in zip(*ends, strict=True)], torch.cat(losses)

    return walk


def _for_calls(given: Given, owners: Sequence[int], count: int, unroll: int) -> Sequence[Tensor]:
    """What each of so many calls takes of an input."""
    if given.each == "all":
        return [given.tensor] * count
    if given.each == "client":
        each = given.tensor.unbind()
        return [each[c] for c in owners]
    rows = given.tensor.contiguous() if given.index is None else given.tensor[given.index]
    return rows.view(-1, unroll, *rows.shape[1:]).unbind()


def _blocks(lengths: Sequence[int], most: int) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Blocks of at most so many rows: the first client, the rows of it and of those that follow it, and the first row."""
    first, row, part = 0, 0, list[int]()
    for c, length in enumerate(lengths):
        left = length
        while left:
            part.append(min(left, most - sum(part)))
            left -= part[-1]
            if sum(part) == most:
                yield first, tuple(part), row
                first, row, part = c if left else c + 1, row + most, []
    if part:
        yield first, tuple(part), row


def _put(states: State, some: State, which: slice) -> State:
    """The states of all clients, of which some have new ones."""

    def put(name: str) -> Tensor:
        return torch.cat([states[name][: which.start], some[name], states[name][which.stop :]])

    return State(**{name: put(name) for name in states})
