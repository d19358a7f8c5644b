"""The validation split: what is set aside of each client's examples, and what evaluates on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import fit
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    Examples,
    FedAvg,
    FederatedDataModule,
    FederatedTrainer,
    ModelCheckpoint,
    Partition,
    TensorData,
)
from fedlightning.baselines.centralised import fit_centralised
from fedlightning.data import IID, Splits, gather, set_aside
from fedlightning.datasets import FakeImages
from fedlightning.errors import ConfigurationError
from fedlightning.loggers import run_loggers

pytestmark = pytest.mark.quick

SIZES = [1, 2, 10, 30, 7]


def examples(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def clients(sizes: list[int] = SIZES) -> Partition:
    """Owners of scattered examples."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(1))
    return Partition.of(list(order.split(sizes)))


# -- what is set aside --------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0, 0.999), st.integers(0, 99))
def test_each_client_keeps_one_at_least_and_gives_its_part(sizes: list[int], fraction: float, seed: int) -> None:
    whole = clients(sizes)
    kept, aside = set_aside(whole, fraction, seed)
    assert kept.num_clients == aside.num_clients == len(sizes)
    for client, size in enumerate(sizes):
        mine, theirs = kept.client(client).tolist(), aside.client(client).tolist()
        before = whole.client(client).tolist()
        assert len(theirs) == min(round(fraction * size), size - 1)
        assert mine
        assert sorted(mine + theirs) == sorted(before)
        assert mine == [position for position in before if position in set(mine)]  # in their order
    again = set_aside(whole, fraction, seed)
    assert (kept.fingerprint, aside.fingerprint) == (again[0].fingerprint, again[1].fingerprint)


def test_a_clients_choice_depends_on_the_seed_and_on_itself_alone() -> None:
    whole = clients()
    aside = set_aside(whole, 0.3, 7)[1]
    fewer = set_aside(Partition.of([whole.client(0), whole.client(3), whole.client(2), whole.client(3)]), 0.3, 7)[1]
    assert torch.equal(fewer.client(3), aside.client(3))
    assert not torch.equal(fewer.client(1), aside.client(3))  # the same examples at another number
    assert not torch.equal(set_aside(whole, 0.3, 8)[1].client(3), aside.client(3))


def test_what_is_gathered_is_a_copy_client_by_client() -> None:
    whole, owned = examples(50), clients()
    picked, owners = gather(whole, owned)
    for client in range(len(SIZES)):
        assert torch.equal(picked.targets[owners.client(client)], whole.targets[owned.client(client)])
        assert torch.equal(picked.inputs[owners.client(client)], whole.inputs[owned.client(client)])
    picked.inputs.zero_()
    assert bool(whole.inputs.any())


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_not_everything_can_be_set_aside(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"`fraction` of set_aside must be in \[0, 1\)"):
        set_aside(clients(), fraction, 0)
    with pytest.raises(ConfigurationError, match=r"`validation` of FakeImages must be in \[0, 1\)"):
        FakeImages("IIDC4", validation=fraction)


# -- in a data module ---------------------------------------------------------------------------------------------------
def images(**options: Any) -> FakeImages:
    made = FakeImages("A0d50C4", shape=(1, 4, 4), classes=3, num_train=80, num_test=12, **options)
    made.setup()
    return made


def test_images_are_set_aside_by_the_partitions_seed() -> None:
    whole, divided = images(), images(validation=0.25)
    assert whole.val is whole.val_clients is None
    assert divided.val is not None
    assert divided.val_clients is not None
    assert torch.equal(divided.train.inputs, whole.train.inputs)
    assert torch.equal(divided.test.inputs, whole.test.inputs)
    assert divided.test_clients.fingerprint == whole.test_clients.fingerprint
    kept, aside = set_aside(whole.clients, 0.25, 0)
    assert divided.clients.fingerprint == kept.fingerprint
    assert torch.equal(divided.val.inputs, whole.train.inputs[aside.indices])
    assert divided.val_clients.sizes.tolist() == aside.sizes.tolist()
    other = images(validation=0.25, seed=1)
    assert other.val_clients is not None
    assert other.val_clients.fingerprint != divided.val_clients.fingerprint


def test_a_validation_split_of_ones_own_is_shared_out_like_the_test_set() -> None:
    train, val = examples(50), examples(30, seed=1)
    own = TensorData(train, clients(), val=val)
    own.setup()
    assert own.val_clients is not None
    assert own.val_clients.fingerprint == clients().mirror(train.targets, val.targets).fingerprint
    given = TensorData(train, clients(), val=val, val_clients=IID(5).split(val.targets, 0))
    given.setup()
    assert given.val_clients is not None
    assert given.val_clients.fingerprint != own.val_clients.fingerprint


