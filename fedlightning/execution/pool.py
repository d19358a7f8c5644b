"""The threads of the slots: they take work from one queue, and give results in the order in which the work was given."""

from __future__ import annotations

import ctypes
import itertools
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lightning.pytorch.utilities import rank_zero_info

from fedlightning.errors import ClientError, ConfigurationError, first_line, out_of_memory
from fedlightning.execution.slots import Worker, cpu_count

Result = TypeVar("Result")
Job = Callable[[Worker], Result]
"""What a slot does."""

_IDLE = -1
"""The position of work that nobody waits for."""

_SPARE = 8
"""Threads that torch starts for itself, about, e.g. for backward passes; without room for them it ends the process."""


@dataclass(eq=False)
class _Call:
    """One call of `map`.

    Attributes:
        idle: what a slot does once nothing of it is left to begin.
        waiting: how much of its work no slot has begun.
        resting: slots for which nothing is left.
        done: what comes of its work: a position, and a result or what went wrong.
        given_up: whether nobody waits any more, so that what has not begun need not.
    """

    idle: Job[None] | None
    waiting: int
    resting: int
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = field(default_factory=queue.SimpleQueue)
    given_up: threading.Event = field(default_factory=threading.Event)


_Item = tuple[int, Job[Any], _Call]


class WorkerPool(Generic[Result]):
    """Runs work on whichever slot is free, and gives the results in the order in which the work was given.

    A slot that runs out of memory is retired: it gives back what it holds, and then its work is done again, whole, on
    another. The first other error stops what has not begun and is raised; so is whatever ends a slot's thread.

    Args:
        workers: the slots.
        forget: is given a slot that retires, in its thread, to drop what was kept for it.
        patience: seconds after which whoever waits for a result looks whether there is still someone to give it.

    Raises:
        ConfigurationError: this machine cannot start their threads; none is left behind.
    """

    def __init__(
        self, workers: Sequence[Worker], forget: Callable[[str], None] = lambda slot: None, patience: float = 1.0
    ) -> None:
        self._todo: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        keep_freed_memory()
        self._count, self._forget, self._patience = len(workers), forget, patience
        self._lock = threading.Lock()
        self._workers = list(workers)
        self.retired: list[str] = []
        self._calls: set[_Call] = set()
        self._failure: BaseException | None = None
        self._threads: dict[str, threading.Thread] = {}
        try:
            for worker in workers:
                thread = threading.Thread(target=self._serve, args=(worker,), name=f"slot {worker.slot}", daemon=True)
                _start(
                    thread, f"a thread for each of the {len(workers)} slots", len(self._threads), "use fewer `slots`"
                )
                self._threads[str(worker.slot)] = thread
            _check_room(_SPARE + sum(worker.threads - 1 for worker in workers))
        except BaseException:
            self.close()
            raise

    def map(
        self, work: Sequence[Job[Result]], idle: Job[None] | None = None, window: int | None = None
    ) -> Generator[Result, None, None]:
        """Do the work; yield each result as soon as it and all before it are there. Several calls may be under way.

        Args:
            work: what is to be done.
            idle: what slots do for which nothing is left, but for the first of them if the calling thread has no core beside
                theirs: it would have to wait, whatever urgent it has to do. Nobody waits for what slots do so, which must end
                by itself once there is work again.
            window: begin nothing so many positions behind the result that is yielded next, lest results that nobody has
                looked at fill the memory; None begins all.

        Raises:
            ClientError: a slot's thread has ended, or all slots have run out of memory.
        """
        call = _Call(idle, len(work), max(self._count - len(work), 0))
        with self._lock:
            if self._failure:
                raise self._failure
            self._calls.add(call)
        todo = iter([(position, each, call) for position, each in enumerate(work)])
        for item in itertools.islice(todo, window):
            self._todo.put(item)
        ready: dict[int, Result] = {}
        try:
            for position in range(len(work)):
                while position not in ready:
                    index, result = self._wait(call)
                    ready[index] = result
                yield ready.pop(position)
                for item in itertools.islice(todo, 1):
                    self._todo.put(item)
        except BaseException:
            call.given_up.set()
            raise
        finally:
            with self._lock:
                self._calls.discard(call)

    def _wait(self, call: _Call) -> tuple[int, Result]:
        """The next result of a call, or the error that there is in its place."""
        while True:
            try:
                index, result, error = call.done.get(timeout=self._patience)
            except queue.Empty:
                index, result, error = _IDLE, None, self._lost()
            if error is not None:
                raise error
            if index != _IDLE:
                return index, result

    def _lost(self) -> ClientError | None:
        """The error that a slot's thread is gone, if one is that could not even say so."""
        gone = [slot for slot, thread in self._threads.items() if not thread.is_alive() and slot not in self.retired]
        return _stopped(", ".join(gone), None) if gone else None

    def close(self) -> None:
        """Cancel what runs and wait for the threads to end."""
        for worker in self._workers:
            worker.stopping.set()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads.values():
            thread.join()

    def _serve(self, worker: Worker) -> None:
        try:
            with worker.prepare():
                while (item := self._todo.get()) is not None:
                    if not worker.cancelled() and not self._do(worker, item):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the trainer's thread
            self._fail(_stopped(str(worker.slot), error))

    def _fail(self, error: BaseException) -> None:
        """Let everyone who waits for a slot have this error, now and later."""
        with self._lock:
            self._failure = self._failure or error
            for call in self._calls:
                call.done.put((_IDLE, None, error))

    def _do(self, worker: Worker, item: _Item) -> bool:
        """Do work and hand over what comes of it; False if the slot is retired."""
        position, work, call = item
        with self._lock:
            call.waiting -= position != _IDLE
        if call.given_up.is_set():
            return True
        try:
            worker.begin()
            result = work(worker)
            worker.finish()
        except BaseException as error:  # noqa: BLE001 - raised again in the trainer's thread
            if out_of_memory(error):
                self._retire(worker, item, error)
                return False
            call.done.put((position, None, error))
        else:
            if position != _IDLE:
                call.done.put((position, result, None))
                return self._rest(worker, call)
        return True

    def _rest(self, worker: Worker, call: _Call) -> bool:
        """Use the time if nothing of a call is left to begin, and a core is free; False if the slot is retired."""
        with self._lock:
            if call.idle is None or call.waiting:
                return True
            call.resting += 1
            free = call.resting + cpu_count() > self._count - len(self.retired) + 1
        return not free or self._do(worker, (_IDLE, call.idle, call))

    def _retire(self, worker: Worker, item: _Item, error: BaseException) -> None:
        """Let others do the work once the memory is free: until then the error's frames hold the cohort's tensors."""
        _let_go(error)
        self._forget(str(worker.slot))
        worker.release()
        with self._lock:
            self.retired.append(str(worker.slot))
            last = len(self.retired) == self._count
        if not last:
            rank_zero_info(f"Slot {worker.slot} ran out of memory and is retired; its work is done again on another.")
            with self._lock:
                item[2].waiting += item[0] != _IDLE
            self._todo.put(item)
            return
        failure = ClientError(
            f"At least one slot must have memory for its work, but all ran out of it ({', '.join(self.retired)}): "
            f"{first_line(error)} Use fewer slots on a device, a smaller `cohort_size` or a smaller batch; the batch is never "
            "shrunk by itself."
        )
        failure.__cause__ = error
        self._fail(failure)


