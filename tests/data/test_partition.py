import math
import time
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.data import IID, Dirichlet, Natural, Partition, QuantitySkew, Shards, parse_partition
from fedlightning.data._dealing import draw, fill_up
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream

LABELS = torch.from_numpy(stream(7, "test-labels").integers(0, 10, 5000))


def entropy(partition, labels=LABELS):
    """The mean over clients of exp(entropy of the client's classes): its effective number of classes."""
    shares = partition.histogram(labels, int(labels.max()) + 1).double()
    shares = shares / shares.sum(1, keepdim=True)
    return float(torch.special.entr(shares).sum(1).exp().mean())


@st.composite
def partitioners(draw):
    clients, alpha = draw(st.integers(1, 12)), draw(st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
    small = draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [
                Dirichlet(alpha, clients, small),
                Dirichlet(alpha, clients, small, form="client"),
                IID(clients),
                Shards(clients, small),
                QuantitySkew(alpha, clients, small),
            ]
        )
    )


# -- every partitioner ------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=150)
@given(partitioners(), st.lists(st.integers(-1, 4), min_size=40, max_size=120), st.integers(0, 5))
def test_each_example_has_one_client_and_each_client_enough_examples(partitioner, labels, seed):
    labels = torch.tensor(labels)
    partition = partitioner.split(labels, seed)
    assert partition.num_clients == partitioner.num_clients
    assert torch.equal(partition.indices.sort().values, torch.arange(len(labels)))
    assert int(partition.sizes.min()) >= getattr(partitioner, "min_size", 1)
    partition.check(len(labels))
    again = partitioner.split(labels.clone(), seed)
    assert torch.equal(partition.indices, again.indices)
    assert torch.equal(partition.offsets, again.offsets)


@pytest.mark.parametrize(
    "partitioner", [Dirichlet(1.0, 5), Dirichlet(1.0, 5, form="client"), IID(5), Shards(5), QuantitySkew(1.0, 5)]
)
def test_seeds_matter_and_neighbours_do_not_collide(partitioner):
    assert len({partitioner.split(LABELS, seed).fingerprint for seed in range(20)}) == 20


@pytest.mark.parametrize("form", ["class", "client"])
def test_a_smaller_alpha_is_more_heterogeneous(form):
    found = [entropy(Dirichlet(alpha, 20, form=form).split(LABELS, 0)) for alpha in (0.01, 0.1, 1.0, 100.0)]
    assert found == sorted(found)
    assert found[0] < 4 < 9 < found[-1]


@pytest.mark.parametrize("name", ["A0d01C3000", "A0d10C3000", "H0d10C3000", "Q0d10C3000", "S2C3000"])
def test_three_thousand_clients_take_no_time(name):
    labels = torch.arange(50_000) % 100
    start = time.process_time()
    partition = parse_partition(name).split(labels, 0)
    assert time.process_time() - start < 4
    assert int(partition.sizes.min()) >= 1


# -- Dirichlet, class by class ----------------------------------------------------------------------------------------
def test_the_histogram_matches_the_shares_within_one_example():
    partition = Dirichlet(1.0, 6).split(LABELS, seed=3)
    histogram = partition.histogram(LABELS, 10)
    rng = stream(3, "partition", 0)
    for c in range(10):
        shares = rng.dirichlet(np.full(6, 1.0))
        clients = rng.permutation(6)
        expected = shares * int(torch.bincount(LABELS)[c])
        assert np.abs(histogram[clients, c].numpy() - expected).max() <= 1


def test_shares_have_the_moments_of_a_dirichlet_distribution():
    alpha, clients = 0.5, 4
    labels = torch.arange(4000) % 4
    shares = torch.stack([Dirichlet(alpha, clients).split(labels, s).histogram(labels, 4) for s in range(200)]) / 1000
    assert torch.allclose(shares.mean((0, 2)), torch.full((clients,), 1 / clients), atol=0.03)
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert float(shares.var()) == pytest.approx(variance, rel=0.1)


