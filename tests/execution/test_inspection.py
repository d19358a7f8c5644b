"""Models and data that cannot be trained side by side or in a graph: found before the first round, and trained in the loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    Partition,
    RoundState,
    SlotStrategy,
    TensorData,
)
from fedlightning.evaluation.pooled import Evaluation
from fedlightning.execution.auto import AutoRules
from fedlightning.execution.inspection import inspect
from fedlightning.execution.runners import traced
from fedlightning.execution.runners.compiled import runner as compiled
from fedlightning.layout import Layout


def data(sizes: list[int] | None = None, kind: type[TensorData] = TensorData, **batching: Any) -> TensorData:
    """Twenty clients of ten examples: enough of them, and similar enough, for "auto" to train ten side by side."""
    sizes, generator = sizes or [10] * 20, torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (sum(sizes),), generator=generator)
    own = Partition.of(torch.arange(sum(sizes)).split(sizes))
    return kind(Examples(inputs, targets), own, batching=Batching(**{"size": 4, "epochs": 1, **batching}))


def task(*middle: nn.Module) -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, 3)).double(), 3)


def fit(
    model: Classification, clients: TensorData, rounds: int = 2, **strategy: Any
) -> tuple[RoundState, SlotStrategy]:
    slots = SlotStrategy(**{"slots": 1, **strategy})
    trainer = FederatedTrainer(rounds, strategy=slots, callbacks=[], logger=False, evaluate_every=0)
    return trainer.fit(FedAvg(), model, clients), slots


def same(one: RoundState, other: RoundState) -> bool:
    return torch.equal(one.server.x, other.server.x) and torch.equal(one.buffers, other.buffers)


class InPlace(nn.Module):
    """Subtracts a running mean, which it keeps by writing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.keep(0.9 * self.mean + 0.1 * x.detach().mean(0))
        return x - self.mean

    def keep(self, mean: Tensor) -> None:
        self.mean.copy_(mean)


class Reassigned(InPlace):
    """The same with a new tensor each time."""

    def keep(self, mean: Tensor) -> None:
        self.mean = mean


class Branching(nn.Module):
    """Its path depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x[0].abs().sum() >= 0 else x


class OwnDropout(nn.Module):
    """A mask that no key reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


def remembering() -> dict[str, nn.Module]:
    norm = nn.BatchNorm1d(8, affine=False)
    return {"norm": norm, "in place": InPlace(), "reassigned": Reassigned(), "spectral": spectral_norm(nn.Linear(8, 8))}


# -- models that change their buffers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", remembering())
def test_auto_trains_models_with_a_memory_one_client_at_a_time(name: str) -> None:
    usual, strategy = fit(task(remembering()[name]), data(), rules=AutoRules(compile_dense=1))
    assert (strategy.execution.runner, strategy.execution.cohort_size) == ("loop", 1)
    assert same(usual, fit(task(remembering()[name]), data(), runner="loop")[0])
    assert usual.buffers.abs().max() > 0


@pytest.mark.parametrize("name", remembering())
def test_what_a_buffer_holds_never_depends_on_the_slots(name: str) -> None:
    one = fit(task(remembering()[name]), data(), cohort_size=1)[0]
    assert same(one, fit(task(remembering()[name]), data(), cohort_size=1, slots=3)[0])


def test_a_buffer_may_be_written_to_or_exchanged() -> None:
    assert same(fit(task(InPlace()), data())[0], fit(task(Reassigned()), data())[0])


@pytest.mark.parametrize(("asked", "what"), [({"runner": "traced"}, "`runner`"), ({"cohort_size": 4}, "`cohort_size`")])
def test_graphs_and_cohorts_of_them_are_refused(asked: dict[str, Any], what: str) -> None:
    for model in (task(InPlace()), task(Reassigned())):
        with pytest.raises(
            ConfigurationError, match=rf"{what} must be .*'model.1.mean', a buffer that training changes"
        ):
            fit(model, data(), **asked)
    for layer in (nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False)):
        with pytest.raises(ConfigurationError, match=rf"{what} must be .*'model.1'"):
            fit(task(layer), data(), **asked)


