"""Plans: the same whoever makes them and when, and not too many ahead."""

from dataclasses import replace

import pytest
import torch
from unequal_clients import data, task

from fedlightning import FedAvg, FederatedTrainer, FedMethod, SlotStrategy
from fedlightning import _interpreter as interpreter
from fedlightning.data import Schedule, TensorData
from fedlightning.errors import ConfigurationError
from fedlightning.execution import prefetch as planning
from fedlightning.execution.grid import Padding
from fedlightning.execution.model import Replica, flatten_buffers, persistent_buffers
from fedlightning.execution.plan import CohortPlan, Drawn, RoundJob, draw_cohort, plan_cohort
from fedlightning.execution.prefetch import Ahead, Plans
from fedlightning.execution.runners.loop import LoopExecutor
from fedlightning.execution.slots import Slot, Worker
from fedlightning.layout import Layout
from fedlightning.method import Round, visible
from fedlightning.methods import FedDane, Scaffold
from fedlightning.participation import Stragglers
from fedlightning.participation.stragglers import Work
from fedlightning.server.client_memory import ClientMemory

CPU, COHORTS = torch.device("cpu"), [(1,), (3,), (5,), (6,), (2,), (0,), (4,)]
CLIENTS = tuple(client for cohort in COHORTS for client in cohort)
REPLICA = Replica(task(), Layout.of(task()), CPU)


def job_of_a_round() -> tuple[RoundJob, LoopExecutor]:
    clients, model, method = data(), task(), FedAvg()
    clients.setup()
    layout = Layout.of(model)
    server = visible(method, method.configure_server(layout.read(model)))
    buffers = flatten_buffers(persistent_buffers(model).values(), CPU)
    job = RoundJob(
        method, Round(0, 7, 7, 0.05), 0, layout, server, ClientMemory(), buffers, clients, lambda _: clients.train, lambda: False,
        work=Work(CLIENTS),
    )  # fmt: skip
    return job, LoopExecutor(Replica(model, layout, CPU))


def plan_for(executor: LoopExecutor, job: RoundJob, clients: tuple[int, ...], device: torch.device) -> CohortPlan:
    return plan_cohort(job, clients, draw_cohort(job, clients, executor.padding(len(clients))), device)


def equal(one: CohortPlan, other: CohortPlan) -> bool:
    numbers = zip(one.numbers.values(), other.numbers.values(), strict=True)
    pairs = [
        (one.ends, other.ends),
        *zip(one.steps[:4], other.steps[:4], strict=True),
        *numbers,
    ]
    return one.num_steps == other.num_steps and all(torch.equal(a, b) for a, b in pairs)


def draws_noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...], bool]]:
    """The round, the clients and the pass of each draw from now on."""
    made: list[tuple[int, tuple[int, ...], bool]] = []

    def noted(job: RoundJob, clients: tuple[int, ...], padding: Padding) -> Drawn:
        made.append((job.round.index, clients, job.gradient_pass))
        return draw_cohort(job, clients, padding)

    monkeypatch.setattr(planning, "draw_cohort", noted)
    return made


def plans_of(job: RoundJob, slots: int = 1) -> Plans:
    return Plans(job, COHORTS, [(position,) for position in range(len(COHORTS))], slots)


def test_a_plan_does_not_depend_on_who_made_it_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    expected = [plan_for(executor, job, cohort, CPU) for cohort in COHORTS]
    made = draws_noted(monkeypatch)
    plans = plans_of(job, slots=2)
    taken = {position: plans.take(position, executor, CPU) for position in (0, 1, 2, 4, 3, 5, 6)}
    assert all(equal(taken[position], plan) for position, plan in enumerate(expected))
    assert made == [(0, COHORTS[i], False) for i in (0, 2, 4, 6, 1, 3, 5)]
    again = plans.take(2, executor, CPU)  # its slot ran out of memory, and another does the work again
    assert equal(again, expected[2])


