"""A claim never waits for a frozen process: who holds the row longer than a bound loses its connection."""

import logging
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks
from outbox.consumer.database import Database, LoopEnded

log = logging.getLogger(__name__)

# Promise: names only what stands at the head of the queue for this very row, in our database and of our role;
# never a claim that waits like ours, never a holder of a lock on the whole table (a migration, a dump).
BLOCKERS = text("""
WITH RECURSIVE holding (pid) AS (
    SELECT unnest(pg_blocking_pids(:pid))
    WHERE EXISTS (
        SELECT FROM pg_locks WHERE pid = :pid AND NOT granted AND locktype IN ('transactionid', 'tuple'))
  UNION
    SELECT unnest(pg_blocking_pids(holding.pid)) FROM holding WHERE holding.pid > 0
)
SELECT a.pid, a.xact_start
FROM holding JOIN pg_stat_activity a USING (pid)
WHERE cardinality(pg_blocking_pids(a.pid)) = 0
  AND a.usename = current_user AND a.datname = current_database()
""")

# Promise: ends that transaction or nothing.
TERMINATE = text("""
SELECT state, pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND xact_start = :xact_start
""")

LOOKS = 4
"""Looks per patience. Who blocks in that many looks in a row with one transaction has held the row for nearly
all of it; a claim before ours in the line holds it for a moment only."""


class Release:
    """While inside, terminate whoever makes backend `pid` wait for a row longer than `patience`."""

    def __init__(
        self, database: Database, pid: int, patience: timedelta, facts: Mapping[str, object]
    ) -> None:
        self._database = database
        self._pid = pid
        self._patience = patience.total_seconds()
        self._facts = {name: facts[name] for name in ("topic", "partition")}
        self._done = threading.Event()
        self._seen: dict[tuple[int, datetime], int] = {}
        self._thread = threading.Thread(target=self._watch, name=f"claim-{pid}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        # Not joined: it may be waiting for a connection, and the claim must be committed now.
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self._patience / LOOKS):
            try:
                self._database.transact(self._look)
            except (SQLAlchemyError, LoopEnded) as error:
                log.warning("cannot find out who holds %s: %s", self._facts, error)

    def _look(self) -> None:
        with self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            found = {(pid, start) for pid, start in connection.execute(BLOCKERS, {"pid": self._pid})}
            self._seen = {blocker: self._seen.get(blocker, 0) + 1 for blocker in found}
            for (pid, start), looks in self._seen.items():
                if looks < LOOKS or self._done.is_set():
                    continue
                ended = connection.execute(TERMINATE, {"pid": pid, "xact_start": start}).one_or_none()
                if ended is not None:
                    self._report(pid, *ended)

    def _report(self, pid: int, state: str, terminated: bool) -> None:
        log.warning(
            "backend %s (%s) held %s for more than %s s; %s",
            pid,
            state,
            self._facts,
            self._patience,
            "its connection was terminated" if terminated else "it could not be terminated",
        )
        hooks.fire("consumer.blocker_terminated", pid=pid, state=state, terminated=terminated, **self._facts)
