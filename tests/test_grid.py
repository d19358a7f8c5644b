"""Where the steps of a cohort's clients lie, against loops that say it one step at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedlightning.execution.grid import Grid, Padding

EMPTY = -7


def place(c: int, k: int, num_steps: list[int], padding: Padding) -> tuple[int, int]:
    """Row and column of step k of client c."""
    if not padding.unroll:
        return k, c
    if padding.lead and k == 0:
        return c, 0
    before = padding.lead * len(num_steps) + sum(padding.lengths(num_steps)[:c])
    return before + k - padding.lead, 0


def one_by_one(steps: list[Tensor], padding: Padding, batch: int) -> NDArray[np.int64]:
    num_steps = [len(each) for each in steps]
    rows, columns = max(num_steps), padding.width
    if padding.unroll:
        rows, columns = padding.lead * len(steps) + sum(padding.lengths(num_steps)), 1
    widest = max(batch, *(each.shape[1] for each in steps))
    laid = np.full((rows, columns, widest, *steps[0].shape[2:]), EMPTY)
    for c, each in enumerate(steps):
        for k, step in enumerate(each.numpy()):
            laid[*place(c, k, num_steps, padding), : len(step)] = step
    return laid


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 6),
    st.sampled_from([(), (2,)]),
)
def test_steps_lie_where_loops_put_them(
    sizes: list[tuple[int, int]], unroll: int, lead: bool, batch: int, more: tuple[int, ...]
) -> None:
    sizes.sort(reverse=True)
    steps = [torch.randint(100, (k, b, *more)) for k, b in sizes]
    padding = Padding(len(steps), unroll, lead and unroll > 0)
    grid = Grid.of([k for k, _ in sizes], padding)
    np.testing.assert_array_equal(grid.laid_out(steps, EMPTY, batch), one_by_one(steps, padding, batch))


@pytest.mark.parametrize("padding", [Padding(3, 4), Padding(3, 4, lead=True), Padding(3, 1)])
def test_entries_of_a_table_are_picked_step_by_step(padding: Padding) -> None:
    num_steps = [7, 4, 1]
    table = np.arange(1, 22).reshape(7, 3)
    picked = Grid.of(num_steps, padding).picked(table)
    expected = np.zeros_like(picked)
    for c, count in enumerate(num_steps):
        for k in range(count):
            expected[place(c, k, num_steps, padding)] = table[k, c]
    np.testing.assert_array_equal(picked, expected)
