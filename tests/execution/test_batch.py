"""Batches with empty places: what a loss may look at, how losses are averaged, and what batch norm counts."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_runs import fit, quiet_trainer, unequal_clients
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FedMethod,
    MethodError,
    Partition,
    Regression,
    State,
    TensorData,
)
from fedlightning.methods import FedDane, FedSAM
from fedlightning.models import MLP
from fedlightning.testing import Quadratics

SIZES = [10, 13, 7, 12, 9, 11] * 4


def ragged_clients(sizes: Sequence[int] = SIZES, dtype: torch.dtype = torch.float64, **batching: Any) -> TensorData:
    """Clients whose last batches are seldom full."""
    return unequal_clients(dtype, sizes=sizes, **{"epochs": 1, **batching})


def task(*middle: nn.Module) -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Sequential(MLP(6, 8, (5,)), *middle, nn.Linear(8, 3)).double(), 3)


LOOP: dict[str, Any] = {"runner": "loop"}
LIFTED: list[dict[str, Any]] = [
    {"runner": "vmap", "cohort_size": 4}, {"runner": "traced"}, {"runner": "traced", "cohort_size": 4},
]  # fmt: skip


class PerFedAvg(FedMethod):
    """Per-FedAvg, whose inner step is a mean over all places."""

    def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
        inner = torch.func.grad(lambda v: model.loss(v, batch).mean())(w)
        return model.loss(w - 0.3 * inner, batch)


class Masked(FedMethod):
    """The same over the places that are filled."""

    def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
        def mean(v: Tensor) -> Tensor:
            return (model.loss(v, batch) * batch.mask).sum() / batch.mask.sum()

        return model.loss(w - 0.3 * torch.func.grad(mean)(w), batch)


class Contrast(Classification):
    """Pulls an example's outputs away from the batch's mean."""

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().criterion(outputs, targets) - 0.1 * (outputs - outputs.mean(0)).square().mean(1)


def contrast() -> Contrast:
    torch.manual_seed(1)
    return Contrast(MLP(6, 3, (8,)).double(), 3)


# -- losses that look across a batch ----------------------------------------------------------------------------------
def test_auto_trains_a_loss_that_looks_across_its_batch_one_client_at_a_time() -> None:
    for method, model in ((PerFedAvg(), task), (FedAvg(), contrast)):
        run = quiet_trainer()
        usual = run.fit(method, model(), ragged_clients())
        assert run.strategy.execution.cohort_size == 1
        assert torch.equal(usual.server.x, fit(method, model(), ragged_clients(), **LOOP).state.server.x)


@pytest.mark.parametrize("lifted", LIFTED, ids=str)
@pytest.mark.parametrize(
    ("method", "model"), [(PerFedAvg(), task), (FedAvg(), contrast)], ids=["objective", "criterion"]
)
def test_a_cohort_or_a_graph_of_it_is_refused_where_it_was_asked_for(
    method: FedMethod, model: Any, lifted: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"must be .* a loss that looks across a batch.*; leave out what `batch.mask`"
    ):
        fit(method, model(), ragged_clients(), **lifted)


@pytest.mark.parametrize("lifted", LIFTED, ids=str)
def test_one_that_leaves_empty_places_out_gives_the_loops_numbers(lifted: dict[str, Any]) -> None:
    loop = fit(Masked(), task(), ragged_clients(), **LOOP).state.server.x
    torch.testing.assert_close(
        fit(Masked(), task(), ragged_clients(), **lifted).state.server.x, loop, rtol=0, atol=1e-12
    )


def test_a_coupled_loss_that_no_trial_finds_may_be_declared() -> None:
    class Declared(Classification):
        coupled = True

    class Method(FedMethod):
        """Says so itself."""

        coupled = True

    torch.manual_seed(1)
    for method, model in ((FedAvg(), Declared(MLP(6, 3, (8,)).double(), 3)), (Method(), task())):
        run = quiet_trainer()
        run.fit(method, model, ragged_clients())
        assert run.strategy.execution.cohort_size == 1
        with pytest.raises(ConfigurationError, match="a loss that looks across a batch"):
            fit(method, model, ragged_clients(), cohort_size=4)


class Hardest(Classification):
    """Only the harder half of a batch counts."""

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().criterion(outputs, targets)
        return losses * (losses >= losses.topk(max(1, len(losses) // 2)).values[-1].detach())


class AboveMedian(Classification):
    """Only what is above the median counts."""

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().criterion(outputs, targets)
        return losses * (losses >= losses.median().detach())


class Flooded(Classification):
    """Pushes a batch whose mean loss is low back up, which begins only after some training."""

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().criterion(outputs, targets)
        return losses + F.relu(0.8 - losses.mean()) * 5


@pytest.mark.parametrize("batch_size", [3, 5, 7, 16])
@pytest.mark.parametrize("kind", [Hardest, AboveMedian, Flooded])
def test_a_loss_that_looks_across_only_now_and_then_is_found_too(kind: type[Classification], batch_size: int) -> None:
    torch.manual_seed(1)
    with pytest.raises(ConfigurationError, match="a loss that looks across a batch"):
        fit(FedAvg(), kind(MLP(6, 3, (8,)).double(), 3), ragged_clients([40] * 20, size=batch_size), cohort_size=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [2, 5, 50])
def test_a_loss_of_each_example_alone_is_none_even_where_it_is_small(dtype: torch.dtype, batch_size: int) -> None:
    """One layer fits a batch of two at once."""
    torch.manual_seed(1)
    clients = ragged_clients([60] * 20, dtype, size=batch_size)
    for model in (
        nn.Linear(6, 3),
        MLP(6, 3, (64, 64)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    ):
        run = quiet_trainer(1, cohort_size=4)
        run.fit(FedAvg(), Classification(model.to(dtype), 3), clients)
        assert run.strategy.execution.cohort_size == 4


def test_dropout_is_no_coupling() -> None:
    run = quiet_trainer()
    run.fit(FedAvg(), task(nn.Dropout(0.5)), ragged_clients())
    assert run.strategy.execution.cohort_size > 1


# -- the shape of a loss ----------------------------------------------------------------------------------------------
class Mean(Classification):
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class Every(Classification):
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(1, keepdim=True) - targets


class Column(Classification):
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")[:, None]


@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize(("kind", "shape"), [(Mean, r"\[\]"), (Every, r"\[4, 4\]"), (Column, r"\[4, 1\]")])
def test_a_loss_must_be_one_number_for_each_example(
    kind: type[Classification], shape: str, evaluate_every: int
) -> None:
    run = quiet_trainer()
    run.evaluate_every = evaluate_every
    with pytest.raises(
        MethodError, match=rf"The loss of {kind.__name__} must be one number for each of the 4 .* but is {shape}"
    ):
        run.fit(FedAvg(), kind(MLP(6, 3).double(), 3), ragged_clients())
    assert run.round == 0


@pytest.mark.parametrize("strategy", [LOOP, *LIFTED, {}], ids=str)
def test_so_must_an_objective(strategy: dict[str, Any]) -> None:
    class Scalar(FedMethod):
        """Reduces too much."""

        def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
            return model.loss(w, batch).mean()

    class Square(FedMethod):
        """Broadcasts."""

        def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
            return model.loss(w, batch)[:, None] + model.loss(w, batch)

    for method in (Scalar(), Square()):
        run = quiet_trainer(**strategy)
        with pytest.raises(MethodError, match=rf"`objective` of {type(method).__name__} must be one number for each"):
            run.fit(method, task(), ragged_clients())
        assert run.round == 0


class Whole(Classification):
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).long()


class Detached(Classification):
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().criterion(outputs.detach(), targets)


@pytest.mark.parametrize(
    ("kind", "says"), [(Whole, "must be of floating-point numbers"), (Detached, "has no gradient")]
)
def test_a_loss_that_nothing_is_learned_from_is_refused(kind: type[Classification], says: str) -> None:
    run = quiet_trainer(**LOOP)
    with pytest.raises(ConfigurationError, match=rf"^The loss of {kind.__name__} [^\n]*{says}[^\n]*$"):
        run.fit(FedAvg(), kind(MLP(6, 3).double(), 3), ragged_clients())
    assert run.round == 0


def test_so_is_an_objective() -> None:
    class Detaches(FedMethod):
        """Learns nothing."""

        def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
            return model.loss(w.detach(), batch)

    with pytest.raises(
        MethodError, match=r"`Detaches.objective` \(.*\) must depend on w, but its losses have no gradient"
    ):
        fit(Detaches(), task(), ragged_clients(), **LOOP)


# -- the mean of losses -----------------------------------------------------------------------------------------------
class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 0 * self.shift


@pytest.mark.parametrize("strategy", [LOOP, *LIFTED, {}], ids=str)
@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_the_training_loss_is_a_mean_over_examples(strategy: dict[str, Any], batch_size: int | None) -> None:
    inputs = torch.tensor([0.0, 0.0, 3.0, 1.0, 1.0, 2.0], dtype=torch.float64)[:, None]
    own = Partition.of(torch.arange(6).split([3, 2, 1]))
    clients = TensorData(Examples(inputs, 0 * inputs), own, batching=Batching(batch_size, epochs=2))
    losses: dict[int, float] = {}

    class Look(Callback):
        def on_cohort_end(self, trainer, cohort):  # type: ignore[no-untyped-def]
            losses.update(zip(cohort.clients, cohort.loss.tolist(), strict=True))

    run = quiet_trainer(1, callbacks=[Look()], **strategy)
    run.fit(FedAvg(), Regression(Shift()), clients)
    assert losses == pytest.approx({0: 3.0, 1: 1.0, 2: 4.0}, abs=1e-12)
    assert run.metrics["train/loss"] == pytest.approx((9 + 2 + 4) / 6, abs=1e-12)


@pytest.mark.parametrize("kind", ["int8", "bool", "int64"])
@pytest.mark.parametrize("cohort_size", [1, 4])
def test_integers_that_are_uploaded_are_averaged_as_numbers(kind: str, cohort_size: int) -> None:
    means: list[State] = []

    class Votes(FedMethod):
        """Uploads one vote an entry."""

        def on_client_end(self, local, client):  # type: ignore[no-untyped-def]
            return State(votes=(local.w - client.x > 0).to(getattr(torch, kind))), client.state

        def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
            means.append(mean)
            return server.replace(x=server.x + 0.01 * (mean.votes - 0.5))

    state = fit(Votes(weighting="uniform"), task(), ragged_clients(), cohort_size=cohort_size).state
    assert state.server.x.dtype == means[-1].votes.dtype == torch.float64
    counts = means[-1].votes * len(SIZES)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    assert ((means[-1].votes > 0) & (means[-1].votes < 1)).any()


# -- batch norm -------------------------------------------------------------------------------------------------------
def norm_task(momentum: float | None = None) -> Classification:
    torch.manual_seed(1)
    return Classification(nn.Sequential(nn.BatchNorm1d(6, momentum=momentum), nn.Linear(6, 3)).double(), 3)


class ThreeModels(FedMethod):
    """An objective that looks at the model at three points."""

    def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
        return model.loss(w, batch) + 0 * (model(0.5 * w, batch.inputs) + model(client.x, batch.inputs)).sum(1)


@pytest.mark.parametrize("method", [FedSAM(rho=0.05), ThreeModels()], ids=lambda m: type(m).__name__)
def test_batch_norm_counts_one_batch_for_each_local_step(method: FedMethod) -> None:
    clients = ragged_clients([12, 12], size=4)
    state = fit(method, norm_task(), clients, 1).state
    usual = fit(FedAvg(lr=method.lr, weighting=method.weighting), norm_task(), clients, 1).state
    assert state.buffers[-1] == 3
    assert torch.equal(state.buffers, usual.buffers)  # the first layer sees the inputs, which no parameter changes


def test_a_last_batch_of_one_example_is_refused_before_the_first_round() -> None:
    with pytest.raises(
        ConfigurationError, match=r"since 1 of 3 clients have one \(the first: client 1, 9 .*`drop_last=True`"
    ):
        fit(FedAvg(), norm_task(), ragged_clients([8, 9, 6]))
    fit(FedAvg(), norm_task(), ragged_clients([8, 9, 6], drop_last=True))
    fit(FedAvg(), norm_task(), ragged_clients([8, 9, 6], epochs=None, steps=2))  # nobody comes to it
    with pytest.raises(ConfigurationError, match="since 1 of 3 clients"):
        fit(FedAvg(), norm_task(), ragged_clients([8, 9, 6], epochs=None, steps=3))
    with pytest.raises(
        ConfigurationError, match=r"since 1 of 3 clients have one \(the first: client 2, 1 .*; use another"
    ):
        fit(FedAvg(), norm_task(), ragged_clients([8, 9, 1], drop_last=True))
    with pytest.raises(ConfigurationError, match=r"since 1 of 2 clients have one"):
        fit(FedAvg(), norm_task(), ragged_clients([8, 1], size=None))
    fit(FedAvg(), task(), ragged_clients([8, 9, 1]))  # no statistics


def test_drop_last_leaves_an_epochs_last_batch_out() -> None:
    clients = ragged_clients([9, 3, 8], epochs=2, drop_last=True)
    clients.setup()
    assert [clients.num_steps(c) for c in range(3)] == [4, 2, 4]
    kept = ragged_clients([9, 3, 8], epochs=2)
    kept.setup()
    for c, size in enumerate([9, 3, 8]):
        index = clients.schedule(c, 0, 0, clients.num_steps(c)).index
        usual = kept.schedule(c, 0, 0, kept.num_steps(c)).index
        full = usual[(usual >= 0).all(1)] if size >= 4 else usual
        assert torch.equal(index, full)  # the same epochs but for what is dropped
    assert torch.equal(fit(FedAvg(), task(), clients, cohort_size=1, slots=1).state.server.x,
                       fit(FedAvg(), task(), clients, cohort_size=1, slots=3).state.server.x)  # fmt: skip


def test_drop_last_is_refused_by_a_gradient_over_all_data() -> None:
    with pytest.raises(ConfigurationError, match=r"`batching\.drop_last` of TensorData must be False for FedDane"):
        fit(FedDane(), task(), ragged_clients(drop_last=True))


def test_quadratics_see_the_mask_of_a_full_batch() -> None:
    masks: list[Tensor] = []

    class Look(FedMethod):
        """Looks at the mask."""

        def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
            masks.append(batch.mask)
            return model.loss(w, batch)

    clients = Quadratics([torch.eye(2)], [torch.zeros(2)], [5], steps=1)
    quiet_trainer(1, **LOOP).fit(Look(), Quadratics.task([1.0, 1.0]), clients)
    assert [mask.tolist() for mask in masks] == [[True] * 5] * len(masks)