def test_a_look_at_a_model_leaves_no_trace() -> None:
    clients, model = data(), task(InPlace(), OwnDropout())
    clients.setup()
    before = torch.get_rng_state()
    assert inspect(FedAvg(), model, Layout.of(model), clients)[:4] == (None, "model.1.mean", True, False)
    assert torch.equal(before, torch.get_rng_state())
    assert not model.get_buffer("model.1.mean").any()
    other = task(nn.Dropout(0.5), nn.LayerNorm(8))
    assert inspect(FedAvg(), other, Layout.of(other), clients)[:4] == (None, None, False, False)


def test_a_model_that_does_not_fit_the_data_is_refused() -> None:
    for layers in (nn.Linear(5, 3), nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1, 1)))):
        with pytest.raises(
            ConfigurationError, match=r"fails on the first one of client 0, which is float64\[4, 6\] and int64\[4\]"
        ):
            fit(Classification(nn.Sequential(layers).double(), 3), data())
    with pytest.raises(ConfigurationError, match=r"losses of a batch, .* dtype"):
        fit(Classification(nn.Linear(6, 3), 3), data())


# -- models that cannot be lifted -----------------------------------------------------------------------------------------
def test_auto_trains_a_model_with_branches_one_client_at_a_time() -> None:
    with pytest.warns(
        UserWarning,
        match="otherwise than planned: one client at a time .not vmap, since its trial failed: .*control flow",
    ):
        usual, strategy = fit(task(Branching()), data())
    assert strategy.execution.cohort_size == 1
    assert same(usual, fit(task(Branching()), data(), cohort_size=1)[0])


def test_random_numbers_of_a_models_own_are_warned_of_and_refused_in_cohorts() -> None:
    with pytest.warns(UserWarning, match=r"must draw no random numbers of its own, .* use `nn.Dropout`"):
        assert fit(task(OwnDropout()), data())[1].execution.cohort_size == 1
    with pytest.raises(ConfigurationError, match=r"`runner` must be 'loop' .* random numbers that no key reaches"):
        fit(task(OwnDropout()), data(), runner="traced")


# -- graphs ---------------------------------------------------------------------------------------------------------------
def test_graphs_are_told_apart_by_the_frozen_layers_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def build(order: compiled.Order, path: Path) -> None:
        names.append(path.name)
        raise RuntimeError("recorded")

    monkeypatch.setattr(compiled, "build", build)
    monkeypatch.setattr("fedlightning.execution.auto.compiler", lambda: "c++")
    for seed in (0, 1, 0):
        model = task(nn.Tanh())
        frozen = model.get_submodule("model.0")
        nn.init.constant_(frozen.weight, seed)  # type: ignore[arg-type]
        frozen.requires_grad_(False)
        with pytest.raises(ConfigurationError, match=r"recorded; use `runner=.loop.`"):
            fit(model, data(), runner="compiled")
    assert names[0] == names[2] != names[1]


