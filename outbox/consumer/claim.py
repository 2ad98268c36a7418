"""Take over a partition so that whoever owned it before can change nothing any more.

A claim raises the row's owner_epoch and returns the offset and marks that belong to it. Every batch names the
epoch it was polled under, so a former owner's transaction either ended before the claim or changes no row.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, text

from outbox import hooks
from outbox.consumer.database import Database
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.place import move
from outbox.consumer.place.move import Spot
from outbox.consumer.place.position import Misplaced, Positions, command
from outbox.consumer.release import Release
from outbox.consumer.watermark import Marks

log = logging.getLogger(__name__)

# Promise: the epoch is handed out once only, also across a crash of the server: the claim's commit is flushed
# whatever the session's synchronous_commit. Nothing changes if cluster or topic are others than the row's.
# Served by the primary key.
CLAIM = text("""
UPDATE consumer_offset
SET owner_epoch = owner_epoch + 1, owner = :owner, backend_pid = pg_backend_pid(),
    claims = CASE WHEN claimed_offset = next_offset THEN claims + 1 ELSE 1 END, claimed_offset = next_offset,
    cluster_id = coalesce(cluster_id, :cluster_id), topic_id = coalesce(topic_id, :topic_id),
    partitions = coalesce(partitions, :partitions),
    updated_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND (cluster_id = :cluster_id) IS NOT FALSE AND (topic_id = :topic_id) IS NOT FALSE AND retired IS NULL
  AND set_config('synchronous_commit', 'on', true) = 'on'
RETURNING owner_epoch, next_offset, sources::text, parked,
    claims >= 3 OR coalesce(tried_offset = next_offset, false), run_up, moves, leader_epoch
""")

# Promise: what a person discarded is not run when it is read again. Served by the primary key.
DISCARDED = text("""
SELECT record_offset FROM consumer_parked
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset >= :next_offset
  AND state = 'discarded'
""")

IDENTITY = text("""
SELECT cluster_id, topic_id, next_offset, partitions, retired, moves FROM consumer_offset
WHERE grp = :grp AND topic = :topic AND partition = :partition
""")

# Promise: how many partitions the topic had when this group began with it. Served by the primary key.
KNOWN = text("""
SELECT min(partitions) AS partitions, max(retired) AS retired FROM consumer_offset
WHERE grp = :grp AND topic = :topic
""")

PREPARE = text("SELECT pg_backend_pid(), set_config('lock_timeout', :milliseconds, true)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to move one partition's offset, until somebody claims it after us.

    suspect: one of its next records may have ended the processes of those who had it before: this is the
    third claim in a row at one offset, or a stored try of the record there was never concluded.
    run_up: how far the marks were rebuilt (-1: not begun); None when they are whole, and records may be
    applied. discarded: offsets not read yet that are never to be run. moves: how often somebody moved the
    offset on purpose. leader_epoch: of the record before it, None if unknown.
    """

    group: str
    topic: str
    partition: int
    epoch: int
    next_offset: int
    marks: Marks
    parked: int
    suspect: bool
    identity: TopicIdentity
    run_up: int | None = None
    discarded: frozenset[int] = frozenset()
    moves: int = 0
    leader_epoch: int | None = None


