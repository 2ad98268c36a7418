"""Looping, sleeping and stopping: here and nowhere else."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType


class Bell:
    """Wakes one sleeper: rung when there is work, or when it is time to stop.

    Rung from signal handlers too, hence the queue: its `put` may interrupt itself, the lock inside an Event
    would wait for the very thread that the signal interrupted.
    """

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()
        self._stopping = False

    def ring(self) -> None:
        """There is work: do not sleep on."""
        if self._rings.empty():
            self._rings.put(None)

    def stop(self) -> None:
        """End the loop that sleeps on this bell."""
        self._stopping = True
        self._rings.put(None)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def sleep(self, seconds: float) -> bool:
        """Rest until the bell rings, at most `seconds`. False when they passed in silence."""
        if self._stopping:
            return True
        try:
            self._rings.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        return True


def run(work: Callable[[], float], bell: Bell) -> None:
    """Repeat `work`, which returns how many seconds it may rest, until the bell says stop."""
    while not bell.stopping:
        bell.sleep(work())


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end what runs inside; elsewhere than in the main thread they are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
