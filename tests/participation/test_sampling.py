import time
from itertools import permutations

import numpy as np
import pytest
import torch

from fedlightning import Batching, Classification, Examples, FedAvg, FederatedTrainer, TensorData
from fedlightning.contrib.fedprox_program import RoundSeeded, RoundSeededStragglers
from fedlightning.data import Partition, Schedule
from fedlightning.errors import ConfigurationError
from fedlightning.models import MLP
from fedlightning.participation import BatchingPolicy, ClientSampler, FixedSchedule, Participation, UniformSampling
from fedlightning.participation.samplers import SizeWeighted, named_clients
from fedlightning.participation.stragglers import Stragglers, Work

pytestmark = pytest.mark.quick


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


# -- stragglers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("round", "expected"), [(0, [13, 17, 26, 22, 28]), (1, [10, 22, 26, 14, 17]), (2, [21, 0, 19, 1, 6])]
)
def test_round_seeded_keeps_those_active_that_the_program_of_fedprox_does(round, expected):
    rule, chosen = RoundSeededStragglers(0.5), RoundSeeded().sample(round, 30, 10, 0)
    assert rule.active(chosen, 5, round, 7) == expected
    assert rule.active(chosen, 1, round, 0) == expected[:1]


def test_the_active_clients_are_addressed_and_nested():
    rule, chosen = Stragglers(0.5), list(range(100, 120))
    found = rule.active(chosen, 20, 3, 0)
    assert sorted(found) == chosen
    assert rule.active(chosen, 6, 3, 0) == found[:6]
    assert found not in (rule.active(chosen, 20, 4, 0), rule.active(chosen, 20, 3, 1))


# -- in proportion to sizes -------------------------------------------------------------------------------------------------
SIZES = (1, 2, 3, 6)
ROUNDS = 6000


def successive(count):
    """Chance of each client to be among `count` that are drawn one after another in proportion to what is left."""
    chances = np.zeros(len(SIZES))
    for drawn in permutations(range(len(SIZES)), count):
        chance, left = 1.0, sum(SIZES)
        for client in drawn:
            chance, left = chance * SIZES[client] / left, left - SIZES[client]
        chances[list(drawn)] += chance
    return chances


@pytest.mark.parametrize("count", [1, 2, 3])
def test_size_weighted_draws_in_proportion_without_replacement(count):
    sampler, counts = SizeWeighted(SIZES), np.zeros(len(SIZES))
    for round in range(ROUNDS):
        found = sampler.sample(round, 4, count, seed=0)
        assert len(set(found)) == count
        assert found == sorted(found)
        counts[found] += 1
    expected = successive(count)
    if count == 1:
        assert expected == pytest.approx(np.array(SIZES) / 12)
    assert (abs(counts / ROUNDS - expected) < 4.5 * (expected * (1 - expected) / ROUNDS) ** 0.5).all()


def test_size_weighted_is_addressed_and_takes_its_sizes_from_the_data():
    partition = Partition.of(list(torch.arange(12).split(SIZES)))
    sampler = SizeWeighted().bind(partition)
    assert sampler == SizeWeighted(SIZES)
    assert SizeWeighted((4, 3, 2, 1)).bind(partition) == SizeWeighted((4, 3, 2, 1))
    rounds = [sampler.sample(t, 4, 2, seed=0) for t in range(50)]
    assert rounds == [sampler.sample(t, 4, 2, seed=0) for t in range(50)]
    assert rounds != [sampler.sample(t, 4, 2, seed=1) for t in range(50)]
    assert all(type(client) is int for client in rounds[0])
    assert sampler.sample(0, 4, 4, seed=0) == [0, 1, 2, 3]


