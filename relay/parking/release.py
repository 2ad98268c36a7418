"""Send what was parked once an operator wants it: in its key's order, and each row exactly once.

A release is a delta of its own that adds nothing to `done`. Its rows are frozen by the plan: while
`outbox_hold.planned` names the delta, operators change nothing. Before each row its partition is asked
whether it landed; what it needs, it gets: nothing, a number it had again, or a new one of this delta.
"""

import logging
from collections.abc import Iterator

import psycopg

from outbox import hooks
from outbox.errors import Fenced
from outbox.record import Seq
from relay import database, points, row
from relay.database import Connection, failed
from relay.parking.landing import Landings, Trace, Undecided, Verdict
from relay.parking.parking import ERROR_CHARACTERS, Parking
from relay.parking.settlement import Settlement, Waiting
from relay.producers import (
    Abandoned,
    Chunk,
    Interrupted,
    Producer,
    Refused,
    Target,
    TopicRefused,
    Unsettled,
    address,
)
from relay.progress import RELEASE, TRANSACTIONAL, Progress, ShardRow
from relay.row import Row
from relay.supervision import Supervision
from relay.topics import Topics, UnfitTopic

log = logging.getLogger("relay.parking")

MOST_ROWS = 500
"""Rows of one release: live events wait for no more than these."""

DUE = """
SELECT h.hold, (SELECT count(*) FROM (SELECT FROM outbox_parked p WHERE p.hold = h.hold LIMIT %(most)s) few)
FROM outbox_hold h JOIN outbox_shard s USING (shard)
WHERE h.shard = %(shard)s AND h.wanted_at IS NOT NULL AND NOT s.frozen
ORDER BY h.wanted_at, h.hold LIMIT %(most)s
"""
"""Holds that an operator wants released, the longest wanted first. Index outbox_parked_hold."""

TAKE = """
UPDATE outbox_hold SET planned = %(delta)s, note = NULL
WHERE hold = ANY(%(holds)s) AND shard = %(shard)s AND wanted_at IS NOT NULL
"""
"""Freeze them, in the transaction that plans the delta. Waits for an operator who is changing one."""

FROZEN = """
SELECT p.parked, p.hold, p.numbers, p.starts, p.topic, p.sent_topic, p.partition,
       p.discarded_by IS NOT NULL, h.undecided
FROM outbox_hold h JOIN outbox_parked p USING (hold)
WHERE h.shard = %(shard)s AND h.planned = %(delta)s
ORDER BY p.delta, p.position LIMIT %(most)s
"""
"""The rows of the planned release in their keys' order: the same however often it is asked."""

ROW = f"""
SELECT {row.COLUMNS} FROM outbox_parked
WHERE parked = %(parked)s
  AND EXISTS (SELECT FROM outbox_hold h WHERE h.hold = outbox_parked.hold AND h.planned = %(delta)s)
"""
"""What is sent of it: nothing once the release is over, after which it may have been edited."""


