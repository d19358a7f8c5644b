"""Plans: the same whoever makes them and when, and not too many ahead."""

from dataclasses import replace

import pytest
import torch
from small_runs import fit, small_task, unequal_clients

from fedlightning import FedAvg, FedMethod
from fedlightning import _interpreter as interpreter
from fedlightning.data import Schedule, TensorData
from fedlightning.errors import ConfigurationError
from fedlightning.execution.model import Replica
from fedlightning.execution.plan import CohortPlan, PhasePlan
from fedlightning.execution.prefetch import Ahead, Draws
from fedlightning.execution.slots import Slot, Worker
from fedlightning.execution.step import GRADIENT
from fedlightning.layout import Layout
from fedlightning.methods import FedDane, Scaffold
from fedlightning.participation import Participation, RoundPlan, Stragglers, Work

COHORTS = [(1,), (3,), (5,), (6,), (2,), (0,), (4,)]


def plan_of_a_round() -> PhasePlan:
    clients = unequal_clients()
    clients.setup()
    work = Work(tuple(client for cohort in COHORTS for client in cohort))
    return PhasePlan(RoundPlan(Participation(clients), 0, work))


def worker(plan: PhasePlan) -> Worker:
    replica = Replica(small_task(), Layout.of(small_task()), torch.device("cpu"))
    return Worker(Slot("cpu", 0, 0), replica, plan.data, plan.data.train, 1)


def equal(one: CohortPlan, other: CohortPlan) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("index", "mask", "keys", "ends")]
    return one.num_steps == other.num_steps and all(torch.equal(a, b) for a, b in pairs)


def draws_noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...], str]]:
    """The round, the clients and the phase of each draw from now on."""
    made: list[tuple[int, tuple[int, ...], str]] = []
    usual = PhasePlan.draw

    def noted(plan: PhasePlan, clients: tuple[int, ...]) -> CohortPlan:
        made.append((plan.index, clients, plan.phase.name))
        return usual(plan, clients)

    monkeypatch.setattr(PhasePlan, "draw", noted)
    return made


def draws_of(plan: PhasePlan, slots: int = 1, **limits: int) -> Draws:
    return Draws(plan, COHORTS, [(position,) for position in range(len(COHORTS))], slots, **limits)


def test_a_plan_does_not_depend_on_who_made_it_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of_a_round()
    expected = [plan.draw(cohort) for cohort in COHORTS]
    made = draws_noted(monkeypatch)
    draws = draws_of(plan, slots=2)
    taken = {position: draws.pop(position) for position in (0, 1, 2, 4, 3, 5, 6)}
    assert all(equal(taken[position], each) for position, each in enumerate(expected))
    assert made == [(0, COHORTS[i], "local") for i in (0, 2, 4, 6, 1, 3, 5)]
    again = draws.pop(2)  # its slot ran out of memory, and another does the work again
    assert equal(again, expected[2])


def test_plans_ahead_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of_a_round()
    first = plan.draw(COHORTS[0]).mask.numel()
    made = draws_noted(monkeypatch)
    draws_of(plan, entries=first).pop(0)
    assert made == [(0, COHORTS[0], "local"), (0, COHORTS[1], "local")]
    made.clear()
    draws_of(plan, ahead=3, entries=10**6).pop(0)
    assert made == [(0, cohort, "local") for cohort in COHORTS[:3]]


def test_what_was_drawn_before_the_round_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of_a_round()
    expected = [plan.draw(cohort) for cohort in COHORTS]
    ahead, slot = Ahead(lambda: draws_of(plan)), worker(plan)
    ahead(slot)
    before = ahead.close()
    made = draws_noted(monkeypatch)
    ahead(slot)  # too late
    assert before
    assert all(equal(before.pop(i), each) for i, each in enumerate(expected))
    assert made == []


def test_what_was_drawn_for_another_round_is_not_taken_over() -> None:
    plan = plan_of_a_round()
    work = plan.plan.work
    assert plan.same_draws(PhasePlan(replace(plan.plan, work=replace(work))))
    assert not plan.same_draws(PhasePlan(replace(plan.plan, index=1)))
    assert not plan.same_draws(PhasePlan(plan.plan, GRADIENT))
    assert not plan.same_draws(PhasePlan(replace(plan.plan, work=replace(work, steps={1: 1}))))
    assert not plan.same_draws(PhasePlan(replace(plan.plan, work=replace(work, clients=work.clients[1:]))))


def test_what_is_wrong_with_the_next_round_is_raised_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of_a_round()
    slot = worker(plan)

    def begin() -> Draws:
        raise ConfigurationError("no such round")

    ahead = Ahead(begin)
    ahead(slot)
    assert ahead.close() is None

    def fails(plan: PhasePlan, clients: tuple[int, ...]) -> CohortPlan:
        raise ConfigurationError(f"no batches for {clients}")

    monkeypatch.setattr(PhasePlan, "draw", fails)
    ahead = Ahead(lambda: draws_of(plan))
    ahead(slot)
    before = ahead.close()
    assert before
    with pytest.raises(ConfigurationError, match="no batches for"):
        before.pop(0)


@pytest.mark.parametrize("method", [FedAvg(lr=0.05), Scaffold(lr=0.05), FedDane(lr=0.05, mu=0.1)])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_looking_ahead_changes_no_bit_and_draws_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, method: FedMethod, fraction: float
) -> None:
    states, passes = [], 1 if method.gradient_pass() == "none" else 2
    for lock in (True, False):
        monkeypatch.setattr(interpreter, "gil_enabled", lambda lock=lock: lock)
        with monkeypatch.context() as patch:
            made = draws_noted(patch)
            how = {"clients_per_round": 4, "evaluate_every": 2, "stragglers": Stragglers(fraction)}
            states.append(fit(method, rounds=5, slots=2, runner="vmap", cohort_size=2, **how).state)
        trial, made = made[:passes], made[passes:]  # a step of two clients in each phase, before the first round
        assert len({phase for *_, phase in trial}) == passes
        assert len(made) == len(set(made)) == 5 * 2 * passes
    assert torch.equal(states[0].server.x, states[1].server.x)
    for client in states[0].memory.clients():
        one, other = (state.memory.rows()[client] for state in states)
        assert all(torch.equal(one[name], other[name]) for name in one)


class Short(TensorData):
    """Its batches are too few."""

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        drawn = super().schedule(client, round, seed, num_steps)
        return drawn._replace(index=drawn.index[1:])


@pytest.mark.parametrize("cohort_size", [1, 2])
def test_there_must_be_a_batch_for_each_step(cohort_size: int) -> None:
    told = r"a batch for each of the (\d+) local steps of client \d in round 0, but that of Short gives \d+; return \[\1, B\]"
    with pytest.raises(ConfigurationError, match=told):
        fit(data=unequal_clients(kind=Short), rounds=1, clients_per_round=4, cohort_size=cohort_size)
