"""Know who carries a shard: a lease by the database's clock, renewed on a thread and connection of its own.

The lease saves work, it does not make anything right: two relays that both believe in it are told apart by
the epoch in the shard's row.
"""

import json
import logging
import time
from datetime import timedelta
from typing import Any

import psycopg

from outbox.errors import OutboxError
from relay import database
from relay.database import Connection, Database, OutcomeUnknown
from relay.loop import Complaint

log = logging.getLogger("relay.lease")

TAKE = """
UPDATE outbox_lease SET owner = %(owner)s, lease_until = clock_timestamp() + %(lease)s
WHERE shard = %(shard)s
  AND (owner = %(owner)s OR owner IS NULL OR lease_until IS NULL OR lease_until < clock_timestamp())
"""
"""Take or renew; no row when somebody else holds it."""

RELEASE = (
    "UPDATE outbox_lease SET owner = NULL, lease_until = NULL WHERE shard = %(shard)s AND owner = %(owner)s"
)

HEARTBEAT = """
INSERT INTO outbox_relay (instance, state) VALUES (%(owner)s, %(state)s)
ON CONFLICT (instance) DO UPDATE SET heartbeat = clock_timestamp(), state = excluded.state, stopped_at = NULL
"""

FAREWELL = (
    "UPDATE outbox_relay SET stopped_at = clock_timestamp(), state = %(state)s WHERE instance = %(owner)s"
)

ANSWER_WITHIN = 5.0
"""Seconds for the answer to a renewal, or twice the lease: then the next one goes over a new connection."""

FORGET = "DELETE FROM outbox_relay WHERE heartbeat < clock_timestamp() - interval '7 days'"


class Lease:
    """Takes, renews and releases one shard's lease. `run_once` belongs to one thread, `held` to any."""

    def __init__(
        self, where: Database, *, shard: int, owner: str, duration: timedelta, state: dict[str, Any]
    ) -> None:
        self._database = where
        self._shard = shard
        self._owner = owner
        self._duration = duration
        self._state = state
        self._connection: Connection | None = None
        self._held_until = 0.0
        self._complaint = Complaint(log)

    @property
    def held(self) -> bool:
        """Is the lease ours for certain? Counted from before the renewal was sent."""
        return time.monotonic() < self._held_until

    def run_once(self) -> bool:
        """Take or renew the lease and tell the others that we live. True when the lease is ours."""
        before = time.monotonic()
        try:
            taken = self._take()
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            self._disconnect()
            if not self.held:
                self._complaint.say(f"database {self._database}: {error}")
            return self.held
        self._complaint.settled()
        was_held = self.held
        self._held_until = before + self._duration.total_seconds() if taken else 0.0
        if taken != was_held:
            log.info("shard %d: lease %s", self._shard, "taken" if taken else "lost or not free")
        return taken

    def release(self) -> None:
        """Let another relay take over at once, and write down that this one ended."""
        held, self._held_until = self.held, 0.0
        try:
            connection = self._connected()
            values = {"shard": self._shard, "owner": self._owner, "state": json.dumps(self._state)}
            database.execute(connection, RELEASE, values)
            database.execute(connection, FAREWELL, values)
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError) as error:
            if held:
                log.warning("lease of shard %d was not released and will run out: %s", self._shard, error)
        finally:
            self._disconnect()

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database."""
        if self._connection is not None:
            database.break_off(self._connection)

    def _take(self) -> bool:
        connection = self._connected()
        values = {
            "shard": self._shard,
            "owner": self._owner,
            "lease": self._duration,
            "state": json.dumps(self._state),
        }
        taken = database.execute(connection, TAKE, values).rowcount == 1
        database.execute(connection, HEARTBEAT, values)
        return taken

    def _connected(self) -> Connection:
        if self._connection is None:
            seconds = self._duration.total_seconds()
            self._connection = self._database.connect("lease", answer_within=max(ANSWER_WITHIN, 2 * seconds))
            database.execute(self._connection, FORGET)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