def _stopped(slot: str, error: BaseException | None) -> ClientError:
    """The error for a slot whose thread has ended before its time."""
    why = f"{type(error).__name__}: {first_line(error)}" if error else "of what, it could not say"
    failure = ClientError(
        f"Slot {slot} must work until the run ends, but its thread has stopped ({why}); see the cause."
    )
    failure.__cause__ = error
    return failure


def _check_room(count: int) -> None:
    """Check that there is room for so many more threads, by starting them: where a library of torch's cannot start its own,
    it ends the process.

    Raises:
        ConfigurationError: this machine cannot start them.
    """
    enough = threading.Event()
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(count)]
    started, remedy = list[threading.Thread](), "use fewer `slots` or a smaller `threads_per_slot`"
    try:
        for thread in threads:
            _start(thread, f"{count:,} threads beside those of the slots", len(started), remedy)
            started.append(thread)
    finally:
        enough.set()
        for thread in started:
            thread.join()


def _start(thread: threading.Thread, what: str, started: int, remedy: str) -> None:
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise ConfigurationError(
            f"This machine must start {what}, but after {started:,} it says: {first_line(error)}; {remedy}, or let this "
            "process have more (`ulimit -u`, `ulimit -v`)."
        ) from error


def _let_go(error: BaseException | None) -> None:
    """Clear the variables of the frames that an error and its causes went through; the traceback itself stays."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def keep_freed_memory() -> None:
    """Tell glibc to keep what threads free instead of returning it to the system after every layer.

    A thread's blocks above 128 KiB are otherwise mapped anew each time, and the page faults cost a small convolutional
    network a sixth of its time. Elsewhere than on glibc nothing is done.
    """
    mmap_threshold, trim_threshold = (-3, 32 * 2**20), (-1, 256 * 2**20)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, size in (mmap_threshold, trim_threshold):
            libc.mallopt(option, size)