def test_only_the_slot_that_takes_a_plan_moves_it_to_its_device() -> None:
    job, executor = job_of_a_round()
    meta = torch.device("meta")
    plans = plans_of(job)
    assert {tensor.device for tensor in plans.take(0, executor, meta).steps[:4]} == {meta}
    assert {tensor.device for tensor in plans.take(1, executor, CPU).steps[:4]} == {CPU}


def test_plans_ahead_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    first = plan_for(executor, job, COHORTS[0], CPU).steps.mask.numel()
    made = draws_noted(monkeypatch)
    monkeypatch.setattr(planning, "_ENTRIES", first)
    plans_of(job).take(0, executor, CPU)
    assert made == [(0, COHORTS[0], False), (0, COHORTS[1], False)]
    made.clear()
    monkeypatch.setattr(planning, "_ENTRIES", 10**6)
    monkeypatch.setattr(planning, "_AHEAD", 3)
    plans_of(job).take(0, executor, CPU)
    assert made == [(0, cohort, False) for cohort in COHORTS[:3]]


def test_what_was_drawn_before_the_round_is_taken_over_if_it_is_that_round(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    expected = [plan_for(executor, job, cohort, CPU) for cohort in COHORTS]
    ahead, worker = Ahead(lambda: plans_of(job), lambda worker, job: executor), Worker(Slot("cpu", 0, 0), REPLICA, 1)
    ahead(worker)
    before = ahead.close()
    made = draws_noted(monkeypatch)
    ahead(worker)  # too late
    assert before
    begun = replace(job, server=job.server.replace(x=job.server.x + 1))
    plans = before.of(begun, CLIENTS)
    assert plans
    assert plans.job is begun
    assert all(equal(plans.take(i, executor, CPU), plan) for i, plan in enumerate(expected))
    assert made == []


def test_what_was_drawn_for_another_round_is_not_taken_over() -> None:
    job, _ = job_of_a_round()
    plans = plans_of(job)
    assert plans.of(job, CLIENTS)
    assert plans.of(replace(job, round=replace(job.round, index=1)), CLIENTS) is None
    assert plans.of(replace(job, gradient_pass=True), CLIENTS) is None
    assert plans.of(replace(job, work=replace(job.work, steps={1: 1})), CLIENTS) is None
    assert plans.of(job, CLIENTS[1:]) is None


def test_what_is_wrong_with_the_next_round_is_raised_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    worker = Worker(Slot("cpu", 0, 0), REPLICA, 1)

    def begin() -> Plans:
        raise ConfigurationError("no such round")

    ahead = Ahead(begin, lambda worker, job: executor)
    ahead(worker)
    assert ahead.close() is None

    def fails(job: RoundJob, clients: tuple[int, ...], padding: Padding) -> Drawn:
        raise ConfigurationError(f"no batches for {clients}")

    monkeypatch.setattr(planning, "draw_cohort", fails)
    ahead = Ahead(lambda: plans_of(job), lambda worker, job: executor)
    ahead(worker)
    before = ahead.close()
    assert before
    with pytest.raises(ConfigurationError, match="no batches for"):
        before.take(0, executor, CPU)


@pytest.mark.parametrize("method", [FedAvg(lr=0.05), Scaffold(lr=0.05), FedDane(lr=0.05, mu=0.1)])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_looking_ahead_changes_no_bit_and_draws_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, method: FedMethod, fraction: float
) -> None:
    states, passes = [], 1 if method.gradient_pass() == "none" else 2
    for lock in (True, False):
        monkeypatch.setattr(interpreter, "gil_enabled", lambda lock=lock: lock)
        made = draws_noted(monkeypatch)
        trainer = FederatedTrainer(
            5, 4, SlotStrategy(2, cohort_size=2), [], logger=False, evaluate_every=2, stragglers=Stragglers(fraction)
        )
        states.append(trainer.fit(method, task(), data()))
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
    trainer = FederatedTrainer(1, 4, SlotStrategy(1, cohort_size=cohort_size), [], logger=False, evaluate_every=0)
    told = r"a batch for each of the (\d+) local steps of client \d in round 0, but that of Short gives \d+; return \[\1, B\]"
    with pytest.raises(ConfigurationError, match=told):
        trainer.fit(FedAvg(lr=0.05), task(), data(kind=Short))