def test_a_graph_is_traced_with_the_buffers_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Features(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("table", torch.full((8,), value))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.table

    seen: list[float] = []
    usual = traced.traced_steps

    def noted(step: Any, given: Any) -> Any:
        seen.append(float(step.model.buffers()[0]))
        return usual(step, given)

    monkeypatch.setattr(traced, "traced_steps", noted)
    begun = fit(task(Features(2.0)), data(), rounds=1)[0]
    trainer = FederatedTrainer(
        2, strategy=SlotStrategy(1, runner="traced"), callbacks=[], logger=False, evaluate_every=0
    )
    trainer.fit(FedAvg(), task(Features(5.0)), data(), begun)
    assert seen == [2.0]


# -- data -----------------------------------------------------------------------------------------------------------------
class Widths(TensorData):
    """Four batches for each client, of a quarter of its examples."""

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Any:
        owned = self.clients.client(client)
        return (
            super()
            .schedule(client, round, seed, num_steps)
            ._replace(index=owned[: 4 * (len(owned) // 4)].view(4, -1).int())
        )

    def num_steps(self, client: int, steps: int | None = None) -> int:
        return 4


def test_batches_of_several_sizes_are_compiled_if_none_is_larger_than_batch_size() -> None:
    sizes = [8, 16, 4, 12]
    loop = fit(task(), data(sizes, Widths), cohort_size=1)[0]
    traced = fit(task(), data(sizes, Widths), runner="traced")[0]
    torch.testing.assert_close(traced.server.x, loop.server.x, rtol=0, atol=1e-12)
    with pytest.raises(
        ConfigurationError, match=r"at most 3 examples, .* where steps are graphs, but that of Widths gives 4"
    ):
        fit(task(), data(sizes, Widths, size=3), runner="traced")


class Gaps(TensorData):
    """An empty place in front."""

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Any:
        schedule = super().schedule(client, round, seed, num_steps)
        schedule.index[:, 0] = -1
        return schedule


@pytest.mark.parametrize("cohort_size", [1, 4])
def test_batches_are_filled_from_the_front(cohort_size: int) -> None:
    with pytest.raises(
        ConfigurationError, match=r"`schedule` of Gaps must fill each batch from the front, .* leaves a place"
    ):
        fit(task(), data(kind=Gaps), cohort_size=cohort_size)


def test_nothing_is_computed_from_an_example_that_nobody_owns() -> None:
    clients = data([3, 7, 6, 5])
    clients.setup()
    inputs = torch.cat([torch.full((1, 6), torch.nan, dtype=torch.float64), clients.train.inputs])
    targets = torch.cat([torch.zeros(1, dtype=torch.int64), clients.train.targets])
    shifted = Partition(clients.clients.indices + 1, clients.clients.offsets)
    states = [
        fit(task(), TensorData(Examples(inputs, targets), shifted, batching=Batching(4)), **how)[0]
        for how in ({"cohort_size": 1}, {"cohort_size": 4}, {"runner": "traced"})
    ]
    for state in states[1:]:
        torch.testing.assert_close(state.server.x, states[0].server.x, rtol=0, atol=1e-12)


def test_examples_are_contiguous_however_a_data_module_leaves_them() -> None:
    class Columns(TensorData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.train = Examples(self.train.inputs.T.contiguous().T, self.train.targets)

    state, strategy = fit(task(), data(kind=Columns), cohort_size=1)
    assert strategy.examples[torch.device("cpu")].inputs.is_contiguous()
    assert same(state, fit(task(), data(), cohort_size=1)[0])


def test_rows_that_a_data_module_turns_are_traced() -> None:
    class Turned(TensorData):
        def preprocess(self, inputs: Tensor) -> Tensor:
            return inputs.view(-1, 2, 3).transpose(1, 2)

    states = [fit(task_of_flat(), data(kind=Turned), **how)[0] for how in ({"cohort_size": 1}, {"runner": "traced"})]
    torch.testing.assert_close(states[1].server.x, states[0].server.x, rtol=0, atol=1e-12)


def task_of_flat() -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double(), 3)


# -- callbacks that use the slots -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 2])
def test_a_callback_may_use_the_slots_while_clients_train(slots: int) -> None:
    class Looks(Callback):
        def __init__(self) -> None:
            self.accuracies: list[float] = []

        def on_cohort_end(self, trainer: FederatedTrainer, cohort: object) -> None:
            evaluation = Evaluation(trainer.strategy, task(), trainer.data)
            metrics = evaluation.run(trainer.state.server.x, trainer.state.buffers)
            self.accuracies.append(metrics["test/accuracy"])
            assert list(trainer.strategy.map([lambda worker: 1, lambda worker: 2])) == [1, 2]
            next(trainer.strategy.map([lambda worker: 3, lambda worker: 4]))  # the other one is given up

    looks, plain = Looks(), fit(task(), data(), cohort_size=1)[0]
    trainer = FederatedTrainer(
        2, strategy=SlotStrategy(slots, cohort_size=1), callbacks=[looks], logger=False, evaluate_every=0
    )
    assert torch.equal(trainer.fit(FedAvg(), task(), data()).server.x, plain.server.x)
    assert len(looks.accuracies) == 40


@pytest.mark.parametrize("slots", [1, 3])
def test_a_trial_that_is_given_up_leaves_nothing_behind(slots: int) -> None:
    class GivesUp(Callback):
        def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
            with pytest.raises(ValueError, match="enough"):
                trainer.trial([0, 1, 2, 3], self.look)

        def look(self, cohort: object) -> None:
            raise ValueError("enough")

    plain = fit(task(), data(), cohort_size=1)[0]
    trainer = FederatedTrainer(
        2, strategy=SlotStrategy(slots, cohort_size=1), callbacks=[GivesUp()], logger=False, evaluate_every=0
    )
    assert torch.equal(trainer.fit(FedAvg(), task(), data()).server.x, plain.server.x)
