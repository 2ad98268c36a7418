"""A claim never waits for a frozen process: who holds the row longer than a bound loses its connection."""

import logging
import threading
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks

log = logging.getLogger(__name__)

# Promise: ends only what stands at the head of the queue for this very row, in our database and of our role;
# never a claim that waits like ours, never a holder of a lock on the whole table (a migration, a dump).
BLOCKERS = text("""
WITH RECURSIVE holding (pid) AS (
    SELECT unnest(pg_blocking_pids(:pid))
    WHERE EXISTS (
        SELECT FROM pg_locks WHERE pid = :pid AND NOT granted AND locktype IN ('transactionid', 'tuple'))
  UNION
    SELECT unnest(pg_blocking_pids(holding.pid)) FROM holding WHERE holding.pid > 0
)
SELECT a.pid, a.state, pg_terminate_backend(a.pid)
FROM holding JOIN pg_stat_activity a USING (pid)
WHERE cardinality(pg_blocking_pids(a.pid)) = 0
  AND a.usename = current_user AND a.datname = current_database()
""")


class Release:
    """While inside, terminate whoever makes backend `pid` wait for a row longer than `patience`."""

    def __init__(self, engine: Engine, pid: int, patience: timedelta, facts: Mapping[str, object]) -> None:
        self._engine = engine
        self._pid = pid
        self._patience = patience.total_seconds()
        self._facts = {name: facts[name] for name in ("topic", "partition")}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"claim-{pid}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._patience):
            try:
                self._terminate()
            except SQLAlchemyError as error:
                log.warning("cannot find out who holds %s: %s", self._facts, error)

    def _terminate(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for pid, state, terminated in connection.execute(BLOCKERS, {"pid": self._pid}):
                log.warning(
                    "backend %s (%s) held %s for more than %s s; %s",
                    pid,
                    state,
                    self._facts,
                    self._patience,
                    "its connection was terminated" if terminated else "it could not be terminated",
                )
                hooks.fire(
                    "consumer.blocker_terminated", pid=pid, state=state, terminated=terminated, **self._facts
                )
