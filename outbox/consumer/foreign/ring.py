"""Empty a leaf of the inbox once no partition of any group can meet a repeat of its ids.

How far a partition has seen is a moment of the database's clock: all that was appended to it until then is
done with. To learn it, the end of its log is asked after the clock was read, and kept until the offset has
passed it. A repeat appended less than the window after its first copy was appended less than the window after
the end of the leaf that holds the id; so when every partition has seen that moment, every such repeat was
dropped. Neither the clocks of producers nor the speed or the stops of consumers take part in this.
"""

import logging
import random
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError

from outbox import hooks
from outbox.consumer.assignment import describe
from outbox.consumer.claim import Claim
from outbox.consumer.database import Database
from outbox.consumer.foreign.inbox import Inbox
from outbox.consumer.notice import Notice
from outbox.consumer.outcome import brief
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two questions for the ends of the logs."""

SWEEP_EVERY = 600.0
"""Seconds between two looks for leaves that may be emptied: one is filled in twelve hours."""

TIMEOUT = 10.0
"""Seconds the brokers have to answer; nobody waits for it."""

LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

NOW = text("SELECT clock_timestamp()")

# Promise: inbox_read_through is a moment until which all that was appended is done with. The end of the log
# was asked after :now, the row's own one after its inbox_seen_at; only the owner under this epoch says so.
# The first clause is for minutes without anything new. Served by the primary key.
SEEN = text("""
UPDATE consumer_offset o SET
    inbox_read_through = CASE
        WHEN o.next_offset >= g.high THEN :now
        WHEN o.next_offset >= o.inbox_seen_high THEN o.inbox_seen_at
        ELSE o.inbox_read_through END,
    inbox_seen_at = CASE WHEN o.next_offset < o.inbox_seen_high THEN o.inbox_seen_at ELSE :now END,
    inbox_seen_high = CASE WHEN o.next_offset < o.inbox_seen_high THEN o.inbox_seen_high ELSE g.high END
FROM unnest(CAST(:topics AS text[]), CAST(:partitions AS integer[]), CAST(:epochs AS bigint[]),
    CAST(:highs AS bigint[])) AS g (topic, partition, epoch, high)
WHERE o.grp = :grp AND o.topic = g.topic AND o.partition = g.partition AND o.owner_epoch = g.epoch
  AND o.inbox_window IS NOT NULL AND set_config('lock_timeout', '1s', true) IS NOT NULL
""")

SWEEP = text("SELECT consumer_inbox_sweep()")

# Who keeps leaves from being emptied: nobody works on it, or it is half a day behind. A row for each
# partition of each group, read once in ten minutes.
HELD = text("""
SELECT * FROM (
    SELECT grp, topic, partition, inbox_read_through AS seen,
        greatest(updated_at, inbox_read_through) < clock_timestamp() - interval '15 minutes' AS idle,
        inbox_read_through < clock_timestamp() - interval '12 hours' AS behind,
        greatest(updated_at, inbox_read_through) AS since
    FROM consumer_offset WHERE inbox_window IS NOT NULL) o
