"""Know who carries which shard: leases by the database's clock, on a thread and connection of their own.

A lease saves work, it does not make anything right: two relays that both believe in one are told apart by the
epoch in the shard's row.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import psycopg

from outbox.errors import OutboxError
from outbox.notice import Notice
from relay import database, guards
from relay.database import Connection, Database, OutcomeUnknown
from relay.namesake import SILENT, Namesake
from relay.share import Reaching, Share, share

log = logging.getLogger("relay.lease")

SURVEY = """
WITH living AS (
    INSERT INTO outbox_relay (instance, state, alive_until)
    VALUES (%(owner)s, %(state)s, clock_timestamp() + %(alive)s::interval)
    ON CONFLICT (instance) DO UPDATE SET heartbeat = clock_timestamp(), state = excluded.state,
        alive_until = excluded.alive_until, stopped_at = NULL
    WHERE coalesce(outbox_relay.state->>'process', %(process)s) = %(process)s
       OR outbox_relay.stopped_at IS NOT NULL
       OR outbox_relay.heartbeat NOT BETWEEN clock_timestamp() - %(silent)s::interval
                                         AND clock_timestamp() + %(silent)s::interval
    RETURNING instance
), renewed AS (
    UPDATE outbox_lease SET lease_until = clock_timestamp() + %(lease)s::interval
    WHERE owner = %(owner)s AND shard = ANY (%(mine)s) AND EXISTS (SELECT FROM living) RETURNING shard
), namesake AS (
    SELECT heartbeat, state->>'leaving' IS NOT NULL AS leaving
    FROM outbox_relay WHERE instance = %(owner)s AND NOT EXISTS (SELECT FROM living)
)
SELECT l.shard, CASE WHEN r.shard IS NOT NULL THEN %(owner)s
                     WHEN l.lease_until > clock_timestamp() AND o.instance IS NULL THEN l.owner END,
       ARRAY(SELECT instance FROM outbox_relay
             WHERE alive_until > clock_timestamp() AND instance <> %(owner)s
               AND heartbeat <= clock_timestamp() + %(silent)s::interval),
       (SELECT heartbeat FROM namesake), (SELECT leaving FROM namesake)
FROM outbox_lease l LEFT JOIN renewed r USING (shard)
    LEFT JOIN outbox_relay o ON o.instance = l.owner
        AND o.heartbeat > clock_timestamp() + %(silent)s::interval
"""
"""Renew what is ours, tell the others that we live, and see who holds what: one statement, one round trip.
Where somebody else goes by our name nothing is renewed, and the last two are its heartbeat and whether it is
about to end. Who was last heard of in the future counts for nothing: the clock was set back, or is that of
another server, and whoever lives says so within a second. Indexes: the keys of both tables.
"""

TAKE = """
UPDATE outbox_lease SET owner = %(owner)s, lease_until = clock_timestamp() + %(lease)s
WHERE shard = %(shard)s
  AND (owner = %(owner)s OR owner IS NULL OR lease_until IS NULL OR lease_until < clock_timestamp()
       OR EXISTS (SELECT FROM outbox_relay r WHERE r.instance = outbox_lease.owner
                  AND r.heartbeat > clock_timestamp() + %(silent)s::interval))
"""
"""No row when somebody else was faster."""

RELEASE = """
UPDATE outbox_lease SET owner = NULL, lease_until = NULL
WHERE shard = %(shard)s AND owner = %(owner)s
  AND NOT EXISTS (SELECT FROM outbox_relay WHERE instance = %(owner)s AND state->>'process' <> %(process)s)
"""
"""No row when another process took our name meanwhile: then the lease is its own."""

FAREWELL = """
UPDATE outbox_relay SET stopped_at = clock_timestamp(), alive_until = NULL, state = %(state)s
WHERE instance = %(owner)s AND coalesce(state->>'process', %(process)s) = %(process)s
"""

ANSWER_WITHIN = 5.0
"""Seconds for the answer to a renewal, or twice the lease: then the next one goes over a new connection."""

FORGET = "DELETE FROM outbox_relay WHERE heartbeat < clock_timestamp() - interval '7 days'"


NOTHING = Share(0, give=False, short=True)


class Lease:
    """One shard's lease as this relay knows it; any thread may ask."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.lost = False
        """Somebody else has it, or the shard is no longer there."""
        self._held_until = 0.0

    @property
    def held(self) -> bool:
        """Is it ours for certain? Counted from before the renewal was sent."""
        return time.monotonic() < self._held_until

    def extend(self, until: float) -> None:
        self._held_until = until

    def lose(self) -> None:
        self._held_until = 0.0
        self.lost = True