class Release:
    """Carries releases of one shard, between two ordinary deltas."""

    def __init__(
        self,
        connection: Connection,
        row: ShardRow,
        topics: Topics,
        parking: Parking,
        producer: Producer,
        supervision: Supervision,
    ) -> None:
        self._connection = connection
        self._row = row
        self._topics = topics
        self._parking = parking
        self._producer = producer
        self._supervision = supervision

    def due(self, state: Progress) -> list[int]:
        """Holds to release next."""
        if not self._parking.count:
            return []
        found = database.execute(self._connection, DUE, {"shard": state.shard, "most": MOST_ROWS}).fetchall()
        holds, rows = [], 0
        for hold, count in found:
            if rows >= MOST_ROWS:
                break
            holds.append(hold)
            rows += count
        return holds

    def plan(self, state: Progress, holds: list[int], server: int) -> Progress:
        """Nothing may be planned. Every row of the release is durable and frozen before the first is sent."""
        with database.transaction(self._connection):
            planned = self._row.plan_job(state, RELEASE, server)
            values = {"holds": holds, "shard": planned.shard, "delta": planned.delta}
            database.execute(self._connection, TAKE, values)
        hooks.fire(points.RELEASE_PLANNED, shard=planned.shard, delta=planned.delta)
        return planned

    def carry(self, state: Progress) -> Progress:
        """Send what is planned and write down what became of it. Repeatable after any interruption."""
        landings = self._producer.landings()
        try:
            done = self._send_all(state, landings)
        except Interrupted as interrupted:
            if state.mode != TRANSACTIONAL or isinstance(interrupted, Abandoned | Unsettled):
                raise
            # Rows before this one are committed, which the row does not say but the progress topic does.
            raise Unsettled(str(interrupted)) from interrupted
        finally:
            landings.close()
        hooks.fire(points.RELEASE_SENT, shard=state.shard, delta=state.delta)
        return self._confirm(state, done)

    def put_off(self, state: Progress) -> Progress:
        """After a fail-over: end the planned delta and send nothing more in it; its keys stay wanted.

        The failed server may have ended it with rows unsent, and gone on: consumers that have seen its later
        numbers would drop those rows under this delta's. So each keeps the number that it has here, the next
        release looks for it, and what is nowhere gets a number of the new source.
        """
        done = Settlement()
        for waiting in self._planned(state):
            if waiting.discarded:
                done.settle(waiting, "discarded", None, waiting.partition)
            elif waiting.fresh.position <= state.low:
                done.settle(waiting, "sent", waiting.fresh, waiting.partition)
            elif waiting.partition is not None and waiting.topic == waiting.sent_topic:
                done.leave(waiting)
            else:
                self._note(state, waiting, done)
        return self._confirm(state, done)

    def _note(self, state: Progress, waiting: Waiting, done: Settlement) -> None:
        """Remember where a row that was never sent before may have been sent in this delta."""
        row = self._fetch(state, waiting)
        try:
            ((topic, partition),) = address([row], lambda name: self._topics.resolve(state, name))
        except (UnfitTopic, TopicRefused):
            return
        # Its older numbers are of another place.
        done.keep(waiting, topic, partition, passed=len(waiting.numbers))

    def _planned(self, state: Progress) -> Iterator[Waiting]:
        values = {"shard": state.shard, "delta": state.delta, "most": MOST_ROWS}
        found = database.execute(self._connection, FROZEN, values).fetchall()
        for number, columns in enumerate(found, 1):
            fresh = Seq(state.source, state.generation, state.shard, state.delta, number)
            yield Waiting(fresh, *columns)

    def _send_all(self, state: Progress, landings: Landings) -> Settlement:
        done = Settlement()
        for waiting in self._planned(state):
            number = waiting.fresh.position
            if waiting.hold in done.stuck:
                done.leave(waiting)
            elif waiting.discarded:
                done.settle(waiting, "discarded", None, waiting.partition)
            elif number <= state.low:
                # Mode transactional: committed together with a note of how far this delta is.
                done.settle(waiting, "sent", waiting.fresh, waiting.partition)
            elif done.stuck and state.mode == TRANSACTIONAL:
                # One note says how far this delta is, so nothing behind the gap may be sent in it.
                break
            else:
                hooks.fire(points.RELEASING, shard=state.shard, parked=waiting.parked, number=number)
                self._settle(state, waiting, landings, done)
        return done

    def _settle(self, state: Progress, waiting: Waiting, landings: Landings, done: Settlement) -> None:
        """Send one row if need be, or find out why it cannot be."""
        row = self._fetch(state, waiting)
        try:
            (target,) = address([row], lambda name: self._topics.resolve(state, name))
            self._send(state, waiting, row, target, landings, done)
        except Undecided as undecided:
            done.stuck[waiting.hold] = (
                f"{undecided}; look for {waiting.numbers} yourself and release it with --as-new or --as-sent"
            )
            done.leave(waiting)
        except (UnfitTopic, TopicRefused) as refused:
            done.stuck[waiting.hold] = str(refused)
            done.leave(waiting)

    def _send(
        self,
        state: Progress,
        waiting: Waiting,
        row: Row,
        target: Target,
        landings: Landings,
        done: Settlement,
    ) -> None:
        passed = 0
        here = target == (waiting.sent_topic, waiting.partition)
        if waiting.topic == waiting.sent_topic:
            for trace in waiting.traces():
                verdict = self._verdict(state, waiting, trace, landings)
                if verdict is Verdict.OPEN and here:
                    if not self._deliver(state, waiting, row, target, trace.seq, passed, done):
                        return
                    # What a frozen predecessor still had on its way may have come in between.
                    verdict = self._verdict(state, waiting, trace, landings)
                    if verdict is Verdict.LANDED:
                        done.settle(waiting, "sent", trace.seq, target[1])
                        return
                elif verdict is Verdict.LANDED:
                    done.settle(waiting, "landed", trace.seq, waiting.partition)
                    return
                passed += 1
        if not here:
            passed = len(waiting.numbers)
        if self._deliver(state, waiting, row, target, waiting.fresh, passed, done):
            done.settle(waiting, "sent", waiting.fresh, target[1])

    def _deliver(
        self,
        state: Progress,
        waiting: Waiting,
        row: Row,
        target: Target,
        seq: Seq,
        passed: int,
        done: Settlement,
    ) -> bool:
        """Was it accepted? `passed`: how many of its numbers nobody would take any more."""
        stream = seq.encode().removesuffix(b"%d" % seq.position)
        assert state.next is not None
        chunk = Chunk(stream, [(seq.position, *row[1:])], [target], state.done.text, state.next.text)
        try:
            for _ in self._producer.deliver(self._supervision.timed([chunk]), self._supervision.alive):
                self._supervision.heard(1)
        except Refused as refused:
            log.error("parked event %d: %s", waiting.parked, refused)
            done.stuck[waiting.hold] = refused.reason
            where = None if state.mode == TRANSACTIONAL else target[1]
            error = refused.reason[:ERROR_CHARACTERS]
            done.keep(waiting, target[0], where, passed=passed, error=error)
            return False
        return True

    def _verdict(self, state: Progress, waiting: Waiting, trace: Trace, landings: Landings) -> Verdict:
        seq = trace.seq
        try:
            verdict = landings.verdict(trace, self._go_on)
            if verdict is Verdict.OPEN and seq.source == state.source and seq.generation < state.generation:
                raise Undecided(
                    f"no record of generation {state.generation} lies in partition {trace.partition} of "
                    f"{trace.topic} yet, and the first would outdate this one"
                )
        except Undecided:
            if waiting.undecided is None:
                raise
            return Verdict.PASSED if waiting.undecided == "new" else Verdict.LANDED
        return verdict

    def _go_on(self) -> bool:
        return self._supervision.lease.held and not self._supervision.stopping()

    def _fetch(self, state: Progress, waiting: Waiting) -> Row:
        cursor = row.cursor(self._connection)
        try:
            found: Row | None = cursor.execute(
                ROW, {"parked": waiting.parked, "delta": state.delta}
            ).fetchone()
        except psycopg.Error as error:
            raise failed(error) from error
        if found is None:
            raise Fenced(f"shard {state.shard}: the release of delta {state.delta} is over already")
        return found

    def _confirm(self, state: Progress, done: Settlement) -> Progress:
        with database.transaction(self._connection):
            confirmed = self._row.confirm_job(state)
            events = done.write(self._connection, state)
        self._parking.load()
        self._supervision.parked(self._parking.count)
        hooks.fire(points.RELEASED, shard=state.shard, delta=state.delta, events=events)
        log.info("%d parked events are settled, %d keys still wait", events, self._parking.count)
        return confirmed
