"""Slots: names, rules, order, retirement and errors."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from fedlightning import ClientError, ConfigurationError, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.engine.slots import Slot, Worker, WorkerPool, cpu_count
from fedlightning.interpreter import gil_enabled
from fedlightning.testing import Quadratics
from fedlightning.vector import Layout

EYE = torch.eye(2)


def worker(number: int) -> Worker:
    task = Quadratics.task([0.0, 0.0])
    from fedlightning.engine.replica import Replica

    return Worker(Slot("cpu", 0, number), Replica(task, Layout.of(task), torch.device("cpu")), 1)


@pytest.mark.parametrize(
    ("name", "slot"),
    [("cpu", ("cpu", 0, 0)), ("cpu/3", ("cpu", 0, 3)), ("cpu:0/1", ("cpu", 0, 1))],
)
def test_slots_are_parsed_into_a_type(name: str, slot: tuple[str, int, int]) -> None:
    parsed = Slot.parse(name)
    assert parsed == Slot(*slot)
    assert Slot.parse(str(parsed)) == parsed


@pytest.mark.parametrize("name", ["gpu:0", "cuda:x", "cpu:1", "cuda:0/", "", "0/1", "cuda:0/1/2"])
def test_other_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(ConfigurationError, match="must be written like 'cuda:0/1'"):
        Slot.parse(name)


@pytest.mark.skipif(torch.cuda.device_count() > 90, reason="needs a machine with fewer than 90 CUDA devices")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"needs device cuda:90, but this machine has \w+ CUDA devices; use 'auto'"
    ):
        SlotStrategy(["cuda:90/1"])


def test_a_slot_named_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must name each slot once"):
        SlotStrategy("cpu/0,cpu/0")


@pytest.mark.parametrize("arguments", [{"slots": 0}, {"cohort_size": 0}, {"threads_per_slot": 0}, {"slots": "-1"}])
def test_numbers_below_one_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"must be ('auto' or )?at least 1"):
        SlotStrategy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wish", "count"), [(3, 3), ("2", 2), ("cpu/0,cpu/5", 2), (["cpu/1"], 1)])
def test_slots_are_what_was_asked_for(wish: object, count: int) -> None:
    strategy = SlotStrategy(wish)  # type: ignore[arg-type]
    FederatedTrainer(1, strategy=strategy, callbacks=[], logger=False).fit(
        FedAvg(), Quadratics.task([0.0, 0.0]), Quadratics([EYE, EYE], [EYE[0], EYE[1]], [2, 2])
    )
    assert len(strategy.slots) == count
    assert f"({1} thread each)" in strategy.describe()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rule for a CPU")
def test_auto_takes_every_core_without_the_gil_and_one_with_it() -> None:
    strategy = SlotStrategy()
    clients = Quadratics([EYE] * 64, [EYE[0]] * 64, [2] * 64)
    FederatedTrainer(1, strategy=strategy, callbacks=[], logger=False).fit(
        FedAvg(), Quadratics.task([0.0, 0.0]), clients
    )
    assert len(strategy.slots) == (1 if gil_enabled() else min(64, cpu_count()))
    assert strategy.cohort_size == 32
    assert ("GIL on" in strategy.describe()) == gil_enabled()


def test_results_come_in_the_order_of_the_work_whoever_finishes_first() -> None:
    pool: WorkerPool[int] = WorkerPool([worker(0), worker(1), worker(2)])

    def job(i: int) -> Callable[[Worker], int]:
        def work(_: Worker) -> int:
            time.sleep(0.02 * (i % 3 == 0))
            return i

        return work

    assert list(pool.map([job(i) for i in range(12)])) == list(range(12))
    pool.close()


def test_every_slot_has_its_own_thread_and_its_own_thread_count() -> None:
    pool: WorkerPool[tuple[str, int]] = WorkerPool([worker(0), worker(1)])
    barrier = threading.Barrier(2, timeout=10)

    def work(_: Worker) -> tuple[str, int]:
        barrier.wait()
        return threading.current_thread().name, torch.get_num_threads()

    assert sorted(pool.map([work, work])) == [("slot cpu/0", 1), ("slot cpu/1", 1)]
    pool.close()


def test_a_slot_out_of_memory_is_retired_and_its_work_is_done_again_elsewhere() -> None:
    pool: WorkerPool[str] = WorkerPool([worker(0), worker(1)])

    def work(own: Worker) -> str:
        if own.slot.number == 0:
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(0.005)
        return str(own.slot)

    assert list(pool.map([work] * 6)) == ["cpu/1"] * 6
    assert pool.retired == ["cpu/0"]
    pool.close()


def test_no_slot_left_is_an_error() -> None:
    def work(_: Worker) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    pool: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    with pytest.raises(ClientError, match=r"all ran out of it .*Use fewer slots on a device"):
        list(pool.map([work] * 3))
    pool.close()


def test_an_error_in_a_slot_reaches_the_caller_and_the_others_stop() -> None:
    began: list[int] = []

    def job(i: int) -> Callable[[Worker], None]:
        def work(_: Worker) -> None:
            began.append(i)
            if i == 1:
                raise KeyError("broken")
            time.sleep(0.01)

        return work

    pool: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    with pytest.raises(KeyError, match="broken"):
        list(pool.map([job(i) for i in range(200)]))
    pool.close()
    assert len(began) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slot ")]