class Replaced(Misplaced):
    """Another topic or cluster than the row's, and `positions` lets us go on there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimer:
    """Claims partitions for one group member."""

    database: Database
    group: str
    owner: str
    patience: timedelta
    positions: Positions = field(default_factory=Positions)

    def claim(
        self,
        topic: str,
        partition: int,
        identity: TopicIdentity,
        begin: Callable[[], None],
        beginning: Callable[[], int],
    ) -> Claim:
        """Own the partition from now on.

        begin: writes its row; called only if this group has never read the partition. beginning: the oldest
        offset there is, asked only if `positions` lets the group go on in another topic than it has read.
        Raises GuardViolation if it may not be read from where its row says: nothing was changed then.
        """
        key: dict[str, Any] = {
            "grp": self.group,
            "topic": topic,
            "partition": partition,
            "cluster_id": identity.cluster_id,
            "topic_id": identity.topic_id,
            "partitions": identity.partitions,
            "owner": self.owner,
        }
        try:
            claim = self.database.transact(lambda: self._attempt(key, identity))
        except Replaced as replaced:
            self._accept(key, identity, replaced, beginning())
            claim = self.database.transact(lambda: self._attempt(key, identity))
        if claim is None:
            known = self.database.transact(lambda: self._known(key))
            if known is not None and partition >= known:
                self._grown(topic, known, identity.partitions)
            begin()
            claim = self.database.transact(lambda: self._attempt(key, identity))
        assert claim is not None, "the row was just inserted, or belongs to another topic"
        hooks.fire(
            "consumer.claimed",
            group=self.group,
            topic=topic,
            partition=partition,
            epoch=claim.epoch,
            next_offset=claim.next_offset,
        )
        return claim

    def _attempt(self, key: dict[str, Any], identity: TopicIdentity) -> Claim | None:
        """One transaction; None if the partition has no row yet."""
        with (
            self.database.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection,
            connection.begin(),
        ):
            # The way out if the blocker cannot be terminated: the claim fails and is tried again.
            bound = {"milliseconds": str(int(self.patience.total_seconds() * 4000))}
            pid = connection.execute(PREPARE, bound).one()[0]
            with Release(self.database, pid, self.patience, key):
                row = connection.execute(CLAIM, key).one_or_none()
            if row is None:
                self._check(connection, key, identity)
                return None
            discarded = connection.execute(DISCARDED, {**key, "next_offset": row[1]}).scalars()
            return Claim(
                group=key["grp"],
                topic=key["topic"],
                partition=key["partition"],
                epoch=row[0],
                next_offset=row[1],
                marks=Marks.load(row[2]),
                parked=row[3],
                suspect=row[4],
                identity=identity,
                run_up=row[5],
                discarded=frozenset(discarded),
                moves=row[6],
                leader_epoch=row[7],
            )

    def _check(self, connection: Connection, key: dict[str, Any], identity: TopicIdentity) -> None:
        """Why is there a row that we could not claim? Raises Misplaced; or there is none."""
        found = connection.execute(IDENTITY, key).one_or_none()
        if found is None:
            return
        topic = key["topic"]
        if found.retired is not None:
            raise Misplaced(_retired(self.group, found.retired), moves=found.moves)
        if identity.agrees(TopicIdentity(found.cluster_id, found.topic_id)):
            return  # another member has just written the first one
        stored = TopicIdentity(found.cluster_id, found.topic_id, found.partitions)
        moved = not identity.agrees(TopicIdentity(found.cluster_id, None))
        difference = identity.difference(topic, cluster_id=found.cluster_id, topic_id=found.topic_id)
        policy = self.positions.cluster if moved else self.positions.recreated
        if policy != "stop" and _same_number(stored, identity):
            raise Replaced(difference, moves=found.moves)
        raise Misplaced(
            f"{difference} Its offset {found.next_offset} in consumer_offset means other records. To read "
            f"what is there now, run: {command('accept', self.group, topic)}"
            + (", or outbox-relay adopt" if moved else ""),
            moves=found.moves,
        )

    def _accept(self, key: dict[str, Any], identity: TopicIdentity, replaced: Replaced, to: int) -> None:
        """Go on in the topic that is there now, as the policy says."""
        spot = Spot(group=self.group, topic=key["topic"], partition=key["partition"])
        why = f"by positions: {replaced}"

        def go_on() -> bool:
            with self.database.engine.begin() as connection:
                move.bound(connection, self.patience * 4)
                row = connection.execute(move.HOLD, spot.values()).one()
                if row.moves == replaced.moves:
                    at, who = row.next_offset, self.owner
                    move.go_on(connection, spot, origin=at, to=to, who=who, why=why, identity=identity)
                return bool(row.moves == replaced.moves)

        if self.database.transact(go_on):
            move.say(spot, to, why)

    def _known(self, key: dict[str, Any]) -> int | None:
        """How many partitions the topic had when the group began with it; None: it has not."""
        with self.database.engine.connect() as connection:
            known = connection.execute(KNOWN, key).one()
        if known.retired is not None:
            raise Misplaced(_retired(self.group, known.retired), moves=None)
        return None if known.partitions is None else int(known.partitions)

    def _grown(self, topic: str, before: int | None, now: int | None) -> None:
        """Partitions were added to a topic that the group reads. Raises Misplaced, if that is the policy."""
        what = (
            f"topic {topic} had {before} partitions and has {now}: keys moved, and a key's records from "
            "before and after are applied independently of each other"
        )
        if self.positions.partitions == "stop":
            accept = command("accept", self.group, topic)
            raise Misplaced(f"{what}. Once the old ones are read to their ends, run: {accept}", moves=None)
        log.error("group %s: %s", self.group, what)
        hooks.fire("consumer.repartitioned", group=self.group, topic=topic, before=before, now=now)


def _same_number(one: TopicIdentity, other: TopicIdentity) -> bool:
    return one.partitions is None or other.partitions is None or one.partitions == other.partitions


def _retired(group: str, why: str) -> str:
    return f"group {group} is retired, it applies nothing any more: {why}"
