"""Cohort steps as plain graphs: the bits of vmap, whoever takes which, and a run goes on where they cannot be traced."""

from collections.abc import Callable

import pytest
import torch
from small_runs import ALL, fit, named, small_task, unequal_clients
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fedlightning import FedMethod, RoundState
from fedlightning.execution.numerics import Precision
from fedlightning.execution.runners.vmap import Traces, VmapBackend


def traced_run(
    method: FedMethod, often: int, *layers: nn.Module, slots: int = 1, precision: Precision = "32-true"
) -> tuple[RoundState, Traces]:
    """A run whose steps are traced once they were taken so often; dropout, and these layers, behind the small network."""
    vmap = VmapBackend(3, traces=True, often=often)
    task, data = small_task(nn.Dropout(0.3), *layers, dtype=torch.float32), unequal_clients(torch.float32)
    trainer = fit(method, task, data, 3, slots=slots, runner=vmap, precision=precision)
    assert vmap.traces
    return trainer.state, vmap.traces


NEVER = 10**9


def equal(one: RoundState, other: RoundState) -> None:
    assert all(torch.equal(tensor, other.server[name]) for name, tensor in one.server.items())
    for client, row in one.memory.rows().items():
        assert all(torch.equal(tensor, other.memory.rows()[client][name]) for name, tensor in row.items())


@pytest.mark.parametrize("name", ALL)
def test_traced_steps_give_the_bits_of_vmap(name: str) -> None:
    """From the second round on nearly all steps are taken by graphs; unequal clients, dropout, and batches of two sizes."""
    traced, graphs = traced_run(named(name), 1)
    assert len(graphs.graphs) > 3
    under_vmap, none = traced_run(named(name), NEVER)
    assert not none.graphs
    equal(traced, under_vmap)


def test_which_steps_are_traced_and_by_whom_changes_no_bit() -> None:
    some, graphs = traced_run(named("scaffold"), 9, slots=2)
    assert 0 < len(graphs.graphs) < len(graphs.seen)
    equal(some, traced_run(named("scaffold"), NEVER)[0])


def test_traced_steps_in_mixed_precision_give_the_bits_of_vmap() -> None:
    traced, graphs = traced_run(named("scaffold"), 1, precision="bf16-mixed")
    assert graphs.graphs
    equal(traced, traced_run(named("scaffold"), NEVER, precision="bf16-mixed")[0])


class NoRule(nn.Module):
    """A layer that vmap takes, and that fails where it is traced."""

    def forward(self, inputs: Tensor) -> Tensor:
        if get_proxy_mode():
            raise RuntimeError("no rule for this operator")
        return inputs


def test_steps_that_cannot_be_traced_are_taken_under_vmap_and_that_is_said_once(said: Callable[[], list[str]]) -> None:
    run, graphs = traced_run(named("fedprox"), 1, NoRule())
    assert not graphs.graphs
    assert said() == ["Cohorts take their steps under vmap, since these cannot be traced: no rule for this operator"]
    equal(run, traced_run(named("fedprox"), NEVER)[0])