def test_standard_heterogeneity_of_cifar100():
    """Classes per client and effective classes, found by an independent program: 7.5 and 3.4; 4.3 and 2.8 at 1,000."""
    labels = torch.arange(50_000) % 100
    found = [Dirichlet(0.01, n).split(labels, s) for n, s in ((100, 0), (100, 1), (100, 2), (1000, 0))]
    classes = [float((p.histogram(labels, 100) > 0).sum(1).double().mean()) for p in found]
    assert sum(classes[:3]) / 3 == pytest.approx(7.5, abs=0.6)
    assert sum(entropy(p, labels) for p in found[:3]) / 3 == pytest.approx(3.4, abs=0.5)
    assert classes[3] == pytest.approx(4.3, abs=0.3)
    assert entropy(found[3], labels) == pytest.approx(2.8, abs=0.2)


def test_rounding_favours_no_client_when_there_are_more_clients_than_examples_of_a_class():
    labels = torch.arange(5000) % 100
    sizes = Dirichlet(1e4, 300).split(labels, 0).sizes
    assert int(sizes.min()) >= 5
    assert int(sizes.max()) <= 35


@pytest.mark.parametrize(
    ("before", "after"), [([10, 9, 0, 1], [7, 7, 3, 3]), ([10, 9, 0, 2], [8, 7, 3, 3]), ([3, 3, 4, 2], [3, 3, 3, 3])]
)
def test_examples_are_moved_from_the_largest_clients(before, after):
    owners = np.arange(4).repeat(before)
    moved = owners.copy()
    fill_up(moved, 4, 3, stream(0, "test"))
    assert np.bincount(moved).tolist() == after
    assert (moved != owners).sum() == sum(max(3 - size, 0) for size in before)


def test_a_minimum_that_no_draw_reaches_is_met_by_moving():
    partition = Dirichlet(0.01, 1000, min_size=3).split(LABELS, 0)
    assert int(partition.sizes.min()) == 3
    assert torch.equal(partition.indices.sort().values, torch.arange(5000))
    assert torch.equal(Dirichlet(0.01, 1000, min_size=5).split(LABELS, 0).sizes, torch.full((1000,), 5))


# -- Dirichlet, client by client ----------------------------------------------------------------------------------------
def expected_draw(mixture, stock, size):
    """The exact expectation of drawing one example after another, the mixture renormalised when a class runs out."""

    @cache
    def walk(left, size):
        if not size:
            return np.zeros(len(left))
        weights = np.array([q if n else 0.0 for q, n in zip(mixture, left, strict=True)])
        steps = [tuple(n - (i == c) for i, n in enumerate(left)) for c in range(len(left))]
        ways = [(p, c, steps[c]) for c, p in enumerate(weights / weights.sum()) if p]
        return sum(p * (np.eye(len(left))[c] + walk(step, size - 1)) for p, c, step in ways)

    return walk(tuple(stock), size)


def test_drawing_by_batches_is_drawing_one_by_one():
    mixture, stock, rng = np.array([0.5, 0.3, 0.2]), np.array([1, 2, 3]), stream(0, "test")
    draws = np.array([draw(rng, mixture, 3, stock) for _ in range(20_000)])
    assert (draws.sum(1) == 3).all()
    assert (draws <= stock).all()
    assert draws.mean(0) == pytest.approx(expected_draw(mixture.tolist(), stock.tolist(), 3), abs=0.015)


def test_a_mixture_without_stock_falls_back_on_what_is_left():
    assert draw(stream(0, "test"), np.array([1.0, 0.0, 0.0]), 6, np.array([2, 3, 1])).tolist() == [2, 3, 1]


def test_client_wise_sizes_are_equal_and_large_alpha_gives_the_prior():
    labels = torch.cat([torch.zeros(3000), torch.ones(1000)]).long()
    partition = Dirichlet(1e6, 7, form="client").split(labels, 0)
    assert int(partition.sizes.max() - partition.sizes.min()) <= 1
    shares = partition.histogram(labels, 2)[:, 1] / partition.sizes
    assert torch.allclose(shares, torch.full((7,), 0.25), atol=0.08)


# -- the others -----------------------------------------------------------------------------------------------------------
def test_shards_hold_few_classes():
    labels = torch.arange(6000) % 10
    for per_client in (1, 2, 3):
        partition = Shards(100, per_client).split(labels, 0)
        assert set(partition.sizes.tolist()) == {60}
        assert int((partition.histogram(labels, 10) > 0).sum(1).max()) <= per_client


