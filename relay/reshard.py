"""One shard's part in changing their number: reach the common end, then let the new shards begin.

All old shards acknowledge everything up to one snapshot, taken once none of them plans any further, before
the first record of the new generation leaves. So in no partition anything new stands before anything old.
"""

import logging
from dataclasses import dataclass

from outbox import hooks
from relay import database, points
from relay.database import Connection
from relay.look import Look
from relay.progress import Progress, ShardRow

log = logging.getLogger("relay.reshard")

GOAL = """
SELECT r.shards, r.upto::text,
       (SELECT bool_and(s.next IS NULL AND s.done::text = r.upto::text) FROM outbox_shard s)
FROM outbox_reshard r
"""
"""To how many shards, where the old ones end, and whether all are there. Snapshots are compared as texts."""

SWITCH = "SELECT outbox_shards_switch()"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for while the number of shards is being changed."""

    shards: int
    upto: str | None
    reached_by_all: bool | None


class Ending:
    """Leads one shard to the common end. `waits`: it is there, others are not."""

    def __init__(self, connection: Connection, row: ShardRow, server: int) -> None:
        self._connection = connection
        self._row = row
        self._server = server
        self.waits = False

    def go_on(self, state: Progress, look: Look | None) -> Progress:
        """One step; `state` has no delta under way and returns with the last one planned, or as it is.

        `look` may be None while `waits`. Raises Resharded once the new shards stand.
        """
        waited, self.waits = self.waits, False
        goal = self._goal()
        if goal is None:
            return self._row.read(state)
        if goal.upto is None:
            if look is not None:
                self._row.set_common_end(look)
                hooks.fire(points.END_SET, shard=state.shard)
            return state
        if state.done.text != goal.upto:
            return self._row.plan_end(state, goal.upto, self._server)
        if not waited:
            hooks.fire(points.AT_END, shard=state.shard)
        if not goal.reached_by_all:
            self.waits = True
            return state
        if self._switch():
            log.info("shards: %d of a new generation stand in place of the old ones", goal.shards)
        return self._row.read(state)

    def _goal(self) -> Goal | None:
        found = database.execute(self._connection, GOAL).fetchone()
        return Goal(*found) if found is not None else None

    def _switch(self) -> bool:
        return database.execute(self._connection, SWITCH).fetchone() == (True,)