class Leases:
    """One relay's leases: takes its share, renews, releases. All but `mine` belongs to one thread.

    `state` is what the heartbeat says of this relay. `reaching`: does it reach the brokers? Others count on
    it only if so.
    """

    def __init__(
        self,
        where: Database,
        *,
        owner: str,
        duration: timedelta,
        state: Callable[[], Mapping[str, Any]],
        reaching: Callable[[], Reaching] = lambda: Reaching.YES,
    ) -> None:
        self._database = where
        self._owner = owner
        self._duration = duration
        self._state = state
        self._reaching = reaching
        self._namesake = Namesake(owner)
        self._connection: Connection | None = None
        self._notice = Notice(log)
        self._former = Notice(log)
        self.mine: dict[int, Lease] = {}
        self.leads = False
        """Do we hold the first shard? Then what one relay should do for all is ours."""
        self.shards = 0
        """How many the database has, whoever holds them."""
        self.trouble: str | None = None

    @property
    def held(self) -> bool:
        return any(lease.held for lease in tuple(self.mine.values()))

    def run_once(self, *, leaving: bool = False) -> Share:
        """Renew, look around, take what is ours to take; says also whether to hand a shard over.

        `leaving`: take nothing and tell the others not to count on us.
        """
        before = time.monotonic()
        try:
            wanted = self._survey(before, leaving=leaving)
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            self._disconnect()
            self.trouble = f"database {self._database}: {error}"
            if not self.held:
                self._notice.trouble(self.trouble)
            return NOTHING
        self.trouble = None
        self._notice.over()
        return wanted

    def release(self, shard: int) -> None:
        """Let another relay take `shard` at once: nothing of it is under way here any more."""
        lease = self.mine.pop(shard)
        held = lease.held
        lease.lose()
        try:
            values = {"shard": shard, "owner": self._owner, "process": self._namesake.process}
            database.execute(self._connected(), RELEASE, values)
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError) as error:
            self._disconnect()
            if held:
                log.warning("lease of shard %d was not released and will run out: %s", shard, error)

    def farewell(self) -> None:
        """Write down that this relay ended, as far as the database answers."""
        process = self._namesake.process
        values = {"owner": self._owner, "state": self._said(), "process": process}
        try:
            database.execute(self._connected(), FAREWELL, values)
        except (OutcomeUnknown, OutboxError, psycopg.OperationalError) as error:
            log.debug("the end was not written down: %s", error)
        finally:
            self._disconnect()

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database."""
        if self._connection is not None:
            database.break_off(self._connection)

    def _survey(self, before: float, *, leaving: bool) -> Share:
        connection = self._connected()
        reaching = self._reaching()
        values = {
            "owner": self._owner,
            "lease": self._duration,
            "alive": None if leaving or reaching is not Reaching.YES else self._duration,
            "state": self._said(leaving=leaving),
            "process": self._namesake.process,
            "silent": SILENT,
            "mine": list(self.mine),
        }
        found = database.execute(connection, SURVEY, values).fetchall()
        owners: dict[int, str | None] = {shard: owner for shard, owner, *_ in found}
        others: list[str] = found[0][2] if found else []
        if found and found[0][3] is not None:
            if not leaving:
                self._somebody_else(*found[0][3:])
            return NOTHING
        self._former.over("the one before us of our name ended")
        self.shards = len(owners)
        for shard in owners.keys() - self.mine.keys():
            # A former process of the same name had it: nobody else will take it, so it is free for us.
            owners[shard] = None if owners[shard] == self._owner else owners[shard]
        for shard, lease in self.mine.items():
            if owners.get(shard) == self._owner:
                lease.extend(before + self._duration.total_seconds())
            elif not lease.lost:
                log.info("shard %d: lease lost", shard)
                lease.lose()
        if leaving:
            return NOTHING
        wanted = share(self._owner, owners, others, reaching)
        self._take(connection, owners, wanted.take)
        self.leads = bool(owners) and min(owners) in self.mine
        return wanted

    def _take(self, connection: Connection, owners: Mapping[int, str | None], count: int) -> None:
        """Up to `count` of the free shards, in any order: newcomers do not all reach for the same one."""
        free = [shard for shard, owner in owners.items() if owner is None and shard not in self.mine]
        for shard in random.sample(free, len(free)):
            if count == 0:
                return
            before = time.monotonic()
            values = {"owner": self._owner, "shard": shard, "lease": self._duration, "silent": SILENT}
            if database.execute(connection, TAKE, values).rowcount == 1:
                log.info("shard %d: lease taken", shard)
                lease = self.mine[shard] = Lease(shard)
                lease.extend(before + self._duration.total_seconds())
                count -= 1

    def _somebody_else(self, heartbeat: datetime, leaving: bool) -> None:
        """Goes by our name. One that is about to end has events under way, and is waited for."""
        if leaving:
            self._former.trouble(
                "another relay of our name is about to end; waiting for it", level=logging.INFO
            )
        else:
            self._namesake.heard(heartbeat)

    def _said(self, *, leaving: bool = False) -> str:
        """With who we are among those of our name."""
        said = {**self._state(), "process": self._namesake.process}
        return json.dumps(said | {"leaving": True} if leaving else said)

    def _connected(self) -> Connection:
        if self._connection is None:
            seconds = self._duration.total_seconds()
            self._connection = self._database.connect("lease", answer_within=max(ANSWER_WITHIN, 2 * seconds))
            # First of all: what another version of the schema lacks says less than its number.
            guards.require_version(self._connection)
            database.execute(self._connection, FORGET)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
