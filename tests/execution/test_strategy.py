"""Slots: names, rules, order, retirement and errors."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch
from small_runs import fit, quiet_trainer
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Classification,
    ClientError,
    ConfigurationError,
    Examples,
    FedAvg,
    Partition,
    SlotStrategy,
    TensorData,
)
from fedlightning import _interpreter as interpreter
from fedlightning._interpreter import gil_enabled
from fedlightning.execution import auto, pool, slots
from fedlightning.execution import strategy as strategy_module
from fedlightning.execution.auto import AutoRules, step_flops
from fedlightning.execution.model import Replica
from fedlightning.execution.numerics import Numerics
from fedlightning.execution.pool import WorkerPool
from fedlightning.execution.slots import Slot, Worker, cpu_count, make_workers
from fedlightning.layout import Layout
from fedlightning.testing import Quadratics

EYE = torch.eye(2)


ORIGIN = Quadratics.task([0.0, 0.0])


def quadratics(clients: int) -> Quadratics:
    """So many clients of two examples."""
    return Quadratics([EYE] * clients, [EYE[0]] * clients, [2] * clients)


def worker(number: int) -> Worker:
    data = quadratics(1)
    data.setup()
    return Worker(Slot("cpu", 0, number), Replica(ORIGIN, Layout.of(ORIGIN), torch.device("cpu")), data, data.train, 1)


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
    strategy = fit(FedAvg(), ORIGIN, quadratics(2), 1, slots=wish).strategy
    assert len(strategy.slots) == count
    assert f"({1} thread each)" in strategy.describe()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rule for a CPU")
def test_auto_takes_every_core_without_the_gil_and_one_with_it() -> None:
    strategy = fit(FedAvg(), ORIGIN, quadratics(64), 1, slots="auto").strategy
    assert len(strategy.slots) == (1 if gil_enabled() else min(64, cpu_count()))
    assert strategy.execution.cohort_size == 32
    assert ("GIL on" in strategy.describe()) == gil_enabled()


def images(batch_size: int | None) -> TensorData:
    """Four clients of 60 images."""
    examples = Examples(torch.zeros(240, 3, 8, 8), torch.zeros(240, dtype=torch.int64))
    return TensorData(examples, Partition.of(torch.arange(240).split(60)), batching=Batching(batch_size))


def network(*layers: nn.Module) -> Classification:
    """A convolution and a product; of an image 31,104 and 5,760 operations."""
    return Classification(nn.Sequential(nn.Conv2d(3, 16, 3), *layers, nn.Flatten(), nn.Linear(576, 5)), 5)


@pytest.mark.parametrize(("batch_size", "batch"), [(10, 10), (None, 60), (100, 60)])
def test_the_operations_of_a_step_are_counted_and_nothing_is_computed(batch_size: int | None, batch: int) -> None:
    data, model = images(batch_size), network(nn.BatchNorm2d(16), nn.Dropout(0.5))
    data.setup()
    before, drawn = [tensor.clone() for tensor in model.state_dict().values()], torch.get_rng_state()
    # twice for the convolution, whose inputs need no gradient, and three times for the product
    assert step_flops(model, data) == batch * (2 * 31_104 + 3 * 5_760)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rule for a CPU")
@pytest.mark.parametrize(("batch_size", "cores", "slots"), [(1, 8, 1), (60, 8, 3), (60, 2, 2)])
def test_auto_under_the_gil_takes_slots_by_the_operations_of_a_step(
    batch_size: int, cores: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "gil_enabled", lambda: True)
    monkeypatch.setattr(auto, "cpu_count", lambda: cores)
    rules = AutoRules(flops_per_slot=2_000_000)  # a step of 60 has 4.8 million
    trainer = fit(FedAvg(), network(), images(batch_size), 1, slots="auto", rules=rules)
    assert len(trainer.strategy.slots) == slots


def by_item(inputs: Tensor) -> Tensor:
    return inputs[:, :5] * (inputs.sum().item() >= 0)


def by_numpy(inputs: Tensor) -> Tensor:
    return inputs[:, :5] + torch.from_numpy(inputs.detach().numpy()[:, :5])


@pytest.mark.parametrize("forward", [by_item, by_numpy])
def test_a_model_that_must_see_values_takes_one_slot_under_the_gil(forward: Callable[[Tensor], Tensor]) -> None:
    class Picky(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(forward(inputs))

    data = TensorData(Examples(torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)), Partition.of([torch.arange(4)]))
    model = Classification(Picky(5, 5), 5)
    data.setup()
    assert step_flops(model, data) == 0
    assert len(fit(FedAvg(), model, data, 1, slots="auto").strategy.slots) == 1


def test_results_come_in_the_order_of_the_work_whoever_finishes_first() -> None:
    threads: WorkerPool[int] = WorkerPool([worker(0), worker(1), worker(2)])

    def job(i: int) -> Callable[[Worker], int]:
        def work(_: Worker) -> int:
            time.sleep(0.02 * (i % 3 == 0))
            return i

        return work

    assert list(threads.map([job(i) for i in range(12)])) == list(range(12))
    threads.close()


def test_every_slot_has_its_own_thread_and_its_own_thread_count() -> None:
    threads: WorkerPool[tuple[str, int]] = WorkerPool([worker(0), worker(1)])
    barrier = threading.Barrier(2, timeout=10)

    def work(_: Worker) -> tuple[str, int]:
        barrier.wait()
        return threading.current_thread().name, torch.get_num_threads()

    assert sorted(threads.map([work, work])) == [("slot cpu/0", 1), ("slot cpu/1", 1)]
    threads.close()


@pytest.mark.parametrize(("cores", "work", "idle"), [(1, 2, 0), (2, 2, 1), (2, 1, 1), (3, 2, 2), (3, 1, 1)])
def test_a_core_is_left_to_the_trainers_thread_by_slots_that_have_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, cores: int, work: int, idle: int
) -> None:
    monkeypatch.setattr(pool, "cpu_count", lambda: cores)
    threads: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    began, resting = threading.Barrier(work, timeout=10), list[str]()

    def train(_: Worker) -> None:
        began.wait()

    for _ in range(3):
        list(threads.map([train] * work, lambda own: resting.append(str(own.slot))))
    threads.close()
    assert len(resting) == 3 * idle


def test_what_goes_wrong_in_a_slot_that_has_nothing_to_do_stops_nobody() -> None:
    threads: WorkerPool[int] = WorkerPool([worker(0)])

    def broken(_: Worker) -> None:
        raise KeyError("broken")

    assert list(threads.map([lambda _: 1], broken)) == [1]
    assert list(threads.map([lambda _: 2])) == [2]
    threads.close()


def test_a_slot_out_of_memory_is_retired_and_its_work_is_done_again_elsewhere() -> None:
    threads: WorkerPool[str] = WorkerPool([worker(0), worker(1)])

    def work(own: Worker) -> str:
        if own.slot.number == 0:
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(0.005)
        return str(own.slot)

    assert list(threads.map([work] * 6)) == ["cpu/1"] * 6
    assert threads.retired == ["cpu/0"]
    threads.close()


def test_no_slot_left_is_an_error() -> None:
    def work(_: Worker) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    threads: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    with pytest.raises(ClientError, match=r"all ran out of it .*Use fewer slots on a device"):
        list(threads.map([work] * 3))
    threads.close()


def test_an_error_in_a_slot_reaches_the_caller_and_the_others_stop() -> None:
    began: list[int] = []

    def job(i: int) -> Callable[[Worker], None]:
        def work(_: Worker) -> None:
            began.append(i)
            if i == 1:
                raise KeyError("broken")
            time.sleep(0.01)

        return work

    threads: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    with pytest.raises(KeyError, match="broken"):
        list(threads.map([job(i) for i in range(200)]))
    threads.close()
    assert len(began) < 100
    assert no_slot_is_left()


# -- a slot that dies -------------------------------------------------------------------------------------------------
class Odd(BaseException):
    """Nothing that `except Exception` takes."""


def no_slot_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("slot ")]


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError("broken"), Odd("broken"), SystemExit("broken")])
@pytest.mark.parametrize("where", ["prepare", "enter", "forget", "release"])
def test_a_slot_that_dies_ends_the_run_with_its_error(where: str, error: BaseException) -> None:
    """Set up, on its way to its stream, or while it gives back what it holds; another slot is still there."""

    def fails(*_: object) -> None:
        raise error

    class Enters:
        __enter__, __exit__ = fails, fails

    dying = [worker(0), worker(1)]
    for own in dying:
        if where in ("prepare", "release"):
            setattr(own, where, fails)
        elif where == "enter":
            own.prepare = Enters  # type: ignore[assignment, method-assign]

    def work(_: Worker) -> None:
        raise torch.OutOfMemoryError("out of memory")

    threads: WorkerPool[None] = WorkerPool(dying, fails if where == "forget" else lambda slot: None)
    with pytest.raises(ClientError, match=rf"Slot cpu/[01] must work .*\({type(error).__name__}: broken\)") as caught:
        list(threads.map([work] * 3))
    assert caught.value.__cause__ is error
    threads.close()
    assert no_slot_is_left()


def test_whoever_waits_for_a_slot_while_it_dies_gets_its_error_too() -> None:
    """The error comes while the calling thread waits; the work that was begun elsewhere does not hold it up."""
    own, other = worker(0), worker(1)
    release, begun = threading.Event(), threading.Event()

    def forget(slot: str) -> None:
        raise KeyError(slot)

    def work(at: Worker) -> str:
        if at.slot.number == 1:
            begun.set()
            release.wait(10)
            return "late"
        begun.wait(10)
        raise torch.OutOfMemoryError("out of memory")

    threads: WorkerPool[str] = WorkerPool([own, other], forget)
    with pytest.raises(ClientError, match=r"Slot cpu/0 must work .*\(KeyError: 'cpu/0'\)"):
        list(threads.map([work] * 2))
    release.set()
    threads.close()


class UnspeakableError(Exception):
    """Cannot even be written down, as where memory is wanting."""

    def __str__(self) -> str:
        raise MemoryError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_without_a_word_is_noticed() -> None:
    def dies() -> None:
        raise UnspeakableError

    own = worker(0)
    own.prepare = dies  # type: ignore[assignment, method-assign]
    threads: WorkerPool[int] = WorkerPool([own, worker(1)], patience=0.01)

    def waits(at: Worker) -> int:
        time.sleep(0.2)
        return 1

    with pytest.raises(ClientError, match=r"Slot cpu/0 must work until the run ends, .*\(of what, it could not say\)"):
        list(threads.map([waits] * 8))
    threads.close()


def test_slots_that_all_retired_in_their_idle_time_are_an_error_and_no_endless_wait() -> None:
    threads: WorkerPool[int] = WorkerPool([worker(0)])

    def idle(_: Worker) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    assert list(threads.map([lambda _: 1], idle)) == [1]
    with pytest.raises(ClientError, match=r"all ran out of it \(cpu/0\)"):
        list(threads.map([lambda _: 2]))
    threads.close()


def test_work_behind_a_window_is_not_begun() -> None:
    threads: WorkerPool[int] = WorkerPool([worker(0), worker(1)])
    begun: list[int] = []

    def job(i: int) -> Callable[[Worker], int]:
        return lambda _: begun.append(i) or i  # type: ignore[func-returns-value]

    results = threads.map([job(i) for i in range(20)], window=3)
    for i in range(20):
        assert next(results) == i
        time.sleep(0.005)
        assert max(begun) <= i + 2
    assert list(results) == []
    threads.close()


# -- threads that cannot be started -----------------------------------------------------------------------------------
class Starts:
    """Lets so many threads start, and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left, usual = count, threading.Thread.start
        starts = self

        def start(thread: threading.Thread) -> None:
            starts.left -= 1
            if starts.left < 0:
                raise RuntimeError("can't start new thread")
            usual(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.parametrize(("count", "match"), [(2, r"a thread for each of the 3 slots, but after 2 it says"), (8, r"14 threads beside those of the slots, but after 5 it says")])  # fmt: skip
def test_threads_that_cannot_be_started_are_said_in_one_line_and_none_is_left(
    count: int, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third slot's own thread; or the last of those that torch would start for three slots of three threads."""
    Starts(monkeypatch, count)
    before, cudnn = threading.active_count(), torch.backends.cudnn
    switches = cudnn.deterministic, cudnn.benchmark
    monkeypatch.setattr(strategy_module, "Numerics", lambda precision, on_gpu: Numerics(precision, True))
    trainer = quiet_trainer(1, slots=3, threads_per_slot=3)
    with pytest.raises(
        ConfigurationError, match=f"^This machine must start {match}: can't start new thread; use [^\n]*$"
    ):
        trainer.fit(FedAvg(), ORIGIN, quadratics(2))
    assert threading.active_count() == before
    assert (cudnn.deterministic, cudnn.benchmark) == switches
    monkeypatch.undo()
    assert trainer.fit(FedAvg(), ORIGIN, quadratics(2)).round == 1


@pytest.mark.parametrize(
    ("cores", "given", "slots_", "threads"),
    [(2, 8, 8, 64), (64, "16", 16, 65), (2, "auto", 1, 257), (1, "cpu/0,cpu/1", 2, 129), (8, 10**6, 10**6, 1)],
)
def test_more_threads_than_any_use_are_refused(
    cores: int, given: int | str, slots_: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "cpu_count", lambda: cores)
    word = "slot" if slots_ == 1 else "slots"
    said = rf"at most \S+ threads together on {cores} cores, but {slots_:,} {word} of `threads_per_slot={threads}` have"
    with pytest.raises(ConfigurationError, match=said):
        SlotStrategy(given, threads_per_slot=threads)  # type: ignore[arg-type]


def test_auto_takes_no_more_slots_than_there_may_be_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" takes is known before the first round."""
    monkeypatch.setattr(slots, "cpu_count", lambda: 2)
    monkeypatch.setattr(auto, "cpu_count", lambda: 16)
    monkeypatch.setattr(interpreter, "gil_enabled", lambda: False)
    with pytest.raises(ConfigurationError, match="but 16 slots of `threads_per_slot=17` have 272"):
        fit(FedAvg(), ORIGIN, quadratics(16), slots="auto", threads_per_slot=17)


class Switches:
    """As cuDNN's, of which one cannot be switched off."""

    deterministic = False

    @property
    def benchmark(self) -> bool:
        return True

    @benchmark.setter
    def benchmark(self, value: bool) -> None:
        if not value:
            raise RuntimeError("no such switch")


def test_switches_that_are_set_by_half_are_put_back() -> None:
    switches, set_by_half = Switches(), list[bool]()

    class Half(Numerics):
        def __exit__(self, *_: object) -> None:
            set_by_half.append(switches.deterministic)
            super().__exit__()

    with pytest.raises(RuntimeError, match="no such switch"), Half("32-true", True, switches):
        pass
    assert set_by_half == [True]
    assert not switches.deterministic


def test_a_slot_without_room_for_its_copy_of_the_model_is_named() -> None:
    def make(slot: Slot) -> Worker:
        if slot.number == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore")
        return worker(slot.number)

    with pytest.raises(
        ConfigurationError, match=r"^Slot cpu/2 must have a copy .* 2 slots have theirs .*; use fewer `slots`\.$"
    ):
        make_workers([Slot("cpu", 0, number) for number in range(4)], make)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_whoever_waits_for_a_slot(number: signal.Signals) -> None:
    """While the trainer's thread waits for a result, its handler runs at once."""
    threads: WorkerPool[None] = WorkerPool([worker(0)])

    def handle(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(number, handle)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        began = time.perf_counter()
        with pytest.raises(InterruptedError):
            list(threads.map([lambda _: time.sleep(0.5)]))
        assert time.perf_counter() - began < 0.4
    finally:
        signal.signal(number, before)
    threads.close()
