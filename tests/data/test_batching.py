"""How a client's examples become batches: one value that every data module takes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlightning import Batching, Examples, Partition, TensorData
from fedlightning.errors import ConfigurationError
from fedlightning.testing import Quadratics

pytestmark = pytest.mark.quick


def data(sizes: list[int], batching: Batching) -> TensorData:
    count = sum(sizes)
    made = TensorData(
        Examples(torch.zeros(count, 1), torch.zeros(count)), Partition.of_sizes(torch.tensor(sizes)), batching=batching
    )
    made.setup()
    return made


def test_it_is_one_epoch_unless_something_else_is_said() -> None:
    assert Batching() == Batching(32, epochs=1, steps=None, drop_last=False)
    assert Batching(5, steps=3).epochs is None
    assert Batching(None, epochs=2).size is None
    with pytest.raises(FrozenInstanceError):
        Batching().size = 3  # type: ignore[misc]
    assert replace(Batching(5, epochs=2), size=7) == Batching(7, epochs=2)


@pytest.mark.parametrize(
    ("batching", "examples", "batches", "steps"),
    [
        (Batching(4), 9, 3, 3),
        (Batching(4, epochs=5), 9, 3, 15),
        (Batching(4, steps=5), 9, 3, 5),
        (Batching(4, drop_last=True), 9, 2, 2),
        (Batching(4, drop_last=True, epochs=3), 8, 2, 6),
        (Batching(4, drop_last=True), 3, 1, 1),  # the one batch that the client has
        (Batching(None), 9, 1, 1),
        (Batching(None, epochs=2, drop_last=True), 9, 1, 2),
    ],
)
def test_batches_and_steps_are_counted(batching: Batching, examples: int, batches: int, steps: int) -> None:
    assert (batching.batches(examples), batching.num_steps(examples)) == (batches, steps)


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@given(SIZES, st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 3), st.booleans())
def test_a_data_module_lays_out_as_many_batches_as_it_says(
    sizes: list[int], size: int | None, epochs: int, drop_last: bool
) -> None:
    batching = Batching(size, epochs=epochs, drop_last=drop_last)
    made = data(sizes, batching)
    for client, examples in enumerate(sizes):
        index = made.schedule(client, 0, 0, made.num_steps(client)).index
        assert len(index) == batching.num_steps(examples)
        whole = examples if not drop_last or examples <= (size or examples) else examples // (size or 1) * (size or 1)
        assert int((index >= 0).sum()) == epochs * whole


def test_a_methods_wish_for_steps_comes_first() -> None:
    made = data([9], Batching(4, epochs=5))
    assert (made.num_steps(0), made.num_steps(0, steps=2)) == (15, 2)


def test_it_is_the_only_attribute_of_a_data_module() -> None:
    made = data([9], Batching(4))
    assert made.batching == Batching(4)
    assert not [name for name in ("batch_size", "epochs", "steps", "drop_last", "batches") if hasattr(made, name)]
    assert Quadratics([torch.eye(1)], [torch.zeros(1)], [3], steps=7).batching == Batching(None, steps=7)


def test_a_bare_size_is_refused_with_what_to_write() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`batching` of TensorData must be a Batching, but is 16; use `Batching\(16\)`"
    ):
        data([4], 16)  # type: ignore[arg-type]
