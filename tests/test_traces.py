"""Cohort steps as plain graphs: the bits of vmap, whoever takes which, and a run goes on where they cannot be traced."""

from typing import Any

import pytest
import torch
from torch import nn
from unequal_clients import ALL, data, named, task

from fedlightning import FederatedTrainer, FedMethod, RoundState, SlotStrategy
from fedlightning.execution.runners import vmap as traces


def fit(method: FedMethod, compile: object, slots: int = 1, precision: str = "32-true") -> tuple[RoundState, Any]:
    strategy = SlotStrategy(slots, cohort_size=3, compile=compile, precision=precision)  # type: ignore[arg-type]
    trainer = FederatedTrainer(3, strategy=strategy, callbacks=(), logger=False, evaluate_every=0)
    return trainer.fit(method, task(nn.Dropout(0.3), dtype=torch.float32), data(torch.float32)), strategy._traces


def equal(one: RoundState, other: RoundState) -> None:
    assert all(torch.equal(tensor, other.server[name]) for name, tensor in one.server.items())
    for client, row in one.memory.rows().items():
        assert all(torch.equal(tensor, other.memory.rows()[client][name]) for name, tensor in row.items())


@pytest.mark.parametrize("name", ALL)
def test_traced_steps_give_the_bits_of_vmap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second round on nearly all steps are taken by graphs; unequal clients, dropout, and batches of two sizes."""
    monkeypatch.setattr(traces, "_OFTEN", 1)
    traced, graphs = fit(named(name), "auto")
    assert len(graphs._graphs) > 4
    under_vmap, none = fit(named(name), False)
    assert none is None
    equal(traced, under_vmap)


def test_which_steps_are_traced_and_by_whom_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_OFTEN", 3)
    some, graphs = fit(named("scaffold"), "auto", slots=2)
    assert 0 < len(graphs._graphs) < len(graphs._seen)
    equal(some, fit(named("scaffold"), False)[0])


def test_traced_steps_in_mixed_precision_give_the_bits_of_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_OFTEN", 1)
    traced, graphs = fit(named("scaffold"), "auto", precision="bf16-mixed")
    assert graphs._graphs
    equal(traced, fit(named("scaffold"), False, precision="bf16-mixed")[0])


def test_steps_that_cannot_be_traced_are_taken_under_vmap_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no rule for this operator")

    monkeypatch.setattr(traces, "_OFTEN", 1)
    monkeypatch.setattr(traces, "trace", refuses)
    said: list[str] = []
    monkeypatch.setattr(traces, "rank_zero_info", said.append)
    run, graphs = fit(named("fedprox"), "auto")
    assert not graphs._graphs
    assert said == ["Cohorts take their steps under vmap, since these cannot be traced: no rule for this operator"]
    equal(run, fit(named("fedprox"), False)[0])
