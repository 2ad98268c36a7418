"""Looping, sleeping, complaining and stopping: here and nowhere else."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType

REPEAT_COMPLAINT = 30.0


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


class Complaint:
    """Says what is wrong once when it starts, every half minute while it lasts, and when it is over."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: str | None = None
        self._said: dict[str, float] = {}

    def say(self, what: str, *, level: int = logging.WARNING, because: BaseException | None = None) -> None:
        """`because`: shown with its traceback."""
        now = time.monotonic()
        # Two that take turns are each said once, not at every turn.
        self._said = {said: at for said, at in self._said.items() if now - at < REPEAT_COMPLAINT}
        if what not in self._said:
            self._log.log(level, "%s", what, exc_info=because)
            self._said[what] = now
        self._last = what

    def settled(self) -> None:
        if self._last is not None:
            self._log.info("going on: no longer true that %s", self._last)
            self._last = None
            self._said.clear()