WHERE idle OR behind ORDER BY grp <> :grp, since LIMIT 1
""")


class InboxRing:
    """Watches how far one member's partitions have seen, and has leaves emptied."""

    def __init__(self, database: Database, group: str, inbox: Inbox, properties: Mapping[str, Any]) -> None:
        self._database = database
        self._group = group
        self._inbox = inbox
        self._properties = dict(properties)
        self._admin: AdminClient | None = None
        self._asked: dict[TopicPartition, Future[Any]] = {}
        self._epochs: dict[tuple[str, int], int] = {}
        self._now: datetime | None = None
        self._due = 0.0
        self._sweep_due = time.monotonic() + random.uniform(0, SWEEP_EVERY)
        self._others = Notice()
        self.notice = Notice()
        self.access = Notice()

    def run_once(self, partitions: Iterable[Partition]) -> int:
        """Ask, take answers, sweep, each when it is due; returns how many leaves were emptied. Never waits
        for a broker, and never raises for what time can mend."""
        now = time.monotonic()
        answered = bool(self._asked) and all(future.done() for future in self._asked.values())
        if not answered and (now < self._due or self._asked):
            return 0
        claims = [p.claim for p in partitions if p.reads() and p.claim is not None]
        try:
            return self._database.transact(lambda: self._step(claims, now, answered=answered))
        except SQLAlchemyError as error:
            self._sweep_due = 0.0  # the next sweep that succeeds ends the trouble
            self.access.trouble(
                f"the inbox's leaves cannot be watched: {brief(error)}; does this role have the consumer's "
                "rights (outbox-relay db roles)?"
            )
        except KafkaException as error:
            log.info("the brokers do not tell the ends of the logs: %s", describe(error))
        return 0

    def _step(self, claims: list[Claim], now: float, *, answered: bool) -> int:
        if answered:
            self._note()
        if now >= self._due:
            self._due = now + EVERY
            self._ask(claims)
        if now >= self._sweep_due and self._admin is not None:
            self._sweep_due = now + SWEEP_EVERY
            return self._sweep()
        if self._admin is None:  # nothing of ours is in the inbox
            self.access.over("the inbox's leaves can be watched again")
        return 0

    def _ask(self, claims: list[Claim]) -> None:
        """First the clock, then the ends: all that was appended until the clock was read lies below them."""
        self._inbox.prepare(claims)
        watched = [claim for claim in claims if self._inbox.window(claim.topic) is not None]
        if not watched:
            return
        if self._admin is None:
            self._admin = AdminClient(self._properties)
        with self._database.engine.connect() as connection:
            self._now = connection.execute(NOW).scalar_one()
        self._epochs = {(claim.topic, claim.partition): claim.epoch for claim in watched}
        # What is committed or not decided yet counts too: the high watermark, not the last stable offset.
        self._asked = self._admin.list_offsets(
            {TopicPartition(*place): LATEST for place in self._epochs},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=TIMEOUT,
        )

    def _note(self) -> None:
        """Store what the brokers said; those that said nothing are asked again with the next clock."""
        asked, self._asked = self._asked, {}
        ends: dict[tuple[str, int], int] = {}
        for place, future in asked.items():
            try:
                ends[place.topic, place.partition] = future.result().offset
            except KafkaException as error:
                log.info("%s[%s]: its end is not known: %s", place.topic, place.partition, describe(error))
        if not ends:
            return
        with self._database.engine.begin() as connection:
            connection.execute(
                SEEN,
                {
                    "grp": self._group,
                    "now": self._now,
                    "topics": [topic for topic, _ in ends],
                    "partitions": [partition for _, partition in ends],
                    "epochs": [self._epochs[place] for place in ends],
                    "highs": list(ends.values()),
                },
            )
        hooks.fire("consumer.inbox_seen", group=self._group, partitions=len(ends))

    def _sweep(self) -> int:
        emptied = 0
        with self._database.engine.connect().execution_options(
            isolation_level="READ COMMITTED"
        ) as connection:
            more = True
            while more:
                with connection.begin():
                    more = connection.execute(SWEEP).scalar_one()
                emptied += more
            with connection.begin():
                held = connection.execute(HELD, {"grp": self._group}).one_or_none()
        if emptied:
            hooks.fire("consumer.inbox_swept", group=self._group, leaves=emptied)
        self.access.over("the inbox's leaves can be watched again")
        self._tell(held)
        return emptied

    def _tell(self, held: Row[Any] | None) -> None:
        for notice, concerned in ((self.notice, True), (self._others, False)):
            if held is None or (held.grp == self._group) is not concerned:
                notice.over("the inbox's leaves can be emptied again")
        if held is None:
            return
        what = f"{held.topic}[{held.partition}] of group {held.grp}"
        words = (
            f"nobody has read {what} since {held.since:%Y-%m-%d %H:%M}, so the inbox keeps every id; start "
            "its consumer or mend what stopped it; if the group is gone, delete its rows in consumer_offset"
            if held.idle
            else f"{what} has read no further than what was there at {held.seen:%Y-%m-%d %H:%M}, so the "
            "inbox keeps every id since; it needs more consumers or faster handlers"
        )
        (self.notice if held.grp == self._group else self._others).trouble(words)
        hooks.fire(
            "consumer.inbox_held",
            group=held.grp,
            topic=held.topic,
            partition=held.partition,
            since=held.since,
            idle=held.idle,
        )
