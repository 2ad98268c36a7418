"""Looping, sleeping, complaining and stopping: here and nowhere else."""

import logging
import threading
import time
from collections.abc import Callable

REPEAT_COMPLAINT = 30.0


class Bell:
    """Wakes a sleeper: rung when there is work, or when it is time to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._stopping = threading.Event()

    def ring(self) -> None:
        """There is work: do not sleep on."""
        self._event.set()

    def stop(self) -> None:
        """End every loop that sleeps on this bell."""
        self._stopping.set()
        self._event.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def sleep(self, seconds: float) -> None:
        """Rest until the bell rings, at most `seconds`."""
        if seconds > 0 and not self.stopping:
            self._event.wait(seconds)
        if not self.stopping:
            self._event.clear()


def run(work: Callable[[], float], bell: Bell) -> None:
    """Repeat `work`, which returns how many seconds it may rest, until the bell says stop."""
    while not bell.stopping:
        bell.sleep(work())


class Complaint:
    """Says what is wrong once when it starts, every half minute while it lasts, and when it is over."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: str | None = None
        self._said_at = 0.0

    def say(self, what: str, *, level: int = logging.WARNING) -> None:
        now = time.monotonic()
        if what != self._last or now - self._said_at >= REPEAT_COMPLAINT:
            self._log.log(level, "%s", what)
            self._last, self._said_at = what, now

    def settled(self) -> None:
        if self._last is not None:
            self._log.info("going on: no longer true that %s", self._last)
            self._last = None
