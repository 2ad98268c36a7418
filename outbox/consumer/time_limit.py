"""A handler that takes too long is interrupted, and if nothing interrupts it, its process is ended.

The first way ends a statement that waits in the database: the handler's transaction fails and the record is
tried again like any other. A handler that hangs elsewhere cannot be stopped from outside in Python, so the
process ends after twice the limit; its record is counted across restarts and parked in the end.
"""

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import Connection

from outbox.errors import OutboxError

log = logging.getLogger(__name__)

EXIT_CODE = 70


class TooSlow(OutboxError):
    """A call of a handler exceeded `handler_limit`."""


@dataclass(slots=True)
class TimeLimit:
    """Watches one member's handlers, each call on its own. `limit` None: nothing is watched."""

    limit: timedelta | None
    fired: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _driver: Any = None
    _began: float = 0.0
    _thread: threading.Thread | None = None

    def begin(self, connection: Connection) -> None:
        """Calls of handlers in this connection's transaction follow."""
        if self.limit is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="outbox-limit", daemon=True)
            self._thread.start()
        with self._lock:
            self.fired = False
            self._began = time.monotonic()
            self._driver = connection.connection.driver_connection

    def call(self) -> None:
        """Another call of a handler begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The last call is over, or failed. Raises TooSlow if it was interrupted."""
        if self.limit is None:
            return
        with self._lock:
            self._driver = None
            fired, self.fired = self.fired, False
        if fired:
            raise TooSlow(
                f"a handler took longer than handler_limit ({self.limit.total_seconds():g} s); make it "
                "faster, or raise the limit"
            )

    def _watch(self) -> None:
        assert self.limit is not None
        seconds = self.limit.total_seconds()
        pause = threading.Event()
        while not pause.wait(seconds / 5):
            with self._lock:
                late = time.monotonic() - self._began
                if self._driver is None or late <= seconds:
                    continue
                if not self.fired:
                    self.fired = True
                    with suppress(psycopg.Error):  # then the connection is gone, and the statement with it
                        self._driver.cancel_safe(timeout=seconds)
                elif late > 2 * seconds:
                    log.critical(
                        "a handler takes longer than twice handler_limit (%g s) and does not end; this "
                        "process ends now, so that its partitions go on elsewhere",
                        seconds,
                    )
                    logging.shutdown()
                    os._exit(EXIT_CODE)