def test_quantity_skew_has_uneven_sizes_and_even_classes():
    partition = QuantitySkew(0.5, 10).split(LABELS, 0)
    assert int(partition.sizes.max()) > 4 * int(partition.sizes.median())
    large = partition.sizes > 300
    shares = partition.histogram(LABELS, 10)[large] / partition.sizes[large, None]
    assert torch.allclose(shares, torch.full_like(shares, 0.1), atol=0.07)


def test_iid_sizes_differ_by_at_most_one():
    assert Counter(IID(3).split(torch.zeros(11), 0).sizes.tolist()) == {4: 2, 3: 1}


def test_natural_owners_become_clients_in_ascending_order():
    partition = Natural(torch.tensor([30, 10, 30, 20])).split(torch.zeros(4), 0)
    assert [partition.client(c).tolist() for c in range(3)] == [[1], [3], [0, 2]]
    assert Natural(torch.tensor([30, 10, 30, 20])).name == "naturalC3"
    with pytest.raises(ConfigurationError, match="must be 5 integers"):
        Natural(torch.tensor([1, 2])).split(torch.zeros(5), 0)


# -- names --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "partitioner"),
    [
        ("A0d01C100", Dirichlet(alpha=0.01, num_clients=100)),
        ("A0d10C100", Dirichlet(alpha=0.1, num_clients=100)),
        ("A0d005C100", Dirichlet(alpha=0.005, num_clients=100)),
        ("A1d00C62", Dirichlet(alpha=1.0, num_clients=62)),
        ("A10d25C1", Dirichlet(alpha=10.25, num_clients=1)),
        ("A0d50C8M4", Dirichlet(alpha=0.5, num_clients=8, min_size=4)),
        ("H0d10C100", Dirichlet(alpha=0.1, num_clients=100, form="client")),
        ("Q0d50C100", QuantitySkew(alpha=0.5, num_clients=100)),
        ("S2C100", Shards(num_clients=100, shards_per_client=2)),
        ("IIDC100", IID(num_clients=100)),
    ],
)
def test_names(name, partitioner):
    assert parse_partition(name) == partitioner
    assert partitioner.name == name


@settings(deadline=None)
@given(st.floats(1e-12, 1e12), st.integers(1, 10**9), st.integers(1, 50), st.sampled_from(["class", "client"]))
def test_names_round_trip(alpha, clients, minimum, form):
    for partitioner in (Dirichlet(alpha, clients, minimum, form), QuantitySkew(alpha, clients, minimum)):
        assert parse_partition(partitioner.name) == partitioner


@pytest.mark.parametrize(
    "name",
    ["", "A", "A0.1C100", "A0d10", "a0d10C100", "A-1d00C10", "Ad1C10", "A0d10C1e3", "A0d10C10 ", "S2d5C3", "IID"],
)
def test_a_malformed_name_is_answered_with_an_example(name):
    with pytest.raises(ConfigurationError, match=r"must be like 'A0d10C100'.*but is '"):
        parse_partition(name)


# -- errors -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0, -1, -0.5, math.inf, math.nan, "0.1"])
def test_alpha_must_be_positive(alpha):
    for kind in (Dirichlet, QuantitySkew):
        with pytest.raises(ConfigurationError, match=r"`alpha` of \w+ must be in \(0, inf\)"):
            kind(alpha, 10)


def test_numbers_from_one_on():
    for make in (lambda: Dirichlet(1.0, 0), lambda: IID(-1), lambda: Shards(3, 0), lambda: Dirichlet(1.0, 3, 0)):
        with pytest.raises(ConfigurationError, match=r"must be (a whole number of )?at least 1, but"):
            make()
    with pytest.raises(ConfigurationError, match=r"`num_clients` of IID .* but is 2\.5"):
        IID(2.5)
    with pytest.raises(ConfigurationError, match="`form`"):
        Dirichlet(1.0, 3, form="sample")
    with pytest.raises(ConfigurationError, match="`alpha`"):
        parse_partition("A0d00C10")


