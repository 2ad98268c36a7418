"""Take over a partition so that whoever owned it before can change nothing any more.

A claim raises the row's owner_epoch and returns the offset and marks that belong to it. Every batch names the
epoch it was polled under, so a former owner's transaction either ended before the claim or changes no row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from outbox import hooks
from outbox.consumer.database import Database
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.release import Release
from outbox.consumer.watermark import Marks
from outbox.errors import GuardViolation

# Promise: the epoch is handed out once only, also across a crash of the server: the claim's commit is flushed
# whatever the session's synchronous_commit. Nothing changes if cluster or topic are others than the row's.
# Served by the primary key.
CLAIM = text("""
UPDATE consumer_offset
SET owner_epoch = owner_epoch + 1, owner = :owner, backend_pid = pg_backend_pid(),
    claims = CASE WHEN claimed_offset = next_offset THEN claims + 1 ELSE 1 END, claimed_offset = next_offset,
    cluster_id = coalesce(cluster_id, :cluster_id), topic_id = coalesce(topic_id, :topic_id),
    updated_at = clock_timestamp()
WHERE grp = :grp AND topic = :topic AND partition = :partition
  AND (cluster_id = :cluster_id) IS NOT FALSE AND (topic_id = :topic_id) IS NOT FALSE
  AND set_config('synchronous_commit', 'on', true) = 'on'
RETURNING owner_epoch, next_offset, sources::text, parked,
    claims >= 3 OR coalesce(tried_offset = next_offset, false)
""")

IDENTITY = text("""
SELECT cluster_id, topic_id, next_offset FROM consumer_offset
WHERE grp = :grp AND topic = :topic AND partition = :partition
""")

PREPARE = text("SELECT pg_backend_pid(), set_config('lock_timeout', :milliseconds, true)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to move one partition's offset, until somebody claims it after us.

    suspect: one of its next records may have ended the processes of those who had it before: this is the
    third claim in a row at one offset, or a stored try of the record there was never concluded.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimer:
    """Claims partitions for one group member."""

    database: Database
    group: str
    owner: str
    patience: timedelta

    def claim(self, topic: str, partition: int, identity: TopicIdentity, begin: Callable[[], None]) -> Claim:
        """Own the partition from now on.

        begin: writes its row; called only if this group has never read the partition.
        Raises GuardViolation if the offsets belong to another cluster or topic: nothing was changed then.
        """
        key = {
            "grp": self.group,
            "topic": topic,
            "partition": partition,
            "cluster_id": identity.cluster_id,
            "topic_id": identity.topic_id,
        }
        claim = self.database.transact(lambda: self._attempt(key, identity))
        if claim is None:
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

    def _attempt(self, key: dict[str, object], identity: TopicIdentity) -> Claim | None:
        """One transaction; None if the partition has no row yet."""
        with (
            self.database.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection,
            connection.begin(),
        ):
            # The way out if the blocker cannot be terminated: the claim fails and is tried again.
            bound = {"milliseconds": str(int(self.patience.total_seconds() * 4000))}
            pid = connection.execute(PREPARE, bound).one()[0]
            with Release(self.database, pid, self.patience, key):
                row = connection.execute(CLAIM, {**key, "owner": self.owner}).one_or_none()
            if row is None:
                _check_identity(connection, key, identity)
                return None
            return Claim(
                group=str(key["grp"]),
                topic=str(key["topic"]),
                partition=int(str(key["partition"])),
                epoch=row[0],
                next_offset=row[1],
                marks=Marks.load(row[2]),
                parked=row[3],
                suspect=row[4],
                identity=identity,
            )


def _check_identity(connection: Connection, key: dict[str, object], identity: TopicIdentity) -> None:
    found = connection.execute(IDENTITY, key).one_or_none()
    if found is None or identity.agrees(TopicIdentity(found.cluster_id, found.topic_id)):
        return  # there is none yet, or another member has just written the first one
    moved = not identity.agrees(TopicIdentity(found.cluster_id, identity.topic_id))
    raise GuardViolation(
        identity.difference(str(key["topic"]), cluster_id=found.cluster_id, topic_id=found.topic_id)
        + f" Its offset {found.next_offset} in consumer_offset means other records. {_remedy(key, moved)}"
    )


def _remedy(key: dict[str, object], moved: bool) -> str:
    if moved:
        return "To go on with this cluster, run: outbox-relay adopt"
    return (
        "To read the new ones from where this group starts, stop its consumers and delete the rows of "
        f"grp = '{key['grp']}', topic = '{key['topic']}' from consumer_offset and consumer_parked"
    )
