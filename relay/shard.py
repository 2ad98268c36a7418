"""Publish each committed event of one shard, in order and numbered: look ▸ plan ▸ send ▸ confirm."""

import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg

from outbox import hooks
from outbox.errors import Fenced
from relay import database, guards, points
from relay.config import RelayConfig
from relay.database import Connection, Database, OutcomeUnknown
from relay.lease import Lease
from relay.look import Look, Looker
from relay.loop import Complaint
from relay.outgoing import Outgoing, page
from relay.producers import Abandoned, Chunk, Interrupted, Producer, Refused, TopicRefused
from relay.progress import Progress, ShardRow
from relay.reader import DeltaReader
from relay.row import Row
from relay.topics import Topics, UnknownTopic

log = logging.getLogger("relay.shard")

LOW_EVERY = 0.1
"""Seconds between two notes of how far a long delta is acknowledged."""

CONFIRM_AFTER = 0.02
"""Seconds without new events before a delta is confirmed alone; until then the next plan does it for free."""

MANY_RUNNING = 32
"""Transactions running at the last snapshot from which every look has to probe noticeably long."""

SLOW_LOOK = 0.01
"""Seconds that a look may take; a slow one that finds nothing walks rows of open transactions each time."""

ADVANCE_EVERY = 1.0
EXAMINE_EVERY = 3600.0
TOPICS_EVERY = 60.0

TROUBLED = 1.0
"""Seconds before another attempt after a failure."""

SILENT = 5.0
"""Seconds without an acknowledgement for what is on its way before `status` says so."""

ASK_EVERY = 5.0
"""Seconds between two questions to brokers that seemed to be gone while nothing was sent."""

HALTED = 10.0
"""Seconds before a refused row is tried again: an operator may have raised the topic's limit."""


@dataclass(frozen=True, slots=True)
class Did:
    """What one round achieved: events published, and how many seconds may pass before the next round."""

    published: int
    rest: float


@dataclass(slots=True)
class _Held:
    """Everything that is valid only between one claim and the next."""

    connection: Connection
    row: ShardRow
    looker: Looker
    reader: DeltaReader
    topics: Topics
    producer: Producer
    state: Progress
    surroundings: guards.Surroundings | None
    sent: bool = False
    busy_at: float = 0.0
    advanced_at: float = 0.0
    topics_at: float = 0.0
    asked_at: float = 0.0
    noted_low: int = 0
    examined_at: float = field(default_factory=time.monotonic)


