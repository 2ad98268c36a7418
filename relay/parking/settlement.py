"""What became of the rows of a release, written down at once.

What stays behind keeps every number under which a relay of the release's delta may still send it: one that
was frozen in the midst of it, and to whom the broker said yes where it said no to us.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from outbox.record import Seq
from relay import database
from relay.database import Connection
from relay.parking.landing import Trace
from relay.parking.parking import ERROR_CHARACTERS
from relay.progress import Progress

ARCHIVE = """
INSERT INTO outbox_archive (
    parked, outcome, id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent, occurred_at,
    position, delta, seq, partition, error, attempts, parked_at, edited_at, edited_by, settled_by, reason)
SELECT p.parked, s.outcome, p.id, p.aggregatetype, p.aggregateid, p.type, p.payload, p.topic, p.headers,
       p.traceparent, p.occurred_at, p.position, p.delta, s.seq, s.partition, p.error, p.attempts,
       p.parked_at, p.edited_at, p.edited_by,
       coalesce(CASE WHEN s.outcome = 'discarded' THEN p.discarded_by END, h.wanted_by, 'relay'),
       CASE WHEN s.outcome = 'discarded' THEN p.discard_reason END
FROM unnest(%(parked)s::bigint[], %(outcomes)s::text[], %(seqs)s::text[], %(partitions)s::int[])
    AS s (parked, outcome, seq, partition)
JOIN outbox_parked p USING (parked) JOIN outbox_hold h USING (hold)
"""

REMOVE = "DELETE FROM outbox_parked WHERE parked = ANY(%(parked)s)"

UNSETTLED = """
UPDATE outbox_parked p
SET state = CASE WHEN %(error)s::text IS NULL THEN state ELSE 'failed' END,
    attempts = attempts + (%(error)s::text IS NOT NULL)::int, error = coalesce(%(error)s, error),
    sent_topic = %(topic)s, partition = %(partition)s,
    numbers = %(numbers)s::text[] || %(fresh)s::text,
    starts = %(starts)s::bigint[] || (
        SELECT CASE WHEN t.ends_delta < %(delta)s THEN t.ends[%(partition)s::int + 1]
                    WHEN t.earlier_delta < %(delta)s THEN t.earlier_ends[%(partition)s::int + 1] END
        FROM outbox_topic t WHERE t.shard = %(shard)s AND t.topic = %(topic)s)
WHERE parked = %(parked)s
"""
"""It stays in its place; the number that it has in this delta joins those it may have been sent under."""

STUCK = """
UPDATE outbox_hold SET wanted_at = NULL, wanted_by = NULL, undecided = NULL, note = %(note)s
WHERE hold = %(hold)s
"""

UNFREEZE = """
UPDATE outbox_hold SET planned = NULL WHERE shard = %(shard)s AND planned = %(delta)s RETURNING hold
"""

END = """
DELETE FROM outbox_hold h WHERE hold = ANY(%(holds)s)
AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.hold = h.hold)
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One row of a planned release, `fresh` being its number in it.

    `numbers`, the lowest first, and their `starts` are of `partition` in `sent_topic`.
    """

    fresh: Seq
    parked: int
    hold: int
    numbers: list[str]
    starts: list[int | None]
    topic: str
    sent_topic: str
    partition: int | None
    discarded: bool
    undecided: str | None

    def traces(self) -> Iterator[Trace]:
        if self.partition is not None:
            for number, start in zip(self.numbers, self.starts, strict=True):
                yield Trace(self.sent_topic, self.partition, Seq.parse(number.encode()), start)


@dataclass(frozen=True, slots=True)
class Left:
    """What this release could not settle, and what the next has to know of it."""

    parked: int
    fresh: str
    numbers: list[str]
    starts: list[int | None]
    topic: str
    partition: int | None
    error: str | None = None


@dataclass(slots=True)
class Settlement:
    """What became of the rows, to be written down at once."""

    settled: list[tuple[int, str, str, int | None]] = field(default_factory=list)
    unsettled: list[Left] = field(default_factory=list)
    stuck: dict[int, str] = field(default_factory=dict)

    def settle(self, waiting: Waiting, outcome: str, seq: Seq | None, partition: int | None) -> None:
        number = waiting.numbers[-1] if seq is None else seq.encode().decode()
        self.settled.append((waiting.parked, outcome, number, partition))

    def leave(self, waiting: Waiting) -> None:
        """Not sent by us. Another relay of this delta may have, where it was sent before."""
        if waiting.partition is not None and waiting.topic == waiting.sent_topic:
            self.keep(waiting, waiting.topic, waiting.partition)

    def keep(
        self,
        waiting: Waiting,
        topic: str,
        partition: int | None,
        *,
        passed: int = 0,
        error: str | None = None,
    ) -> None:
        """It stays parked, perhaps sent there under its fresh number; `passed` older ones are of no use."""
        self.unsettled.append(
            Left(
                waiting.parked,
                waiting.fresh.encode().decode(),
                waiting.numbers[passed:],
                waiting.starts[passed:],
                topic,
                partition,
                error,
            )
        )

    def write(self, connection: Connection, state: Progress) -> int:
        """In the transaction that confirms the release; returns how many rows are done with."""
        parked, outcomes, seqs, partitions = (
            map(list, zip(*self.settled, strict=True)) if self.settled else ([], [], [], [])
        )
        values: dict[str, Any] = {"shard": state.shard, "delta": state.delta, "parked": parked}

        def execute(statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
            done = database.execute(connection, statement, values)
            return done.fetchall() if done.description else []

        execute(ARCHIVE, values | {"outcomes": outcomes, "seqs": seqs, "partitions": partitions})
        execute(REMOVE, values)
        for left in self.unsettled:
            execute(UNSETTLED, values | asdict(left))
        for hold, note in self.stuck.items():
            execute(STUCK, {"hold": hold, "note": note[:ERROR_CHARACTERS]})
        holds = [hold for (hold,) in execute(UNFREEZE, values)]
        execute(END, {"holds": holds})
        return len(parked)
