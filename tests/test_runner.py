"""Runners of one's own, and the one decision of who takes the local steps: made once, kept by checkpoints."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from unequal_clients import data, task

from fedlightning import ConfigurationError, FedAvg, FederatedTrainer, Partition, RoundState, SlotStrategy, TensorData
from fedlightning.execution import auto
from fedlightning.execution.auto import AutoRules
from fedlightning.execution.runners.loop import LoopRunner


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
    unequal = data()
    unequal.setup()
    return TensorData(unequal.train, Partition.of(torch.arange(96).split(12)), batch_size=4)


def fit(
    rounds: int = 2, save: Path | None = None, go_on: Path | None = None, even: bool = False, **how: Any
) -> tuple[RoundState, Any]:
    strategy = SlotStrategy(how.pop("slots", 1), **how)
    trainer = FederatedTrainer(rounds, strategy=strategy, callbacks=[], logger=False, evaluate_every=0)
    state = trainer.fit(FedAvg(lr=0.05), task(), even_data() if even else data(), ckpt_path=go_on)
    if save:
        trainer.save_checkpoint(save)
    return state, strategy.execution


@pytest.mark.parametrize("slots", [1, 3])
def test_a_runner_of_ones_own_is_made_once_for_each_slot_and_given_each_cohort(slots: int) -> None:
    Noting.seen.clear()
    Noting.made.clear()
    state, execution = fit(runner=Noting, slots=slots, cohort_size=2)
    assert sorted(Noting.made) == [f"cpu/{i} local" for i in range(slots)]
    assert sorted(Noting.seen) == [("local", t, c) for t in (0, 1) for c in sorted([(1, 3), (5, 6), (2, 0), (4,)])]
    assert execution.describe() == "a runner of one's own"
    assert torch.equal(state.server.x, fit(runner="loop")[0].server.x)


class Forgetful(Noting):
    """Gives too little back."""

    def run(self, plans: Any, inputs: Any) -> Any:
        return super().run(plans, inputs)[1:]


class Silent(Noting):
    """Gives nothing back."""

    def run(self, plans: Any, inputs: Any) -> Any:
        super().run(plans, inputs)


@pytest.mark.parametrize(
    ("runner", "said"),
    [
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
        fit(runner=runner)


def test_a_resumed_run_takes_its_steps_as_it_began(tmp_path: Path) -> None:
    """It is asked for more rounds, of which `auto` would think otherwise."""
    path, short = tmp_path / "here.ckpt", AutoRules(cohort_from=2)
    whole, _ = fit(4, rules=short, even=True)
    _, began = fit(2, save=path, rules=short, even=True)
    assert began.runner == "vmap"
    state, went_on = fit(4, go_on=path, even=True, rules=AutoRules(cohort_from=10**9))
    assert (went_on.runner, went_on.cohort_size) == ("vmap", began.cohort_size)
    assert went_on.reasons == ("as the run began",)
    assert torch.equal(state.server.x, whole.server.x)
    assert fit(4, go_on=path, even=True, runner="loop")[1].runner == "loop"  # what is asked for is done


def test_a_fallback_is_kept_by_checkpoints_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rules = tmp_path / "here.ckpt", AutoRules(cohort_from=2)

    def fails(*_: object) -> None:
        raise RuntimeError("no batching rule")

    with monkeypatch.context() as patch:
        patch.setattr("fedlightning.execution.runners.vmap.VmapBackend.prepare", fails)
        with pytest.warns(
            UserWarning, match="otherwise than planned: one client at a time .not vmap, .* no batching rule"
        ):
            _, taken = fit(2, save=path, rules=rules, even=True)
    assert taken.runner == "loop"
    assert fit(4, go_on=path, even=True, rules=rules)[1].runner == "loop"


def test_a_runner_that_was_asked_for_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr("fedlightning.execution.runners.vmap.VmapBackend.prepare", fails)
    with pytest.raises(RuntimeError, match="no batching rule"):
        fit(runner="vmap")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"runner": "loop", "cohort_size": 2}, r"`cohort_size` must be 1 for `runner='loop'`, but is 2"),
        ({"runner": "cuda_graph", "slots": ["cpu/0"]}, r"`runner='cuda_graph'` must have slots on GPUs"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        fit(**how)


def test_why_a_run_is_not_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "compiler", lambda: None)
    execution = fit(rules=AutoRules(compile_dense=1))[1]
    assert execution.describe() == "one client at a time (not compiled: no C++ compiler was found)"
