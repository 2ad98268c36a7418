"""A handler that takes too long is interrupted, and if nothing interrupts it, its process is ended; a batch
whose handlers take long together ends at the next record.

The first way ends a statement that waits in the database: the handler's transaction fails and the record is
tried again like any other. A handler that hangs elsewhere cannot be stopped from outside in Python, so the
process ends after twice the limit; its record is counted across restarts and parked in the end.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg
from sqlalchemy import Connection

from outbox.errors import OutboxError

log = logging.getLogger(__name__)

EXIT_CODE = 70


class TooSlow(OutboxError):
    """A call of a handler exceeded `handler_limit`."""


@dataclass(slots=True)
class TimeLimit:
    """Watches one member's handlers, each call on its own, and the time of its batch.

    limit: for one call; None: nothing is watched. batch: seconds for all
    calls of a batch; then no other begins.
    """

    limit: timedelta | None
    batch: float
    _fired: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _interrupt: Callable[[], None] | None = None
    _began: dict[int, float] = field(default_factory=dict)
    _until: float | None = None
    _thread: threading.Thread | None = None

    def begin(self, interrupt: Callable[[], None]) -> None:
        """Calls of handlers follow; `interrupt` ends one that waits. It is called in a thread of ours."""
        self._until = None
        if self.limit is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="outbox-limit", daemon=True)
            self._thread.start()
        with self._lock:
            self._fired = False
            self._began = {}
            self._interrupt = interrupt

    def call(self, lane: int = 0) -> bool:
        """May another call of a handler begin? The first one always may."""
        now = time.monotonic()
        # Also where the time is over: a lane still makes the calls that come before one that has begun.
        self._began[lane] = now
        if self._until is None:
            self._until = now + self.batch
        return now < self._until

    def rest(self, lane: int) -> None:
        """The lane's last call is over."""
        self._began.pop(lane, None)

    def end(self) -> None:
        """The last call is over, or failed. Raises TooSlow if one was interrupted."""
        if self.limit is None:
            return
        with self._lock:
            self._interrupt = None
            fired, self._fired = self._fired, False
        if fired:
            raise self.too_slow()

    def too_slow(self) -> TooSlow:
        """What is said of a call that took too long."""
        assert self.limit is not None
        return TooSlow(
            f"a handler took longer than handler_limit ({self.limit.total_seconds():g} s); make it faster, "
            "or raise the limit"
        )

    def _watch(self) -> None:
        assert self.limit is not None
        seconds = self.limit.total_seconds()
        pause = threading.Event()
        while not pause.wait(seconds / 5):
            with self._lock:
                late = time.monotonic() - min(self._began.copy().values(), default=math.inf)
                if self._interrupt is None or late <= seconds:
                    continue
                if not self._fired:
                    self._fired = True
                    self._interrupt()
                elif late > 2 * seconds:
                    log.critical(
                        "a handler takes longer than twice handler_limit (%g s) and does not end; this "
                        "process ends now, so that its partitions go on elsewhere",
                        seconds,
                    )
                    logging.shutdown()
                    os._exit(EXIT_CODE)


def cancel_statement(connection: Connection, timeout: timedelta | None) -> Callable[[], None]:
    """An interrupt for handlers that wait in the database on this connection."""
    driver = connection.connection.driver_connection if timeout is not None else None

    def interrupt() -> None:
        with suppress(psycopg.Error):  # then the connection is gone, and the statement with it
            driver.cancel_safe(timeout=timeout.total_seconds())  # type: ignore[union-attr]

    return interrupt
