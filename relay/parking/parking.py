"""Set a refused row aside and let only its own key wait behind it.

A hold stands for one (topic, key): its later rows are withheld from the broker and stored behind the refused
one, in the transaction that moves `low` past them. A row without a key holds nobody but itself. Only the
shard's owner makes and removes holds, so what it loaded after its claim stays true while it is the owner.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from outbox import hooks
from relay import database, points
from relay.database import Connection
from relay.producers import Refused, address
from relay.progress import TRANSACTIONAL, Progress, ShardRow
from relay.row import ID, KEY, POSITION, TOPIC, Row
from relay.topics import Topics

log = logging.getLogger("relay.parking")

LOAD = """
SELECT hold, convert_to(topic, 'UTF8'), convert_to(aggregateid, 'UTF8') FROM outbox_hold
WHERE shard = %(shard)s
"""
"""All holds of a shard: at most `max_parked`, so no index."""

HOLD = """
INSERT INTO outbox_hold (shard, topic, aggregateid) VALUES (%(shard)s, %(topic)s, %(key)s) RETURNING hold
"""

DISCARDED = """
SELECT count(*) FROM outbox_hold h
WHERE h.shard = %(shard)s AND h.wanted_at IS NOT NULL AND (
    SELECT p.discarded_by IS NOT NULL FROM outbox_parked p WHERE p.hold = h.hold
    ORDER BY p.delta, p.position LIMIT 1)
"""
"""Keys whose refused event an operator gave up: they end with the next release. Index outbox_parked_hold."""

STORE = """
INSERT INTO outbox_parked (
    hold, state, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at,
    position, delta, partition, error, attempts, sent_topic, numbers, starts)
SELECT waiting.hold, waiting.state, e.id, e.aggregatetype, e.aggregateid, e.type, e.payload,
       routed.topic, e.headers, e.traceparent, e.occurred_at,
       e.position, %(delta)s, waiting.partition,
       CASE WHEN waiting.state = 'failed' THEN %(error)s::text END,
       (waiting.state = 'failed')::int, routed.topic,
       ARRAY[%(stream)s || e.position],
       ARRAY[CASE WHEN t.ends_delta < %(delta)s THEN t.ends[waiting.partition + 1]
            WHEN t.earlier_delta < %(delta)s THEN t.earlier_ends[waiting.partition + 1] END]
FROM unnest(%(positions)s::bigint[], %(holds)s::bigint[], %(partitions)s::int[], %(states)s::text[])
    AS waiting (position, hold, partition, state)
JOIN outbox_event e ON e.position = waiting.position
CROSS JOIN LATERAL (SELECT coalesce(e.topic, 'outbox.event.' || e.aggregatetype) AS topic) routed
LEFT JOIN outbox_topic t ON t.shard = %(shard)s AND t.topic = routed.topic
ORDER BY e.position
"""
"""Copy rows out of the ring, which may then drop them. Index outbox_event_position, a probe a row and leaf.