@pytest.mark.parametrize(
    ("partitioner", "remedy"),
    [
        (Dirichlet(0.1, 100, min_size=30), "use at most 33 clients or a `min_size` of at most 10"),
        (Dirichlet(0.1, 2000, form="client"), "use at most 1000 clients"),
        (Shards(600, 2), "use at most 500 clients or a `shards_per_client` of at most 1"),
        (IID(1001), "use at most 1000 clients"),
        (QuantitySkew(0.1, 2, 5000), "use a `min_size` of at most 500"),
    ],
)
def test_a_partition_that_cannot_be_met_says_what_would_work(partitioner, remedy):
    with pytest.raises(ConfigurationError, match="the data set has 1000; ") as error:
        partitioner.split(torch.arange(1000) % 10, 0)
    assert str(error.value).endswith(f"{remedy}.")


def test_labels_are_needed_where_classes_matter():
    for partitioner in (Dirichlet(1.0, 3), Shards(3)):
        with pytest.raises(ConfigurationError, match=r"the targets are \[20, 5\]"):
            partitioner.split(torch.zeros(20, 5), 0)
    assert IID(3).split(torch.zeros(20, 5), 0).num_clients == 3


# -- Partition ----------------------------------------------------------------------------------------------------------
def test_partition_arrays():
    partition = Partition.of([torch.tensor([4, 1]), torch.tensor([0]), torch.tensor([2, 3, 5])])
    assert partition.num_clients == 3
    assert partition.sizes.tolist() == [2, 1, 3]
    assert partition.client(2).tolist() == [2, 3, 5]
    assert partition.owners().tolist() == [0, 0, 1, 2, 2, 2]
    assert partition.histogram(torch.tensor([0, 1, 1, 0, 1, 1]), 2).tolist() == [[0, 2], [1, 0], [1, 2]]
    owners = torch.tensor([1, 0, 2, 2, 0, 2])
    assert Partition.of_owners(owners, 3).indices.tolist() == [1, 4, 0, 2, 3, 5]


def test_the_fingerprint_tells_partitions_apart():
    one, other = (
        Partition.of([torch.arange(3), torch.arange(3, 5)]),
        Partition.of([torch.arange(2), torch.arange(2, 5)]),
    )
    assert one.fingerprint == Partition(one.indices.clone(), one.offsets.clone()).fingerprint
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([[0, 1], [], [2]], "1 of 3 have none .the first: client 1"),
        ([], "it has no client"),
        ([[0, 3]], "must be in 0…2, but are in 0…3"),
        ([[-1, 2]], "must be in 0…2, but are in -1…2"),
    ],
)
def test_check_refuses_what_cannot_be_trained_on(clients, message):
    with pytest.raises(ConfigurationError, match=message):
        Partition.of([torch.tensor(c, dtype=torch.int64) for c in clients]).check(3)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([[0, 1], [2, 1]], "but 1 of its 4 positions are there again .the first: 1, at clients 0 and 1"),
        ([[3, 3, 3], [1]], "but 2 of its 4 positions are there again .the first: 3, at client 0 twice"),
        (
            [[2, 0], [0, 2], [1]],
            "but 2 of its 5 positions .*the first: 0, at clients 0 and 1.* `shared_examples = True`",
        ),
    ],
)
def test_an_example_belongs_to_one_client(clients, message):
    partition = Partition.of([torch.tensor(c) for c in clients])
    with pytest.raises(ConfigurationError, match=message):
        partition.check(4)
    partition.check(4, shared=True)


def test_training_examples_may_belong_to_nobody():
    Partition.of([torch.tensor([5]), torch.tensor([1, 3])]).check(9)


ARRAYS = [
    (
        torch.arange(4).double(),
        torch.tensor([0, 4]),
        "`indices` of the partition must be .* is torch.float64.4. on cpu",
    ),
    (torch.arange(4).int(), torch.tensor([0, 4]), "`indices` .* but is torch.int32.4."),
    (torch.ones(4).bool(), torch.tensor([0, 4]), "`indices` .* but is torch.bool"),
    (torch.arange(4).view(2, 2), torch.tensor([0, 2]), "`indices` .* but is torch.int64.2, 2."),
    ([0, 1, 2, 3], torch.tensor([0, 4]), "`indices` of Partition must be a tensor, but is .0, 1"),
    (torch.arange(4), [0, 4], "`offsets` of Partition must be a tensor, but is .0, 4"),
    (torch.arange(4), torch.tensor([[0, 4]]), "`offsets` .* but is torch.int64.1, 2."),
    (torch.arange(4), torch.tensor([0.0, 4.0]), "`offsets` .* but is torch.float32"),
    (torch.arange(4), torch.tensor([0, 3]), "`offsets` of the partition must go from 0 to its 4 `indices`"),
    (torch.arange(4), torch.tensor([]).long(), "`offsets` of the partition must go from 0 to its 4 `indices`"),
    (
        torch.arange(4),
        torch.tensor([0, 3, 2, 4]),
        "`offsets` of the partition must not fall, but go from 3 to 2 at client 1",
    ),
]


