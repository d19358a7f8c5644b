"""Cohort steps as plain graphs: the bits of vmap, whoever takes which, and a run goes on where they cannot be traced."""

from typing import Any

import pytest
import torch
from torch import nn
from unequal_clients import ALL, data, named, task

from fedlightning import FederatedTrainer, FedMethod, RoundState, SlotStrategy
from fedlightning.execution import strategy as strategy_module
from fedlightning.execution.numerics import Precision
from fedlightning.execution.runners import vmap


def fit(
    method: FedMethod, often: int, slots: int = 1, precision: Precision = "32-true"
) -> tuple[RoundState, vmap.Traces]:
    """A run whose steps are traced once they were taken so often."""
    made: list[vmap.VmapBackend] = []

    class Often(vmap.VmapBackend):
        def __init__(self, size: int, traces: bool) -> None:
            super().__init__(size, traces, often)
            made.append(self)

    strategy = SlotStrategy(slots, runner="vmap", cohort_size=3, precision=precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy_module, "VmapBackend", Often)
        trainer = FederatedTrainer(3, strategy=strategy, callbacks=(), logger=False, evaluate_every=0)
        state = trainer.fit(method, task(nn.Dropout(0.3), dtype=torch.float32), data(torch.float32))
    assert made[0].traces is not None
    return state, made[0].traces


NEVER = 10**9


def equal(one: RoundState, other: RoundState) -> None:
    assert all(torch.equal(tensor, other.server[name]) for name, tensor in one.server.items())
    for client, row in one.memory.rows().items():
        assert all(torch.equal(tensor, other.memory.rows()[client][name]) for name, tensor in row.items())


@pytest.mark.parametrize("name", ALL)
def test_traced_steps_give_the_bits_of_vmap(name: str) -> None:
    """From the second round on nearly all steps are taken by graphs; unequal clients, dropout, and batches of two sizes."""
    traced, graphs = fit(named(name), 1)
    assert len(graphs.graphs) > 3
    under_vmap, none = fit(named(name), NEVER)
    assert not none.graphs
    equal(traced, under_vmap)


def test_which_steps_are_traced_and_by_whom_changes_no_bit() -> None:
    some, graphs = fit(named("scaffold"), 9, slots=2)
    assert 0 < len(graphs.graphs) < len(graphs._seen)
    equal(some, fit(named("scaffold"), NEVER)[0])


def test_traced_steps_in_mixed_precision_give_the_bits_of_vmap() -> None:
    traced, graphs = fit(named("scaffold"), 1, precision="bf16-mixed")
    assert graphs.graphs
    equal(traced, fit(named("scaffold"), NEVER, precision="bf16-mixed")[0])


def test_steps_that_cannot_be_traced_are_taken_under_vmap_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no rule for this operator")

    monkeypatch.setattr(vmap, "trace", refuses)
    said: list[str] = []
    monkeypatch.setattr(vmap, "rank_zero_info", said.append)
    run, graphs = fit(named("fedprox"), 1)
    assert not graphs.graphs
    assert said == ["Cohorts take their steps under vmap, since these cannot be traced: no rule for this operator"]
    equal(run, fit(named("fedprox"), NEVER)[0])
