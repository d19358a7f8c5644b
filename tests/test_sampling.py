import time

import numpy as np
import pytest

from fedlightning.data import FixedSchedule, RoundSeeded, UniformSampling
from fedlightning.errors import ConfigurationError


def test_uniform_sampling_is_without_replacement_and_addressed():
    sampler = UniformSampling()
    found = sampler.sample(3, 100, 10, seed=0)
    assert len(set(found)) == 10
    assert found == sorted(found)
    assert all(type(client) is int and 0 <= client < 100 for client in found)
    assert sampler.sample(3, 100, 10, seed=0) == found
    others = [sampler.sample(4, 100, 10, seed=0), sampler.sample(3, 100, 10, seed=1)]
    assert found not in others
    assert others[0] != others[1]


def test_full_participation_is_everyone():
    assert UniformSampling().sample(0, 7, 7, seed=5) == list(range(7))


def test_every_client_is_equally_likely():
    counts = np.zeros(20)
    for round in range(4000):
        counts[UniformSampling().sample(round, 20, 5, seed=0)] += 1
    assert abs(counts / 4000 - 0.25).max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_million_clients_cost_no_more_than_a_thousand():
    start = time.process_time()
    for round in range(50):
        assert len(UniformSampling().sample(round, 10**12, 100, seed=0)) == 100
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("round", "num_clients", "expected"),
    [
        (0, 30, [2, 28, 13, 10, 26, 24, 27, 11, 17, 22]),
        (1, 30, [17, 21, 10, 19, 14, 20, 26, 3, 24, 22]),
        (2, 30, [1, 0, 14, 9, 21, 19, 23, 6, 3, 20]),
        (0, 1000, [993, 859, 298, 553, 672, 971, 27, 231, 306, 706]),
        (0, 200, [18, 170, 107, 98, 177, 182, 5, 146, 12, 152]),
    ],
)
def test_round_seeded_chooses_what_the_program_of_fedprox_chooses(round, num_clients, expected):
    before = np.random.get_state()[1].copy()
    for seed in (0, 1, 12345):
        assert RoundSeeded().sample(round, num_clients, 10, seed) == expected
    assert (np.random.get_state()[1] == before).all()


def test_a_fixed_schedule_begins_again():
    sampler = FixedSchedule(rounds=((2, 0), (1,)))
    assert [sampler.sample(round, 3, 1, seed=0) for round in range(4)] == [[2, 0], [1], [2, 0], [1]]
    assert repr(sampler) == "FixedSchedule(rounds=((2, 0), (1,)))"


@pytest.mark.parametrize("count", [0, -1, 11])
def test_the_count_must_be_possible(count):
    for sampler in (UniformSampling(), RoundSeeded()):
        with pytest.raises(ConfigurationError, match=f"between 1 and the 10 that there are, but are {count}"):
            sampler.sample(0, 10, count, seed=0)


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ((), "at least one round"),
        (((0,), ()), r"rounds\[1\] is \(\)"),
        (((1, 1),), r"\(1, 1\)"),
        (((-1,),), r"\(-1,\)"),
    ],
)
def test_a_fixed_schedule_is_checked(rounds, message):
    with pytest.raises(ConfigurationError, match=message):
        FixedSchedule(rounds)


def test_a_fixed_schedule_names_clients_that_exist():
    with pytest.raises(ConfigurationError, match=r"in 0…2, but rounds\[1\] is \(3,\)"):
        FixedSchedule(((0,), (3,))).sample(0, 3, 1, seed=0)
