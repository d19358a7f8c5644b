"""Plans: the same whoever makes them and when, and not too many ahead."""

import pytest
import torch
from unequal_clients import data, task

from fedlightning import FedAvg
from fedlightning.engine import planning
from fedlightning.engine.executors import LoopExecutor
from fedlightning.engine.job import CohortPlan, RoundJob
from fedlightning.engine.planning import Plans, plan_for
from fedlightning.engine.replica import Replica, flatten_buffers, persistent_buffers
from fedlightning.memory import ClientMemory
from fedlightning.method import Round, visible
from fedlightning.vector import Layout

CPU, COHORTS = torch.device("cpu"), [(1,), (3,), (5,), (6,), (2,), (0,), (4,)]


def job_of_a_round() -> tuple[RoundJob, LoopExecutor]:
    clients, model, method = data(), task(), FedAvg()
    clients.setup()
    layout = Layout.of(model)
    server = visible(method, method.configure_server(layout.read(model)))
    buffers = flatten_buffers(persistent_buffers(model), CPU)
    job = RoundJob(
        method, Round(0, 7, 7, 0.05), 0, layout, server, ClientMemory(), buffers, clients, lambda _: clients.train, lambda: False
    )  # fmt: skip
    return job, LoopExecutor(Replica(model, layout, CPU))


def equal(one: CohortPlan, other: CohortPlan) -> bool:
    numbers = zip(one.numbers.values(), other.numbers.values(), strict=True)
    pairs = [
        (one.ends, other.ends),
        *zip(one.steps[:4], other.steps[:4], strict=True),
        *numbers,
    ]
    return one.num_steps == other.num_steps and all(torch.equal(a, b) for a, b in pairs)


def test_a_plan_does_not_depend_on_who_made_it_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    expected = [plan_for(executor, job, cohort, CPU) for cohort in COHORTS]
    made: list[tuple[int, ...]] = []

    def noted(executor: LoopExecutor, job: RoundJob, clients: tuple[int, ...], device: torch.device) -> CohortPlan:
        made.append(clients)
        return plan_for(executor, job, clients, device)

    monkeypatch.setattr(planning, "plan_for", noted)
    plans = Plans(job, COHORTS, slots=2)
    taken = {position: plans.take(position, executor, CPU) for position in (0, 1, 2, 4, 3, 5, 6)}
    assert all(equal(taken[position], plan) for position, plan in enumerate(expected))
    assert made == [COHORTS[i] for i in (0, 2, 4, 6, 1, 3, 5)]
    again = plans.take(2, executor, CPU)  # its slot ran out of memory, and another does the work again
    assert equal(again, expected[2])


def test_on_a_gpu_each_slot_plans_on_its_own_stream() -> None:
    job, executor = job_of_a_round()
    plans = Plans(job, COHORTS, slots=1)
    plans.take(0, executor, torch.device("meta"))
    assert not plans._ready


def test_plans_ahead_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    job, executor = job_of_a_round()
    first = plan_for(executor, job, COHORTS[0], CPU).steps.mask.numel()
    monkeypatch.setattr(planning, "_ENTRIES", first)
    plans = Plans(job, COHORTS, slots=1)
    plans.take(0, executor, CPU)
    assert [position for position, _ in plans._ready] == [1]
    monkeypatch.setattr(planning, "_ENTRIES", 10**6)
    monkeypatch.setattr(planning, "_AHEAD", 3)
    plans = Plans(job, COHORTS, slots=1)
    plans.take(0, executor, CPU)
    assert [position for position, _ in plans._ready] == [1, 2]
