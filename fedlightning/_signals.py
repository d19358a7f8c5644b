"""Signals that end a run after the round instead of in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """While this is open, SIGTERM and the first SIGINT call `stop(name)`; a SIGINT after either interrupts at once.

    A handler of the user's own, an ignored signal, and a thread other than the main one are left as they are. When it
    closes, the handlers are as before.

    Args:
        stop: asks the work to end soon, given the signal's name.

    Raises:
        KeyboardInterrupt: the work was asked to end, and has ended; its argument is the signal's number, so that a
            program that runs one thing after another ends too.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        again = bool(received)
        received.append(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        if not again:
            name = signal.Signals(number).name
            stop(name)
            os.write(
                2, f"{name}: stopping after this round; Ctrl-C stops at once.\n".encode()
            )  # may be called anywhere

    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    in_main = threading.current_thread() is threading.main_thread()
    replaced = [number for number, handler in usual.items() if in_main and signal.getsignal(number) == handler]
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, usual[number])
    if received:
        raise KeyboardInterrupt(received[0])
