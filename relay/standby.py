"""Send nothing that the standby to be promoted does not have: wait until it has flushed the plan.

The plan's place in the log is behind every commit that it sees. Once a standby has flushed it, a fail-over to
that standby knows every event that was sent, and under which number.
"""

import logging
import time

from outbox.errors import ConfigurationError, SchemaError
from relay import database
from relay.config import RelayConfig
from relay.database import Connection, OutcomeUnknown
from relay.producers import Abandoned
from relay.progress import Progress
from relay.supervision import Supervision

log = logging.getLogger("relay.shard")

REMEDY = (
    "as a superuser or a member of pg_read_all_stats run: outbox-relay db roles --relay ROLE "
    "--wait-for-standby --yes"
)

SHORTEST, LONGEST = 0.001, 0.05
"""Seconds between two looks at the standbys: a flush takes about a millisecond, an absence for ever."""

REACHED = """
WITH plan AS MATERIALIZED (
    SELECT coalesce(%(lsn)s::pg_lsn, pg_current_wal_flush_lsn()) AS lsn,
           EXISTS (SELECT FROM outbox_shard
                   WHERE shard = %(shard)s AND delta = %(delta)s AND next_xid = %(xid)s::xid8) AS here
)
SELECT plan.lsn::text, plan.here,
       (SELECT count(DISTINCT name) FROM outbox_standbys()
        WHERE flushed >= plan.lsn
          AND (cardinality(%(names)s::text[]) = 0 OR name = ANY (%(names)s::text[]))),
       (SELECT count(*) FROM outbox_standbys() WHERE state IS NULL)
FROM plan
"""
"""How many of the standbys have flushed what this server had flushed when the plan was committed. No state:
the function's owner may not see it. Primary key of outbox_shard; shared memory."""


class UnknownStandbys(ConfigurationError):
    """We may not see what standbys have flushed, for whatever shard."""


class Standbys:
    """Waits for those that `wait_for_standby` names, or for so many of any name."""

    def __init__(self, config: RelayConfig, connection: Connection, supervision: Supervision) -> None:
        self._connection = connection
        self._supervision = supervision
        self._names = config.standby_names
        self._wanted = config.standby_count
        self._goes_on = config.standby_away == "go on"
        self._patience = self._patient = config.standby_patience.total_seconds()
        self._away = False

    @property
    def _who(self) -> str:
        return " and ".join(self._names) or f"{self._wanted} standby{'s' if self._wanted > 1 else ''}"

    def wait(self, state: Progress) -> None:
        """Return once they have flushed the plan of `state`, or as the settings say when they are away.

        Raises Abandoned when told to stop or when the lease is lost: nothing was sent, the plan stands.
        """
        began, pause, lsn = time.monotonic(), SHORTEST, None
        while True:
            lsn, reached = self._look(state, lsn)
            if reached:
                self._back()
                return
            if time.monotonic() - began >= self._patience and self._gone(state):
                return
            if not self._supervision.lease.held or self._supervision.stopping():
                raise Abandoned("told to stop while a standby had not flushed the plan")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST)

    def _look(self, state: Progress, lsn: str | None) -> tuple[str, bool]:
        values = {
            "lsn": lsn,
            "names": list(self._names),
            "shard": state.shard,
            "delta": state.delta,
            "xid": state.next_xid,
        }
        try:
            row = database.execute(self._connection, REACHED, values).fetchone()
        except SchemaError as error:
            raise UnknownStandbys(f"wait_for_standby: {error.__cause__}; {REMEDY}") from error
        assert row is not None
        found, here, reached, unseen = row
        if not here:
            raise OutcomeUnknown("this server does not hold the plan that a standby was to flush")
        if unseen:
            raise UnknownStandbys(
                f"wait_for_standby: the owner of outbox_standbys() may not read pg_stat_replication; {REMEDY}"
            )
        return found, reached >= self._wanted

    def _gone(self, state: Progress) -> bool:
        """Say that they are away; True if we shall go on without them."""
        # The seconds configured, not those waited: the same complaint each time.
        why = f"{self._who} did not flush the plan of delta {state.delta} within {self._patient:g} s"
        if self._away:
            return True
        if not self._goes_on:
            self._supervision.troubled("waiting", f"{why}; nothing is sent until they do")
            return False
        self._away, self._patience = True, 0.0
        self._supervision.reservation = (
            f"{why}; going on without: after a fail-over now, sent events may be forgotten"
        )
        return True

    def _back(self) -> None:
        if self._away:
            log.info("%s flushed the plan again; waiting for them from here on", self._who)
        self._away, self._patience, self._supervision.reservation = False, self._patient, None
