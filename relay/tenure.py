"""One claim's work on a shard: look ▸ plan ▸ send ▸ confirm, until the claim is let go."""

import dataclasses
import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from outbox import hooks
from relay import guards, points, takeover
from relay.config import RelayConfig
from relay.database import Connection, OutcomeUnknown
from relay.look import Look, Looker
from relay.outgoing import Outgoing, page
from relay.parking.parking import Parking, Withheld
from relay.parking.release import Release
from relay.planner import Planner
from relay.producers import Producer, Refused, TopicRefused
from relay.progress import RELEASE, TRANSACTIONAL, Frozen, Progress, ShardRow
from relay.reader import DeltaReader, PlanMissing
from relay.replay.replay import Replay
from relay.reshard import Ending
from relay.row import POSITION, Row
from relay.standby import Standbys
from relay.supervision import Supervision
from relay.topics import CompactedTopic, HeldUp, Topics, UnfitTopic, UnknownTopic

log = logging.getLogger("relay.shard")

LOW_EVERY = 0.1
"""Seconds between two notes of how far a long delta is acknowledged."""

NEAR = 0.02
"""Seconds for which a Kafka transaction stands open for a chunk that is being read."""

CONFIRM_AFTER = 0.02
"""Seconds without new events before a delta is confirmed alone; until then the next plan does it for free."""

MANY_RUNNING = 32
"""Transactions running at the last snapshot from which every look has to probe noticeably long."""

SLOW_LOOK = 0.01
"""Seconds that a look may take; a slow one that finds nothing walks rows of open transactions each time."""

ADVANCE_EVERY = 1.0

AT_END = 0.02
"""Seconds between two looks whether the other shards have reached the common end too."""

REPLAYS_EVERY = 2.0
"""Seconds between two questions for a replay; while one is under way it is asked after each delta."""

JOBS_EVERY = 0.5
"""Seconds between two questions whether an operator wants something sent again."""

EXAMINE_EVERY = 3600.0
TOPICS_EVERY = 60.0

MODE_EVERY = 2.0
"""Seconds between two looks at an idle row for a wanted mode; each plan shows it, too."""

ASK_EVERY = 5.0
"""Seconds between two questions to brokers that seemed to be gone while nothing was sent."""


@dataclass(frozen=True, slots=True)
class Did:
    """What one round achieved: events published, and how many seconds may pass before the next round."""

    published: int
    rest: float


