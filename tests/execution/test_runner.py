"""Runners of one's own, and the one decision of who takes the local steps: made once, kept by checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_runs import fit, small_task, unequal_clients
from torch import nn

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    MethodError,
    Partition,
    TensorData,
)
from fedlightning.execution import auto
from fedlightning.execution.auto import AutoRules
from fedlightning.execution.runners.loop import LoopRunner
from fedlightning.server.checkpoint import load_checkpoint, save_checkpoint
from fedlightning.server.client_memory import ClientMemory


class Noting:
    """Notes what it is given, and hands on to the loop."""

    seen: ClassVar[list[tuple[str, int, tuple[int, ...]]]] = []
    made: ClassVar[list[str]] = []

    def __init__(self, step: Any, slot: Any) -> None:
        self.loop = LoopRunner(step, slot)
        self.made.append(f"{slot.slot} {step.phase.name}")

    def run(self, plans: Any, inputs: Any) -> Any:
        self.seen.extend((plan.round.phase.name, inputs.round.index, plan.clients) for plan in plans)
        return self.loop.run(plans, inputs)


def even_data() -> TensorData:
    """Eight clients of twelve examples."""
    unequal = unequal_clients()
    unequal.setup()
    return TensorData(unequal.train, Partition.of(torch.arange(96).split(12)), batching=Batching(4))


def run(rounds: int = 2, data: TensorData | None = None, **how: Any) -> FederatedTrainer:
    """FedAvg, whose steps are small."""
    return fit(FedAvg(lr=0.05), data=data, rounds=rounds, **how)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_runner_of_ones_own_is_made_once_for_each_slot_and_given_each_cohort(slots: int) -> None:
    Noting.seen.clear()
    Noting.made.clear()
    trainer = run(runner=Noting, slots=slots, cohort_size=2)
    assert sorted(Noting.made) == [f"cpu/{i} local" for i in range(slots)]
    assert sorted(Noting.seen) == [("local", t, c) for t in (0, 1) for c in sorted([(1, 3), (5, 6), (2, 0), (4,)])]
    assert trainer.strategy.execution.describe() == "a runner of one's own"
    assert torch.equal(trainer.state.server.x, run(runner="loop").state.server.x)


class Forgetful(Noting):
    """Gives too little back."""

    def run(self, plans: Any, inputs: Any) -> Any:
        return super().run(plans, inputs)[1:]


class Silent(Noting):
    """Gives nothing back."""

    def run(self, plans: Any, inputs: Any) -> Any:
        super().run(plans, inputs)


class Elsewhere(Noting):
    """Says that others did it."""

    def run(self, plans: Any, inputs: Any) -> Any:
        return [replace(one, clients=tuple(c + 7 for c in one.clients)) for one in super().run(plans, inputs)]


class Rubbish(Noting):
    """Gives numbers."""

    def run(self, plans: Any, inputs: Any) -> Any:
        return [3 for _ in plans]


class Writes(Noting):
    """Changes the server's model for all."""

    def run(self, plans: Any, inputs: Any) -> Any:
        inputs.server.x.add_(1)
        return super().run(plans, inputs)


class Diverges(Noting):
    """Uploads what is no number."""

    def run(self, plans: Any, inputs: Any) -> Any:
        nan = [one.upload.apply(lambda tensor: tensor * torch.nan) for one in super().run(plans, inputs)]
        return [replace(one, upload=up) for one, up in zip(super().run(plans, inputs), nan, strict=True)]