@pytest.mark.parametrize(("indices", "offsets", "message"), ARRAYS)
def test_the_arrays_are_looked_at(indices, offsets, message):
    with pytest.raises(ConfigurationError, match=message):
        Partition(indices, offsets).check(4)
    with pytest.raises(ConfigurationError, match=message.replace("the partition", "the test partition")):
        Partition(indices, offsets).check_held_out(4, None, "test")


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([[0, 1], [2, 1], []], "test partition, but 1 of its 4 positions are there again"),
        ([[0, 1], [2], []], "test set must belong to a client, but 1 of 4 belong to nobody .the first: position 3"),
        ([[0, 1], [2, 4], []], "Positions of the test partition must be in 0…3, but are in 0…4"),
        ([[0, 1], [2, -1], []], "Positions of the test partition must be in 0…3, but are in -1…2"),
        ([[0, 1], [2, 3]], "must be of the 3 clients that train, but is of 2; .* `other_test_clients = True`"),
        ([[0, 1, 2, 3], [], [], []], "must be of the 3 clients that train, but is of 4"),
        ([], "must be of the 3 clients that train, but is of 0"),
    ],
)
def test_each_test_example_belongs_to_one_client(clients, message):
    with pytest.raises(ConfigurationError, match=message):
        Partition.of([torch.tensor(c, dtype=torch.int64) for c in clients]).check_held_out(4, 3, "test")


def test_a_client_may_have_no_test_example_and_the_test_set_other_clients():
    Partition.of([torch.tensor([]), torch.tensor([3, 0, 1, 2]), torch.tensor([])]).check_held_out(4, 3, "test")
    Partition.of([torch.tensor([3, 0]), torch.tensor([1, 2])]).check_held_out(4, None, "test")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Partition.of([torch.tensor([0.0, 0.5])]),
        lambda: Partition.of([torch.tensor([True, False])]),
        lambda: Partition.of([torch.zeros(3, 2, dtype=torch.int64)]),
        lambda: Partition.of([[0, 1]]),
        lambda: Partition.of_owners(torch.tensor([0, 3]), 3),
        lambda: Partition.of_owners(torch.tensor([0, -1]), 3),
        lambda: Partition.of_owners(torch.tensor([0.0, torch.nan]), 3),
        lambda: Partition.of_sizes(torch.tensor([2, -1])),
        lambda: Partition.of_sizes([2, 1]),
    ],
)
def test_a_partition_is_made_of_whole_numbers(make):
    with pytest.raises(
        ConfigurationError,
        match=r"Partition.of\w*`? must be (a one-dimensional tensor of whole numbers|a (sequence of )?tensors?|in 0…2|at least 0), but",
    ):
        make()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.lists(st.integers(-1, 3), min_size=30, max_size=60), st.lists(st.integers(-1, 3)))
def test_mirror_shares_out_each_class_in_the_same_proportions(clients, labels, other):
    labels, other = torch.tensor(labels), torch.tensor(other, dtype=torch.int64)
    partition = Dirichlet(0.5, clients).split(labels, 0)
    mirrored = partition.mirror(labels, other)
    assert mirrored.num_clients == clients
    assert torch.equal(mirrored.indices.sort().values, torch.arange(len(other)))
    counts, found = partition.histogram(labels + 1, 5).double(), mirrored.histogram(other + 1, 5)
    for c in set((labels + 1).tolist()):
        assert (found[:, c] - counts[:, c] / counts[:, c].sum() * found[:, c].sum()).abs().max() <= 1


def test_mirror_shares_out_an_unknown_class_by_size():
    partition = Partition.of([torch.arange(6), torch.arange(6, 8)])
    assert partition.mirror(torch.zeros(8).long(), torch.full((40,), 9)).sizes.tolist() == [30, 10]