class Tenure:
    """Everything that is valid only between one claim and the next. `state` is the row as we left it."""

    def __init__(
        self,
        config: RelayConfig,
        connection: Connection,
        reading: Connection,
        producer: Producer,
        row: ShardRow,
        state: Progress,
        surroundings: guards.Surroundings,
        supervision: Supervision,
        *,
        switch_at: float = 0.0,
    ) -> None:
        """`switch_at`: from when on a mode that could not be had may be asked for again (monotonic)."""
        self.state = state
        self._config = config
        self._connection = connection
        self._producer = producer
        self._row = row
        self._surroundings: guards.Surroundings | None = surroundings
        self._server = surroundings.server
        self._supervision = supervision
        self._transactional = state.mode == TRANSACTIONAL
        self._switch_at = switch_at
        rows = config.transaction_rows if self._transactional else config.chunk_rows
        self._looker = Looker(connection, limit=config.look_rows, buckets=state.buckets)
        self._planner = Planner(
            connection, server=self._server, limit=config.look_rows, buckets=state.buckets
        )
        self._ending = Ending(connection, row, self._server)
        self._reader = DeltaReader(reading, rows=rows, bytes_=config.chunk_bytes)
        self._topics = Topics(
            connection, producer, compacted=self._transactional or config.compacted_topics == "allow"
        )
        self._topics.load(state)
        self._standbys = Standbys(config, connection, supervision) if config.wait_for_standby else None
        self._parking = Parking(connection, row, self._topics, shard=state.shard, most=config.max_parked)
        self._release = Release(connection, row, self._topics, self._parking, producer, supervision)
        self._replay = Replay(
            connection,
            row,
            self._topics,
            producer,
            supervision,
            rows=rows,
            bytes_=config.chunk_bytes,
        )
        self._supervision.parked(self._parking.count)
        self._sent = False
        self._noted_low = state.low
        self._mode_at = time.monotonic()
        self._busy_at = self._advanced_at = self._topics_at = self._asked_at = 0.0
        self._jobs_at = self._replays_at = 0.0
        self._live_turn = True
        self._examined_at = time.monotonic()

    def carry(self) -> Did:
        """One round: publish what is planned or new. Raises whatever ends the claim or halts the shard."""
        if self._has_job():
            return self._carry_job()
        if self.state.next is not None and not self._sent:
            # Planned by a predecessor, or interrupted: its rows are fixed, so they are read again.
            return Did(self._send(self._read()), 0.0)
        try:
            return self._find()
        except Frozen:
            return Did(0, 0.0)  # the number of shards is being changed, as the next look will see

    def passed_over(self, known: int) -> None:
        """Store what was withheld between the row's own `low` and the one that Kafka knows.

        A chunk's commit may be in before the withheld rows among it are stored. The holds are the ones that
        it was sent under: each was made by a transaction that moved the row's `low`, and none ends inside a
        delta.
        """
        low = self.state.low
        if low <= known or self._has_job() or self.state.next is None or not self._parking.count:
            return
        waiting: list[Withheld] = []
        with closing(self._reader.chunks(dataclasses.replace(self.state, low=known))) as pages:
            for page in pages:
                waiting += self._parking.withhold([row for row in page if row[POSITION] <= low])[1]
                if page[-1][POSITION] > low:
                    break
        if waiting:
            self.state, self._noted_low = self._parking.keep(self.state, low, waiting), low

    def _find(self) -> Did:
        began = time.monotonic()
        self._between_deltas(began)
        if self._has_job():
            return self._carry_job()
        self._live_turn = True
        if self._ending.waits:
            return self._end(None)
        look, planned = self._look()
        if look.server != self._server:
            raise OutcomeUnknown("the connection leads to another server than the one that was examined")
        if planned is None:
            if look.resharding:
                return self._end(look)
            if look.empty:
                return Did(0, self._idle(look, slow=time.monotonic() - began > SLOW_LOOK))
            # A wish was written into the row, so it is in another place; or it is no longer ours.
            planned = (self._row.confirm_and_plan if self._sent else self._row.plan)(self.state, look)
        self.state, self._sent, self._noted_low = planned, False, 0
        hooks.fire(points.PLANNED, shard=self.state.shard, delta=self.state.delta)
        pages = self._read() if look.rows is None else page(look.rows)
        published = self._send(pages)
        self._busy_at = time.monotonic()
        return Did(published, 0.0)

    def _look(self) -> tuple[Look, Progress | None]:
        """What is new, and the row with its plan; without one while the number of shards is being changed."""
        if self.state.frozen:
            return self._looker.look(self.state.next or self.state.done), None
        return self._planner.look(self.state, sent=self._sent)

    def finish(self) -> None:
        """Before a clean end: write down what is acknowledged, so that a successor repeats nothing."""
        if self.state.next is None:
            return
        if self._sent and not self._leaves:
            self._confirm()
        elif self.state.low > self._noted_low:
            self._row.mark_low(self.state, self.state.low)

    def _end(self, look: Look | None) -> Did:
        """The number of shards is being changed: nothing is planned but the end that all have in common."""
        self._confirm()
        self.state = self._ending.go_on(self.state, look)
        if self.state.next is None:
            return Did(0, AT_END)
        self._sent, self._noted_low = False, 0
        hooks.fire(points.PLANNED, shard=self.state.shard, delta=self.state.delta)
        return Did(0, 0.0)

    def _between_deltas(self, now: float) -> None:
        """What may only change while nothing is under way: source, settings, partition counts."""
        if self._surroundings is not None:
            self._confirm()
            if self._transactional and self._failed_over():
                self._producer.leave(self._may_go_on)
            self.state = guards.after_fail_over(self._connection, self._surroundings, self._row, self.state)
            self._surroundings = None
        self._change_mode(now)
        if now - self._examined_at >= EXAMINE_EVERY:
            guards.examine(self._connection, None)
            self._examined_at = now
        if now - self._topics_at >= TOPICS_EVERY:
            # Counts change between deltas only, and under steady traffic no delta is confirmed alone.
            self._topics_at = now
            self._confirm()
            try:
                self._topics.refresh(self.state)
            except TopicRefused as refused:
                log.warning("%s; its events will halt the shard", refused)
        self._plan_job(now)

    def _plan_job(self, now: float) -> None:
        """What an operator wants sent again, as a delta of its own; after each, live events have a turn."""
        if not self._live_turn:
            return
        if now - self._jobs_at >= JOBS_EVERY:
            self._jobs_at = now
            if holds := self._release.due(self.state):
                self._confirm()
                self.state = self._release.plan(self.state, holds, self._server)
                return
        if now - self._replays_at >= REPLAYS_EVERY:
            self._replays_at = now
            if (job := self._replay.asked(self.state)) is not None:
                # First: what is acknowledged but not written down would be missing from the replay's set.
                self._confirm()
                if self._replay.due(self.state, job) is not None:
                    self.state = self._replay.plan(self.state, job, self._server)

    def _change_mode(self, now: float) -> None:
        """Let the claim go when another mode is wanted; one that could not be had waits for a while."""
        if self.state.next is None and now - self._mode_at >= MODE_EVERY:
            self._mode_at = now
            self.state = self._row.read_again(self.state)
        if self._may_switch(now):
            self._confirm()
            raise takeover.ModeWanted

    def _may_switch(self, now: float) -> bool:
        """Is a claim for another mode worth it? Each that cannot give it fences and asks the brokers anew."""
        state = self.state
        if state.wanted_mode is None:
            return False
        return state.wanted_mode == state.mode or (not state.frozen and now >= self._switch_at)

    def _has_job(self) -> bool:
        return self.state.job is not None

    def _carry_job(self) -> Did:
        """What an operator asked for, planned as a delta of its own; ordinary deltas follow."""
        if self.state.job == RELEASE and self._failed_over():
            self.state = self._release.put_off(self.state)
            return Did(0, 0.0)
        if self._standbys is not None:
            self._standbys.wait(self.state)
        if self.state.job == RELEASE:
            self.state = self._release.carry(self.state)
        else:
            self.state = self._replay.carry(self.state)
            self._replays_at = -REPLAYS_EVERY
        self._live_turn = False
        return Did(0, 0.0)

    def _failed_over(self) -> bool:
        """Was what is under way planned on a server that is no longer the primary?"""
        here = self._surroundings
        return here is not None and guards.failed_over(self._connection, here, self.state.shard) is not None

    def _send(self, pages: Generator[list[Row]]) -> int:
        """Deliver the planned delta above `low`. Sets `sent` once every row is acknowledged or set aside."""
        if self._standbys is not None:
            self._standbys.wait(self.state)
        outgoing = Outgoing(self._topics, self._parking, self.state, pages, self._supervision.stopping)
        try:
            published = self._deliver(outgoing)
        except Refused as refused:
            self._park(outgoing, refused)
            return 0
        except PlanMissing:
            self._row.read(self.state)  # Fenced or Resharded, if that is why
            raise
        # The producer is through with all it was given, so only withheld rows lie up to `reached`.
        if withheld := outgoing.withheld(outgoing.reached):
            low = outgoing.reached
            self.state, self._noted_low = self._parking.keep(self.state, low, withheld), low
        if outgoing.stopped_by is not None:
            self._stand_before(outgoing.stopped_by)
            self._park(outgoing, outgoing.stopped_by)
        self._sent = outgoing.complete
        return published

    def _read(self) -> Generator[list[Row]]:
        return self._reader.chunks(self.state, near=NEAR if self._transactional else None)

    def _deliver(self, outgoing: Outgoing) -> int:
        """Rows acknowledged until the delta ends, or the sending stops."""
        published = 0
        marked_at = time.monotonic()
        with closing(outgoing.chunks()) as chunks:
            timed = self._supervision.timed(chunks)
            for low in self._producer.deliver(timed, self._supervision.alive):
                hooks.fire(points.ACKNOWLEDGED, shard=self.state.shard, low=low)
                now = time.monotonic()
                if withheld := outgoing.withheld(low):
                    self.state, self._noted_low = self._parking.keep(self.state, low, withheld), low
                elif now - marked_at < LOW_EVERY:
                    self.state = dataclasses.replace(self.state, low=low)
                else:
                    self.state, self._noted_low = self._row.mark_low(self.state, low), low
                    marked_at = now
                rows = outgoing.arrived(low)
                self._supervision.heard(rows)
                published += rows
        return published

    def _park(self, outgoing: Outgoing, stop: Refused | UnfitTopic) -> None:
        """Set aside the row that stops us; raises `stop` when that is for an operator to decide."""
        if isinstance(stop, UnfitTopic):
            waits = self._config.missing_topic == "wait" or not isinstance(stop, UnknownTopic)
            if waits or outgoing.stopped_at is None:
                raise stop
            stop = Refused(outgoing.stopped_at, str(stop))
        elif stop.of_topic and self._config.missing_topic == "wait":
            raise stop
        low = stop.row[POSITION]
        self.state = self._parking.park(self.state, stop, outgoing.withheld(low))
        self._noted_low = low
        self._supervision.parked(self._parking.count)

    def _stand_before(self, stop: Exception) -> None:
        """A compacted topic waits for another mode, and gets it here: nothing beyond `low` was given away."""
        if isinstance(stop, CompactedTopic):
            self.state, self._noted_low = self._row.mark_low(self.state, self.state.low), self.state.low
            if self.state.frozen:
                raise HeldUp(stop.topic)
            if self._may_switch(time.monotonic()):
                raise takeover.ModeWanted(self.state)

    @property
    def _leaves(self) -> bool:
        """Is this the shard's last delta before others follow it, which nobody will look for any more?"""
        return self._transactional and self.state.frozen

    def _may_go_on(self) -> bool:
        return self._supervision.lease.held and not self._supervision.stopping()

    def _idle(self, look: Look, *, slow: bool) -> float:
        """Nothing is new: do what was put off, then rest the longer the quieter it is."""
        now = time.monotonic()
        quiet = now - self._busy_at
        done = self.state.done
        self._producer.tend(self._may_go_on)
        if self._sent:
            if quiet >= CONFIRM_AFTER:
                self._confirm()
        elif self._producer.trouble() is not None and now - self._asked_at >= ASK_EVERY:
            self._asked_at = now
            self._producer.cluster_id()
        elif (
            slow
            or (len(done.running) > MANY_RUNNING and done.running - look.snapshot.running)
            or (self.state.buckets is not None and look.floor > self.state.done_floor)
        ) and now - self._advanced_at >= ADVANCE_EVERY:
            # The last: rows of other shards, which every look would walk again.
            self.state = self._row.advance(self.state, look)
            self._advanced_at = now
        shortest, longest = self._config.poll_busy.total_seconds(), self._config.poll_idle.total_seconds()
        return min(longest, max(shortest, quiet / 5))

    def _confirm(self) -> None:
        """Write down that the whole delta is acknowledged, if one is."""
        if self._sent:
            if self._leaves:
                self.state = self._row.read_again(self.state)
            if self._leaves:
                self._producer.leave(self._may_go_on)
            self.state, self._sent = self._row.confirm(self.state), False
            hooks.fire(points.CONFIRMED, shard=self.state.shard, delta=self.state.delta)