`starts`: where the partition ended at a moment before this delta was planned.
"""

ERROR_CHARACTERS = 2_000


class Withheld(NamedTuple):
    """A row that is not sent because its key waits."""

    position: int
    hold: int
    partition: int | None


class Parking:
    """The holds of one shard, from one claim to the next."""

    def __init__(
        self, connection: Connection, row: ShardRow, topics: Topics, *, shard: int, most: int
    ) -> None:
        self._connection = connection
        self._row = row
        self._topics = topics
        self._most = most
        self._shard = shard
        self._holds: dict[tuple[bytes, bytes], int] = {}
        self._alone = 0
        self.load()

    def load(self) -> None:
        """Believe what is written down: after a claim, and after holds have ended."""
        rows = database.execute(self._connection, LOAD, {"shard": self._shard}).fetchall()
        self._holds = {(topic, key): hold for hold, topic, key in rows if key is not None}
        self._alone = len(rows) - len(self._holds)

    @property
    def count(self) -> int:
        """Keys that wait, and rows without a key."""
        return len(self._holds) + self._alone

    def _discarded(self) -> int:
        found = database.execute(self._connection, DISCARDED, {"shard": self._shard}).fetchone()
        assert found is not None
        return int(found[0])

    def withhold(self, rows: list[Row]) -> tuple[list[Row], list[Withheld]]:
        """What may be sent of `rows`, and what waits behind a row that was refused."""
        holds = self._holds
        if not holds:
            return rows, []
        free: list[Row] = []
        waiting: list[Withheld] = []
        for row in rows:
            key = row[KEY]
            hold = holds.get((row[TOPIC], key)) if key is not None else None
            if hold is None:
                free.append(row)
            else:
                waiting.append(Withheld(row[POSITION], hold, self._partition(row)))
        return free, waiting

    def keep(self, state: Progress, low: int, waiting: Sequence[Withheld]) -> Progress:
        """All up to `low` is acknowledged but for `waiting`, which are stored in the same transaction."""
        with database.transaction(self._connection):
            moved = self._row.mark_low(state, low)
            self._store(moved, waiting)
        return moved

    def park(self, state: Progress, refused: Refused, waiting: Sequence[Withheld]) -> Progress:
        """Set the refused row aside; everything before it is acknowledged, but for `waiting`."""
        row, key = refused.row, refused.row[KEY]
        # What is discarded stays until this delta is over: rows of its key that are withheld now would come
        # behind others of their partition that have arrived. But it takes no room.
        if self.count >= self._most and self.count - self._discarded() >= self._most:
            raise Refused(
                row,
                f"{refused.reason}; {self.count} keys wait already, and max_parked allows no more: mend what "
                "is refused, make room (outbox-relay parked discard), or raise max_parked and restart; "
                "releases wait for the rest of this delta",
            )
        values = {
            "shard": state.shard,
            "topic": row[TOPIC].decode(),
            "key": key.decode() if key is not None else None,
        }
        with database.transaction(self._connection):
            moved = self._row.park(state, row[POSITION])
            found = database.execute(self._connection, HOLD, values).fetchone()
            assert found is not None
            failed = Withheld(row[POSITION], found[0], self._partition(row))
            self._store(moved, [*waiting, failed], failed=failed, error=refused.reason)
        if key is None:
            self._alone += 1
        else:
            self._holds[row[TOPIC], key] = found[0]
        hooks.fire(
            points.PARKED, shard=state.shard, event=row[ID].decode(), position=row[POSITION], hold=found[0]
        )
        log.error(
            "%s; it is parked and later events of its key wait behind it, everything else goes on: "
            "outbox-relay parked list",
            refused,
        )
        return moved

    def _store(
        self,
        state: Progress,
        rows: Sequence[Withheld],
        *,
        failed: Withheld | None = None,
        error: str | None = None,
    ) -> None:
        values: dict[str, Any] = {
            "shard": state.shard,
            "delta": state.delta,
            "stream": state.stream.decode(),
            "positions": [row.position for row in rows],
            "holds": [row.hold for row in rows],
            # What was refused in a Kafka transaction was aborted: nobody can have sent it anywhere.
            "partitions": [None if state.mode == TRANSACTIONAL else row.partition for row in rows],
            "states": ["failed" if row is failed else "held" for row in rows],
            "error": error[:ERROR_CHARACTERS] if error else None,
        }
        stored = database.execute(self._connection, STORE, values).rowcount
        if stored != len(rows):
            raise database.OutcomeUnknown(
                f"{len(rows)} rows of shard {state.shard} were to be set aside, "
                f"but outbox_event holds {stored} of them"
            )

    def _partition(self, row: Row) -> int | None:
        """Where it would have gone under the count of this delta; None when its topic was never there."""
        known = self._topics.known(row[TOPIC])
        return None if known is None else next(address([row], lambda _: known))[1]