def test_the_trainer_binds_the_sampler_to_its_data():
    """Of a client with nearly all examples and three with one each, the first takes part in every round."""
    owned = Partition.of(list(torch.arange(10**6 + 3).split([1, 1, 10**6, 1])))
    data = TensorData(
        Examples(torch.zeros(10**6 + 3, 1), torch.zeros(10**6 + 3, dtype=torch.int64)),
        owned,
        batching=Batching(steps=1),
    )
    sampler, seen = SizeWeighted(), []

    class Draws(FedAvg):
        def on_client_end(self, local, client):
            seen.append(int(client.num_examples))
            return super().on_client_end(local, client)

    trainer = FederatedTrainer(5, 1, sampler=sampler, callbacks=[], logger=False, evaluate_every=0)
    trainer.fit(Draws(weighting="uniform"), Classification(MLP(1, 2, (2,))), data)
    assert seen[1:] == [10**6] * 5  # the first is the trial's before the first round
    assert trainer.sampler is sampler
    assert sampler.sizes is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SizeWeighted((1, 0)), r"positive number for each client, but is \(1, 0\)"),
        (lambda: SizeWeighted(()), "positive number for each client"),
        (lambda: SizeWeighted().sample(0, 4, 2, 0), "must be those of the 4 clients, but is None"),
        (lambda: SizeWeighted((1, 2)).check(4, 2), "must be those of the 4 clients, but is 2 of them"),
        (lambda: SizeWeighted(SIZES).sample(0, 4, 5, 0), "between 1 and the 4 that there are, but are 5"),
    ],
)
def test_sizes_that_cannot_be_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