class NoArguments(Noting):
    """Takes nothing."""

    def run(self) -> Any:  # type: ignore[override]
        return []


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        (Elsewhere, r"must give a CohortResult of what the clients \(1,\) did in round 0, but it names \(8,\)"),
        (Rubbish, r"must give a CohortResult .* but one of them is 3"),
        (Writes, r"`run` of Writes must leave the server's tensors as they are"),
        (Diverges, r"must give a CohortResult .* is not finite"),
        (NoArguments, r"`run` of NoArguments must take `\(plans, inputs\)`"),
        (lambda: None, r"must be made by `runner\(step, slot\)`"),
        (lambda step, slot: 7, r"must make objects that have `run\(plans, inputs\)`"),
        (Forgetful, r"`run` of Forgetful must give a list of 1 results, .* 0 of them"),
        (Silent, r"`run` of Silent must give a list of 1 results"),
        ("loops", r"`runner` of SlotStrategy must be 'auto', 'loop', .*, but is 'loops'"),
        (7, r"`runner` of SlotStrategy must be 'auto', .*, but is 7"),
    ],
)
def test_what_is_no_runner_is_said_in_one_line(runner: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^[^\n]*{said}[^\n]*$"):
        run(runner=runner)


def test_a_resumed_run_takes_its_steps_as_it_began(tmp_path: Path) -> None:
    """It is asked for more rounds, of which `auto` would think otherwise."""
    path, short = tmp_path / "here.ckpt", AutoRules(cohort_from=2)
    whole = run(4, even_data(), rules=short)
    began = run(2, even_data(), rules=short)
    began.save_checkpoint(path)
    assert began.strategy.execution.runner == "vmap"
    resumed = run(4, even_data(), ckpt_path=path, rules=AutoRules(cohort_from=10**9))
    went_on = resumed.strategy.execution
    assert (went_on.runner, went_on.cohort_size) == ("vmap", began.strategy.execution.cohort_size)
    assert went_on.reasons == ("as the run began",)
    assert torch.equal(resumed.state.server.x, whole.state.server.x)
    asked = run(4, even_data(), ckpt_path=path, runner="loop")  # what is asked for is done
    assert asked.strategy.execution.runner == "loop"


class Branching(nn.Module):
    """Its path depends on a value, so that it cannot be trained side by side."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2 if inputs[0].abs().sum() >= 0 else inputs


def test_a_fallback_is_kept_by_checkpoints_too(tmp_path: Path) -> None:
    how = {"task": small_task(Branching()), "data": even_data(), "rules": AutoRules(cohort_from=2)}
    with pytest.warns(
        UserWarning, match="otherwise than planned: one client at a time .not vmap, since its trial failed"
    ):
        taken = fit(FedAvg(lr=0.05), **how)
    taken.save_checkpoint(tmp_path / "here.ckpt")
    assert taken.strategy.execution.runner == "loop"
    went_on = fit(FedAvg(lr=0.05), rounds=4, ckpt_path=tmp_path / "here.ckpt", **how).strategy.execution
    assert (went_on.runner, went_on.reasons) == ("loop", ("as the run began",))


def test_a_runner_that_was_asked_for_does_not_fall_back() -> None:
    with pytest.raises(ConfigurationError, match=r"`runner='vmap'` must lift .* control flow.*; use `runner='loop'`"):
        fit(task=small_task(Branching()), runner="vmap")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"runner": "loop", "cohort_size": 2}, r"`cohort_size` must be 1 for `runner='loop'`, but is 2"),
        ({"runner": "cuda_graph", "slots": ["cpu/0"]}, r"`runner='cuda_graph'` must have slots on GPUs"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(**how)


def test_why_a_run_is_not_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "compiler", lambda: None)
    execution = run(rules=AutoRules(compile_dense=1)).strategy.execution
    assert execution.describe() == "one client at a time (not compiled: no C++ compiler was found)"


def test_a_compiled_run_that_goes_on_without_a_compiler_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "here.ckpt"
    run(1).save_checkpoint(path)
    state, found = load_checkpoint(path, ClientMemory(), 7)
    compiled = {"runner": "compiled", "cohort_size": 2}
    save_checkpoint(path, state, found["identity"], found["callbacks"], found["row"], compiled)
    monkeypatch.setattr(auto, "compiler", lambda: None)
    with pytest.raises(
        ConfigurationError, match=r"goes on as it began, .*'compiled'.* needs a C.*by name, e.g. `runner='loop'`"
    ):
        run(ckpt_path=path)
    assert run(ckpt_path=path, runner="loop").strategy.execution.runner == "loop"


def test_a_cohorts_size_is_kept_where_the_same_runner_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "here.ckpt"
    run(1, runner="vmap", cohort_size=3).save_checkpoint(path)
    assert run(ckpt_path=path, runner="vmap").strategy.execution.cohort_size == 3
    assert run(ckpt_path=path, runner="vmap", cohort_size=2).strategy.execution.cohort_size == 2


@pytest.mark.parametrize("layer", ["lstm", "norm"])
def test_the_layer_that_stands_in_the_way_is_named_with_what_helps(layer: str) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 3, batch_first=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.lstm(inputs[:, None])[0][:, 0]
            return outputs

    model = Recurrent() if layer == "lstm" else nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    said = (
        r"'model.lstm' \(LSTM\), but is 'vmap'; use `runner='loop'`"
        if layer == "lstm"
        else r"BatchNorm1d.* use group norm"
    )
    with pytest.raises(ConfigurationError, match=said):
        fit(task=Classification(model.double(), 3), data=even_data(), runner="vmap")


@pytest.mark.parametrize(
    "rules",
    [{"heavy": "x"}, {"cohort_most": 2.5}, {"flops_per_slot": 0}, {"filled": 1.5}, {"unroll": 0}, {"balance": -1.0}],
)
def test_a_threshold_that_is_none_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"`{next(iter(rules))}` of AutoRules must be "):
        AutoRules(**rules)


class Counts(FedAvg):
    """Counts its steps in what others share."""

    def on_local_step(self, local, grad, client):  # type: ignore[no-untyped-def]
        client.step.add_(1)
        return super().on_local_step(local, grad, client)


def test_a_hook_that_writes_to_the_steps_number_is_named() -> None:
    with pytest.raises(MethodError, match=r"changed `client.step` in place"):
        fit(Counts())