class Shard:
    """Carries one shard while its lease is held. `run_once` belongs to one thread.

    `stopping` says when to take up nothing new; `status` is written here and read by the heartbeat.
    """

    def __init__(
        self,
        config: RelayConfig,
        lease: Lease,
        producer: Callable[[], Producer],
        *,
        stopping: Callable[[], bool],
        status: dict[str, Any],
    ) -> None:
        self._config = config
        self._database = Database(config.url, prepared=config.prepared_statements)
        self._lease = lease
        self._make_producer = producer
        self._producer: Producer | None = None
        self._held: _Held | None = None
        self._connections: list[Connection] = []
        self._stopping = stopping
        self._stop_by: float | None = None
        self._status = status
        self._complaint = Complaint(log)
        self._heard_at = 0.0

    def run_once(self) -> Did:
        """Publish what is new, or find out why not. Raises only what an operator has to mend."""
        if not self._lease.held:
            self.let_go()
            self._status |= {"state": "standby", "alarm": None}
            return Did(0, TROUBLED)
        try:
            held = self._held or self._begin()
            did = self._carry(held)
        except Fenced as fenced:
            hooks.fire(points.FENCED, shard=self._config.shard)
            return self._again("standby", str(fenced))
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            return self._again("waiting", f"database {self._database}: {error}")
        except Abandoned:
            if not self._stopping():
                self.let_go()
            return Did(0, 0.0)
        except UnknownTopic as missing:
            return self._troubled("waiting", str(missing), TROUBLED)
        except Interrupted as interrupted:
            return self._troubled("waiting", str(interrupted), TROUBLED)
        except Refused as refused:
            hooks.fire(points.HALTED, shard=self._config.shard, reason=str(refused))
            return self._troubled(
                "halted", f"{refused}; nothing behind it is sent until this is mended", HALTED
            )
        self._well(held)
        return did

    def let_go(self) -> None:
        """Forget the claim: the next round starts from the row itself."""
        self._held = None
        self._disconnect()
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def finish(self) -> None:
        """Before a clean end: write down what is acknowledged, so that a successor repeats nothing."""
        held = self._held
        if held is not None and held.state.next is not None:
            try:
                if held.sent:
                    self._confirm(held)
                elif held.state.low > held.noted_low:
                    held.row.mark_low(held.state, held.state.low)
            except (Fenced, OutcomeUnknown) as error:
                log.info("the last delta was not confirmed and will be sent again: %s", error)
        self.let_go()

    def _disconnect(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database; its outcome is unknown."""
        for connection in tuple(self._connections):
            database.break_off(connection)

    def _begin(self) -> _Held:
        """Claim the shard and believe its row; the broker comes first, so that a claim is not idle."""
        producer = self._producer = self._producer or self._make_producer()
        cluster = producer.cluster_id()
        self._disconnect()
        for purpose in (f"shard {self._config.shard}", f"shard {self._config.shard} reader"):
            self._connections.append(self._database.connect(purpose))
        connection, reading = self._connections
        here = guards.examine(connection, cluster)
        row = ShardRow(connection, self._config.shard)
        state = row.claim()
        hooks.fire(points.CLAIMED, shard=state.shard, epoch=state.epoch)
        guards.compare_counters(connection, state)
        topics = Topics(connection, producer)
        topics.load(state)
        self._held = _Held(
            connection=connection,
            row=row,
            looker=Looker(connection, limit=self._config.look_rows),
            reader=DeltaReader(reading, rows=self._config.chunk_rows, bytes_=self._config.chunk_bytes),
            topics=topics,
            producer=producer,
            state=state,
            surroundings=here,
            noted_low=state.low,
        )
        log.info("shard %d: claimed with epoch %d, delta %d", state.shard, state.epoch, state.delta)
        return self._held

    def _carry(self, held: _Held) -> Did:
        if held.state.next is not None and not held.sent:
            # Planned by a predecessor, or interrupted: its rows are fixed, so they are read again.
            return Did(self._send(held, held.reader.chunks(held.state)), 0.0)
        if held.surroundings is not None:
            if held.sent:
                self._confirm(held)
            held.state = guards.after_fail_over(held.connection, held.surroundings, held.row, held.state)
            held.surroundings = None
        began = time.monotonic()
        if began - held.examined_at >= EXAMINE_EVERY:
            guards.examine(held.connection, None)
            held.examined_at = began
        if began - held.topics_at >= TOPICS_EVERY:
            # Counts change between deltas only, and under steady traffic no delta is confirmed alone.
            held.topics_at = began
            if held.sent:
                self._confirm(held)
            try:
                held.topics.refresh(held.state)
            except TopicRefused as refused:
                log.warning("%s; its events will halt the shard", refused)
        look = held.looker.look(held.state.next or held.state.done)
        if look.empty:
            return Did(0, self._idle(held, look, slow=time.monotonic() - began > SLOW_LOOK))
        move = held.row.confirm_and_plan if held.sent else held.row.plan
        held.state, held.sent, held.noted_low = move(held.state, look), False, 0
        hooks.fire(points.PLANNED, shard=held.state.shard, delta=held.state.delta)
        pages = held.reader.chunks(held.state) if look.rows is None else page(look.rows)
        published = self._send(held, pages)
        held.busy_at = time.monotonic()
        return Did(published, 0.0 if look.rows is None else self._config.poll_busy.total_seconds())

    def _send(self, held: _Held, pages: Generator[list[Row]]) -> int:
        """Deliver the planned delta above `low`. Sets `held.sent` once every row is acknowledged."""
        outgoing = Outgoing(held.topics, held.state, pages, self._stopping)
        published = 0
        self._heard_at = marked_at = time.monotonic()
        with closing(outgoing.chunks()) as chunks:
            for low in held.producer.deliver(self._timed(chunks), self._alive):
                hooks.fire(points.ACKNOWLEDGED, shard=held.state.shard, low=low)
                now = time.monotonic()
                if now - marked_at < LOW_EVERY:
                    held.state = dataclasses.replace(held.state, low=low)
                else:
                    held.state, held.noted_low = held.row.mark_low(held.state, low), low
                    marked_at = now
                published += self._heard(held, outgoing.arrived(low), now)
        if outgoing.stopped_by is not None:
            raise outgoing.stopped_by
        held.sent = outgoing.complete
        return published

    def _timed(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """What takes long to read is no silence of the broker."""
        for chunk in chunks:
            self._heard_at = time.monotonic()
            yield chunk

    def _heard(self, held: _Held, rows: int, now: float) -> int:
        """Count rows as they are acknowledged: a large delta takes minutes, an interrupted one counts."""
        silent, self._heard_at = now - self._heard_at > SILENT, now
        self._status["published"] += rows
        if silent:
            self._well(held)
        return rows

    def _idle(self, held: _Held, look: Look, *, slow: bool) -> float:
        """Nothing is new: do what was put off, then rest the longer the quieter it is."""
        now = time.monotonic()
        quiet = now - held.busy_at
        done = held.state.done
        if held.sent:
            if quiet >= CONFIRM_AFTER:
                self._confirm(held)
        elif held.producer.trouble() is not None and now - held.asked_at >= ASK_EVERY:
            held.asked_at = now
            held.producer.cluster_id()
        elif (
            slow or (len(done.running) > MANY_RUNNING and done.running - look.snapshot.running)
        ) and now - held.advanced_at >= ADVANCE_EVERY:
            held.state = held.row.advance(held.state, look)
            held.advanced_at = now
        shortest, longest = self._config.poll_busy.total_seconds(), self._config.poll_idle.total_seconds()
        return min(longest, max(shortest, quiet / 5))

    def _confirm(self, held: _Held) -> None:
        held.state, held.sent = held.row.confirm(held.state), False
        hooks.fire(points.CONFIRMED, shard=held.state.shard, delta=held.state.delta)

    def _alive(self) -> bool:
        now = time.monotonic()
        if now - self._heard_at > SILENT:
            why = self._producer.trouble() if self._producer is not None else None
            self._troubled("waiting", f"the broker acknowledges nothing: {why or 'it gives no reason'}", 0)
        if self._stopping():
            self._stop_by = self._stop_by or now + self._config.stop_timeout.total_seconds()
            return self._lease.held and now < self._stop_by
        return self._lease.held

    def _well(self, held: _Held) -> None:
        """Nothing is wrong on our side; what the client says of its brokers shows in `status` too."""
        trouble = held.producer.trouble()
        if trouble is None:
            self._complaint.settled()
        else:
            self._complaint.say(trouble)
        self._status |= {"state": "carrying" if trouble is None else "waiting", "alarm": trouble}

    def _again(self, state: str, why: str) -> Did:
        """Drop the claim; the next round starts from the row."""
        self.let_go()
        return self._troubled(state, why, TROUBLED)

    def _troubled(self, state: str, why: str, rest: float) -> Did:
        self._status |= {"state": state, "alarm": why}
        self._complaint.say(why, level=logging.ERROR if state == "halted" else logging.WARNING)
        return Did(0, rest)