class Loads(FederatedDataModule):
    """Loads what it is given."""

    def __init__(self, loaded: Any) -> None:
        super().__init__()
        self.loaded = loaded

    def load(self) -> Any:
        return self.loaded


def test_a_plain_tuple_of_four_or_six_will_do() -> None:
    parts = (examples(50), clients())
    for loaded in (parts * 2, parts * 3, Splits(*parts, *parts), Splits(*parts, *parts, *parts)):
        made = Loads(loaded)
        made.setup()
        assert (made.val is None) == (made.val_clients is None) == (len(loaded) == 4 or loaded[4] is None)


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (3, "`load` of Loads must give `Splits.*`, .* but gives 3"),
        ((examples(50), clients()), "`load` of Loads must give `Splits.*`, .* but gives a tuple"),
        ((examples(50), clients(), 3, clients()), "`test` of `load` of Loads must be an Examples, but is 3"),
        ((examples(50), clients()) * 2 + (examples(9), None), "`val_clients` of `load` of Loads must be a Partition, but is None"),
        ((examples(50), clients()) * 2 + (None, clients()), "`val` of `load` of Loads must be an Examples, but is None"),
        (
            (*(examples(50), clients()) * 2, Examples(torch.zeros(3), torch.zeros(2)), clients()),
            "The validation set of Loads must hold as many inputs as targets",
        ),
        ((examples(50), clients()) * 2 + (examples(50), IID(3).split(torch.zeros(50), 0)), "The validation partition must be of the 5"),
        ((examples(50), clients()) * 2 + (examples(60), clients()), "Each example of the validation set must belong .* 10 of 60"),
    ],
)  # fmt: skip
def test_what_is_loaded_is_checked(loaded: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Loads(loaded).setup()


def test_owners_without_examples_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="`val_clients` of TensorData must come with `val`, but `val` is None"):
        TensorData(examples(50), clients(), val_clients=clients())


def test_lightnings_loaders_are_those_of_the_splits() -> None:
    divided = images(validation=0.25)
    assert divided.val is not None
    assert len(torch.cat([targets for _, targets in divided.train_dataloader()])) == len(divided.clients.indices)
    ((inputs, targets),) = divided.val_dataloader()
    assert torch.equal(targets, divided.val.targets)
    torch.testing.assert_close(inputs, divided.preprocess(divided.val.inputs))
    assert list(images().val_dataloader()) == []
    with pytest.raises(
        ConfigurationError, match="FakeImages must have a validation split to evaluate on, but has none"
    ):
        images().evaluation_dataloader("val")


# -- in a run -----------------------------------------------------------------------------------------------------------
class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs)
        return found


def with_val(**more: Any) -> TensorData:
    kept, aside = set_aside(clients(), 0.3, 0)
    val, owners = gather(examples(50), aside)
    return TensorData(examples(50), kept, examples(20, seed=2), val=val, val_clients=owners, **more)


def evaluated(data: FederatedDataModule, rounds: int = 2, **options: Any) -> FederatedTrainer:
    """A run of a linear model that is evaluated after each round."""
    return fit(FedAvg(lr=0.1), Classification(Linear(), 3), data, rounds, **{"evaluate_every": 1, **options})


def splits_of(trainer: FederatedTrainer) -> set[str]:
    return {name.partition("/")[0] for name in trainer.metrics} - {"train", "communication"}


@pytest.mark.parametrize(
    ("evaluate_on", "logged"),
    [
        ({}, {"val", "val_clients", "test", "test_clients"}),
        ({"evaluate_on": ("test",)}, {"test", "test_clients"}),
        ({"evaluate_on": ("val",)}, {"val", "val_clients"}),
        ({"evaluate_on": ("train", "val")}, {"train_all", "train_all_clients", "val", "val_clients"}),
        ({"evaluate_on": ()}, set()),
    ],
)
def test_the_trainer_says_what_is_evaluated(evaluate_on: dict[str, Any], logged: set[str]) -> None:
    assert splits_of(evaluated(with_val(), **evaluate_on)) == logged


def test_a_split_that_there_is_not_is_nothing() -> None:
    without = TensorData(examples(50), clients())
    assert splits_of(evaluated(without)) == {"test", "test_clients"}
    assert splits_of(evaluated(without, evaluate_on=("val",))) == set()


