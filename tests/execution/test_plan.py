"""Where the steps of a cohort's clients lie: in a plan, and as the runners lay them out, against loops that say it row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import unequal_clients

from fedlightning.data import Schedule, TensorData
from fedlightning.errors import ConfigurationError
from fedlightning.execution.plan import CohortPlan, PhasePlan
from fedlightning.execution.runners.traced import Rows
from fedlightning.execution.runners.vmap import Dense
from fedlightning.execution.step import GRADIENT
from fedlightning.participation import Participation, RoundPlan, Work

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")


class Sized(TensorData):
    """Each client has as many batches, of as many examples, as a table says, and two integers of augmentation a place."""

    table: dict[int, tuple[int, int]]

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        steps, size = self.table[client]
        own = torch.arange(steps * size).view(steps, size) + 100 * client
        return Schedule(own % 5, torch.stack([own, -own], dim=2))


def planned(sizes: list[tuple[int, int]]) -> CohortPlan:
    """The plan of clients of so many steps of so many examples, the most steps first."""
    module = unequal_clients(kind=Sized)
    module.setup()
    module.table = dict(enumerate(sizes))
    work = Work(tuple(range(len(sizes))), {c: steps for c, (steps, _) in enumerate(sizes)})
    return PhasePlan(RoundPlan(Participation(module), 0, work)).draw(work.clients)


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5)


@given(SIZES)
def test_a_plan_is_client_after_client(sizes: list[tuple[int, int]]) -> None:
    sizes.sort(reverse=True)
    plan = planned(sizes)
    assert plan.offsets.tolist() == [sum(steps for steps, _ in sizes[:c]) for c in range(len(sizes) + 1)]
    row = 0
    for c, (steps, size) in enumerate(sizes):
        alone = planned(sizes[: c + 1])
        for k in range(steps):
            assert (plan.owner[row], plan.step[row], plan.filled[row]) == (c, k, size)
            assert plan.mask[row].tolist() == [place < size for place in range(plan.mask.shape[1])]
            assert torch.equal(plan.index[row, :size], (torch.arange(size) + k * size + 100 * c) % 5)
            assert (
                plan.index[row, size:] == plan.index[row, 0]
            ).all()  # an empty place has an example of its own batch
            assert plan.draws is not None
            assert torch.equal(plan.draws[row, :size, 0], torch.arange(size) + k * size + 100 * c)
            assert plan.keys[row] == alone.keys[alone.offsets[c] + k]  # whoever else is in the cohort
            row += 1


@given(SIZES, st.integers(1, 4), st.integers(0, 3))
def test_graphs_take_rows_that_are_padded_at_the_end_of_each_client(
    sizes: list[tuple[int, int]], unroll: int, more: int
) -> None:
    sizes.sort(reverse=True)
    plan = planned(sizes)
    width = plan.index.shape[1] + more
    rows = Rows.of(plan, unroll, width, torch.float64, CPU)
    assert rows.lengths == [-(-steps // unroll) * unroll for steps, _ in sizes]
    assert rows.index.shape == rows.mask.shape == (sum(rows.lengths), width)
    taken = rows.active.nonzero().flatten()
    assert taken.tolist() == (list(range(len(plan.step))) if rows.places is None else rows.places.tolist())
    assert not rows.mask[~rows.active].any()
    for mine, theirs in ((rows.keys, plan.keys), (rows.step, torch.from_numpy(plan.step).double())):
        assert torch.equal(mine[taken], theirs)
    assert torch.equal(rows.index[taken, : plan.index.shape[1]], plan.index)
    assert torch.equal(rows.mask[taken, : plan.index.shape[1]], plan.mask)
    assert not rows.mask[:, plan.index.shape[1] :].any()
    owners = np.repeat(np.arange(len(sizes)), rows.lengths)
    np.testing.assert_array_equal(owners[taken.numpy()], plan.owner)


@given(SIZES, st.integers(0, 2))
def test_a_cohort_stands_side_by_side(sizes: list[tuple[int, int]], more: int) -> None:
    sizes.sort(reverse=True)
    plan = planned(sizes)
    dense = Dense.of(plan, len(sizes) + more, CPU)
    assert dense.index.shape[:2] == (sizes[0][0], len(sizes) + more)
    for row, (c, k) in enumerate(zip(plan.owner.tolist(), plan.step.tolist(), strict=True)):
        assert torch.equal(dense.index[k, c], plan.index[row])
        assert torch.equal(dense.mask[k, c], plan.mask[row])
        assert dense.keys[k, c] == plan.keys[row]
    assert int(dense.mask.sum()) == int(plan.mask.sum())


def test_the_pass_before_takes_each_example_once() -> None:
    module = unequal_clients(size=4)
    module.setup()
    plan = PhasePlan(RoundPlan(Participation(module), 0, Work((1, 0))), GRADIENT).draw((1, 0))
    for c, client in enumerate(plan.clients):
        rows = slice(*plan.offsets[c : c + 2])
        assert sorted(plan.index[rows][plan.mask[rows]].tolist()) == module.clients.positions(client).tolist()


class Gaps(TensorData):
    """Its batches have an empty place before one that is filled."""

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        drawn = super().schedule(client, round, seed, num_steps)
        return drawn._replace(index=torch.cat([torch.full_like(drawn.index[:, :1], -1), drawn.index], dim=1))


def test_batches_are_filled_from_the_front() -> None:
    module = unequal_clients(kind=Gaps)
    module.setup()
    with pytest.raises(ConfigurationError, match="`schedule` of Gaps must fill each batch from the front"):
        PhasePlan(RoundPlan(Participation(module), 0, Work((0,)))).draw((0,))