# -- what samplers of one's own answer ------------------------------------------------------------------------------------
class Answers(ClientSampler):
    """Gives the same answer in every round."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, round, num_clients, count, seed):
        return self.answer


def participation(sampler, count=3, stragglers=None):
    data = TensorData(Examples(torch.randn(10, 2), torch.zeros(10).long()), Partition.of_sizes(torch.full((5,), 2)))
    data.setup()
    return Participation(data, count, sampler, stragglers)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ([], r"gives \[\] in round 7, which is nobody; name one client at least"),
        ([1, 1], r"gives \[1, 1\] in round 7, client 1 twice; draw without replacement"),
        ([0, 5], r"gives \[0, 5\] in round 7, but there is no client 5; draw from `range\(num_clients\)`"),
        ([-1], "but there is no client -1"),
        ([0, 1, 2, 3], "which are 4; name 3 at most, or set `any_count = True`"),
        ([0.0, 1.0], "which is no list of whole numbers; return a list of client ids"),
        ([True, False, True], "no list of whole numbers"),
        (np.array([True, False]), "no list of whole numbers"),
        (np.array([0.0, 1.0]), "no list of whole numbers"),
        (np.array([[0, 1]]), "no list of whole numbers"),
        (torch.tensor(1), "no list of whole numbers"),
        (torch.tensor([2, 2]), "client 2 twice"),
        (np.array([], dtype=np.int64), "which is nobody"),
        (None, "no list of whole numbers"),
        (2, "no list of whole numbers"),
        ("01", "no list of whole numbers"),
        ({0, 1}, "no list of whole numbers"),
        ((client for client in range(2)), "no list of whole numbers"),
    ],
)
def test_an_answer_that_names_clients_wrongly_is_refused(answer, fault):
    with pytest.raises(
        ConfigurationError, match=r"`Answers.sample` must name at most 3 of the clients 0…4, .*" + fault
    ):
        participation(Answers(answer)).chosen(7)


@pytest.mark.parametrize(
    "answer",
    [[4, 0], (4, 0), np.array([4, 0]), torch.tensor([4, 0], dtype=torch.int32), list(np.array([4, 0]))],
    ids=repr,
)
def test_fewer_clients_than_asked_for_in_any_list_are_taken_in_their_order(answer):
    found = participation(Answers(answer)).chosen(0)
    assert found == [4, 0]
    assert all(type(client) is int for client in found)


def test_a_schedule_may_name_more_clients_than_asked_for():
    assert participation(FixedSchedule(((4, 3, 2, 1, 0),)), count=1).chosen(0) == [4, 3, 2, 1, 0]


def test_a_wrong_answer_is_refused_before_anything_is_trained():
    data = TensorData(Examples(torch.randn(10, 2), torch.zeros(10).long()), Partition.of_sizes(torch.full((5,), 2)))
    trainer = FederatedTrainer(2, 3, callbacks=[], logger=False, sampler=Answers([0, 0, 1]))
    with pytest.raises(ConfigurationError, match="client 0 twice"):
        trainer.fit(FedAvg(), Classification(MLP(2, 2)), data)
    assert trainer.round == 0


@pytest.mark.parametrize(
    ("active", "fault"),
    [
        ([1, 1], "client 1 twice"),
        ([], "which is nobody"),
        ([0, 1, 2], "which are 3; name 2 at most"),
        ([9], "there is no client 9"),
        ([3], r"that were chosen for round 0, \[0, 1, 2\], but gives \[3\]; pick from its argument `chosen`"),
    ],
)
def test_a_rule_of_stragglers_must_name_the_active_clients_among_the_chosen(active, fault):
    class Named(Stragglers):
        def active(self, chosen, count, round, seed):
            return active

    with pytest.raises(ConfigurationError, match="`Named.active` must name .*" + fault):
        participation(Answers([0, 1, 2]), stragglers=Named(0.4)).work(0)


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (Work(()), "`Lazy.work` must name some of the clients 0…4, each once, but gives .* which is nobody"),
        (Work((1, 1)), "client 1 twice"),
        (Work((0, 7)), "there is no client 7"),
        (
            Work((0, 1), {2: 1}),
            "must be a whole number from 1 to what is asked of the client, but is 1 for client 2 in round 0, of whom 0 are",
        ),
        (Work((0, 1), {1: 0}), "but is 0 for client 1"),
        (Work((0, 1), {1: 1.5}), "but is 1.5 for client 1"),
        (Work((0, 1), {1: 7}), "but is 7 for client 1 in round 0, of whom 1 are asked"),
        (
            Work((0, 4)),
            r"clients that were chosen for round 0, \[0, 1, 2\], but gives some to 4; pick from its argument",
        ),
        (Work((0, 1), {}, 9), "must count some of the 3 clients that were chosen for round 0, but is 9"),
        (Work((0, 1), [1, 1]), "must give the `Work` of a round, but gives"),
        ([0, 1], r"must give the `Work` of a round, but gives \[0, 1\] in round 0"),
    ],
)
def test_a_rule_of_stragglers_gives_work_that_clients_can_do(work, fault):
    class Lazy(Stragglers):
        def work(self, chosen, round, participation):
            return work

    with pytest.raises(ConfigurationError, match=fault):
        participation(Answers([0, 1, 2]), stragglers=Lazy(0.5)).work(0)


def rows(*batches):
    return Schedule(torch.tensor(batches), None)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, r"give a list with the schedule of each of 2 clients in round 3, but have None"),
        ([rows([0, 1])], "give a list with the schedule of each of 2 clients"),
        ([rows([0, 1]), rows([2, 3], [2, 3])], r"for client 1 in round 3, but have an index of .* \[2, 2\]"),
        ([rows([0, 1]), rows([-1, -1])], "for client 1 in round 3, but have no example in batch 0"),
        ([rows([0, 1]), rows([2, 1])], "for client 1 in round 3, but have an example that the client does not own"),
        ([rows([0.0, 1.0]), rows([2, 3])], "for client 0 in round 3, but have an index of torch.float32"),
        ([torch.tensor([[0, 1]]), rows([2, 3])], "for client 0 in round 3, but have .*; use `fedlightning.data.Schedule`"),
    ],
)  # fmt: skip
def test_a_batching_policy_gives_batches_that_clients_can_train_on(given, fault):
    class Mine(BatchingPolicy):
        def bind(self, participation):
            return lambda clients, num_steps, round: given

    data = participation(UniformSampling()).data
    bound = Participation(data, 2, batching_policy=Mine())
    with pytest.raises(ConfigurationError, match="The batches of Mine must .*" + fault):
        bound.batches([0, 1], [1, 1], 3)


def test_a_batching_policy_binds_to_a_function():
    class Mine(BatchingPolicy):
        def bind(self, participation):
            return 5

    with pytest.raises(
        ConfigurationError, match=r"`bind` of Mine must give a function of \(clients, num_steps, round\)"
    ):
        Participation(participation(UniformSampling()).data, 2, batching_policy=Mine())


def test_a_hundred_thousand_clients_are_looked_at_in_no_time():
    answer, start = list(range(100_000)), time.process_time()
    assert named_clients(answer, "S.sample", 0, 100_000, 100_000) == answer
    assert time.process_time() - start < 0.5
