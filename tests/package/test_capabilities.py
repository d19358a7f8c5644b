"""Which hooks a subclass has made its own: asked once, and a wrapper loses no fast path."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from fedlightning import (
    Batching,
    Classification,
    Examples,
    FedAvg,
    FederatedTrainer,
    Partition,
    SlotStrategy,
    TensorData,
)
from fedlightning._capabilities import own_hooks
from fedlightning.data import FederatedDataModule
from fedlightning.data.module import Schedule


class Base:
    own: ClassVar[frozenset[str]] = frozenset()

    def one(self) -> int:
        return 1

    def two(self) -> int:
        return 2

    @property
    def three(self) -> int:
        return 3


def own(cls: type) -> set[str]:
    return set(own_hooks(cls, Base, ("one", "two", "three")))


class One(Base):
    def one(self) -> int:
        return 10


class Wrapper(Base):
    """Changes nothing, and says so."""

    own_hooks = frozenset[str]()

    def one(self) -> int:
        return super().one()

    def two(self) -> int:
        return super().two()


class Partly(Base):
    own_hooks = frozenset(["two"])

    def one(self) -> int:
        return super().one()

    def two(self) -> int:
        return 20


class Mixed:
    """No subclass of the base."""

    @property
    def three(self) -> int:
        return 30


def test_what_a_class_defines_otherwise_is_its_own() -> None:
    assert own(Base) == set()
    assert own(type("Nothing", (Base,), {})) == set()
    assert own(One) == {"one"}
    assert own(type("Child", (One,), {})) == {"one"}
    assert own(type("WithMixIn", (Mixed, One), {})) == {"one", "three"}


def test_a_wrapper_owns_what_it_says_and_what_it_wraps_counts() -> None:
    assert own(Wrapper) == set()
    assert own(type("Child", (Wrapper,), {})) == set()
    assert own(type("Again", (Wrapper,), {"two": lambda self: 4})) == {"two"}
    assert own(Partly) == {"two"}
    assert own(type("Around", (Wrapper, One), {})) == {"one"}
    assert own(type("Beside", (One, Wrapper), {})) == {"one"}


def test_the_bases_function_given_back_is_the_bases() -> None:
    assert own(type("Back", (One,), {"one": Base.one})) == set()


# -- of data modules ----------------------------------------------------------------------------------------------------
class Reversed(TensorData):
    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        index, draws = super().schedule(client, round, seed, num_steps)
        return Schedule(index.flip(0), draws)


class Counted(TensorData):
    """Counts the calls of its hooks, without a word about it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls = 0

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        self.calls += 1
        return super().schedule(client, round, seed, num_steps)


class Declared(Counted):
    """The same, and says that it changes nothing."""

    own_hooks = frozenset[str]()

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        return super().schedule(client, round, seed, num_steps)


class Around(TensorData):
    own_hooks = frozenset[str]()

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        return super().schedule(client, round, seed, num_steps)

    def batch(self, examples: Examples, index: torch.Tensor, draws: torch.Tensor | None = None) -> Examples:
        return super().batch(examples, index, draws)


class AroundReversed(Around, Reversed):
    """A wrapper around a module with a schedule of its own."""


def made(kind: type[TensorData], **options: Any) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(240, 4, generator=generator), torch.arange(240) % 3)
    data = kind(examples, Partition.of_sizes(torch.full((24,), 10)), batching=Batching(3), **options)
    data.setup()
    return data


def test_the_classes_of_a_data_module_are_told_apart() -> None:
    assert FederatedDataModule.own_hooks == TensorData.own_hooks == Around.own_hooks == frozenset()
    assert Reversed.own_hooks == Counted.own_hooks == AroundReversed.own_hooks == {"schedule"}
    assert Declared.own_hooks == {"schedule"}  # of what it wraps nothing was said


def test_a_declared_wrapper_keeps_the_fast_paths() -> None:
    arguments = ((0, 1, 2), 0, 0, (2, 3, 2))
    (together,) = made(TensorData).schedules(*arguments)
    (wrapped,) = made(Around).schedules(*arguments)
    assert torch.equal(together.index, wrapped.index)
    assert made(Around).only_gathers
    assert len(made(Counted).schedules(*arguments)) == 3


def test_a_wrapper_of_a_schedule_of_ones_own_gives_that_schedules_batches() -> None:
    arguments = ((0, 1, 2), 0, 0, (2, 3, 2))
    for one, other in zip(
        made(Reversed).schedules(*arguments), made(AroundReversed).schedules(*arguments), strict=True
    ):
        assert torch.equal(one.index, other.index)


def execution(kind: type[TensorData], cohort_size: int, **options: Any) -> str:
    strategy = SlotStrategy(1, cohort_size=cohort_size)
    trainer = FederatedTrainer(1, strategy=strategy, callbacks=[], logger=False, evaluate_every=0)
    trainer.fit(FedAvg(), Classification(nn.Linear(4, 3), 3), made(kind, **options))
    return strategy.describe()


def test_the_line_about_the_runner_says_what_a_schedule_of_ones_own_costs() -> None:
    said = "batches drawn client by client, since {} has a `schedule` of its own"
    assert said.format("Counted") in execution(Counted, 4)
    assert said.format("AroundReversed") in execution(AroundReversed, 4)
    for kind, cohort_size in ((Counted, 1), (Around, 4), (TensorData, 4)):  # nothing is lost
        assert "client by client" not in execution(kind, cohort_size)