def test_each_split_is_scored_by_its_own_examples() -> None:
    data = with_val()
    trainer = evaluated(data, evaluate_on=("val", "test", "train"))
    trained = Classification(Linear(), 3).with_state(trainer.state)
    assert data.val is not None
    assert data.val_clients is not None
    trained_on, owners = gather(data.train, data.clients)
    for prefix, part, owned in (
        ("val", data.val, data.val_clients),
        ("test", data.test, data.test_clients),
        ("train_all", trained_on, owners),
    ):
        with torch.no_grad():
            losses = nn.functional.cross_entropy(trained(part.inputs), part.targets, reduction="none").double()
        means = [losses[owned.client(c)].mean() for c in range(5) if owned.size(c)]
        assert trainer.metrics[f"{prefix}/loss"] == pytest.approx(float(losses.mean()), abs=1e-6)
        assert trainer.metrics[f"{prefix}_clients/loss_mean"] == pytest.approx(
            float(torch.stack(means).mean()), abs=1e-6
        )


def test_what_is_set_aside_is_not_trained_on() -> None:
    data = with_val()
    data.setup()
    seen = evaluated(data).state.server.x
    assert data.val is not None
    spoiled = with_val()
    spoiled.setup()
    held_out = torch.ones(50, dtype=torch.bool)
    held_out[spoiled.clients.indices] = False
    spoiled.train.inputs[held_out] = 1e6
    assert bool(held_out.any())
    assert torch.equal(evaluated(spoiled).state.server.x, seen)


def test_a_validation_split_that_the_task_cannot_take_is_refused() -> None:
    wrong = TensorData(examples(50), clients(), val=Examples(torch.zeros(5, 4), torch.full((5,), 7)))
    with pytest.raises(ConfigurationError, match="Labels must be integers in 0…2"):
        evaluated(wrong)


def test_a_split_without_an_example_is_refused_where_it_is_evaluated() -> None:
    empty = TensorData(examples(50), clients(), val=Examples(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(
        ConfigurationError, match=r"The val split of TensorData must hold an example .* leave 'val' out"
    ):
        evaluated(empty)
    evaluated(empty, evaluate_on=("test",))


def test_a_run_goes_on_only_on_the_same_validation_split(tmp_path: Path) -> None:
    """Callbacks decide by it, so it decides the run's numbers as the test set does."""
    evaluated(with_val(), callbacks=[ModelCheckpoint(tmp_path)])
    path = tmp_path / "last.ckpt"
    task = Classification(Linear(), 3)
    fit(FedAvg(lr=0.1), task, with_val(), 3, ckpt_path=path)
    changed = with_val()
    changed.setup()
    assert changed.val is not None
    changed.val.inputs[0] += 1
    with pytest.raises(ConfigurationError, match="validation_data"):
        fit(FedAvg(lr=0.1), task, changed, 3, ckpt_path=path)


def test_the_partition_has_a_seed_of_its_own() -> None:
    class Batches(Callback):
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def on_fit_start(self, trainer: FederatedTrainer) -> None:
            self.seen.append(trainer.data.schedule(0, 0, trainer.seed, 2).index.flatten().tolist())

    def run(partition: int, training: int) -> tuple[str, list[int]]:
        batches, data = Batches(), images(seed=partition, batching=Batching(8))
        trainer = FederatedTrainer(1, callbacks=[batches], logger=False, seed=training)
        trainer.fit(FedAvg(), Classification(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3), data)
        return data.clients.fingerprint, batches.seen[0]

    (owners, drawn), (same, others), (another, _) = run(0, 0), run(0, 1), run(1, 0)
    assert owners == same != another
    assert sorted(drawn) == sorted(others)
    assert drawn != others


def test_the_centralised_baseline_evaluates_the_same_splits(tmp_path: Path) -> None:
    like = FederatedTrainer(2, callbacks=[], logger=False, evaluate_on=("val", "test", "train"))
    loggers = run_loggers(tmp_path, "run")
    fit_centralised(like, FedAvg(lr=0.1), Classification(Linear(), 3), with_val(), loggers, tmp_path / "run")
    header, *rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    names = {f"{split}/{name}" for split in ("val", "test", "train_all") for name in ("loss", "accuracy")}
    assert set(header) == names | {"step", "train/loss"}
    assert [row[header.index("step")] for row in rows] == ["0", "1", "2"]
    assert all(row[header.index(name)] for row in rows for name in names)
