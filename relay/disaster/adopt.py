"""Go on with another Kafka cluster: what was sent to the old one is neither lost nor applied again.

The relay's part of a database: its identity, and a generation above the old one, so that the old cluster's
numbers can hide nothing. The consumers' part: their offsets begin anew, their marks stay and drop what was
applied. One transaction: whatever interrupts it, nothing happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from outbox import hooks
from outbox.errors import GuardViolation
from relay import database, guards, points
from relay.cluster import Cluster, opened
from relay.database import Connection, OutcomeUnknown
from relay.disaster.rebase import IN_USE, refuse_while_busy, require_owner

LOCK_SHARDS = "SELECT shard, next IS NOT NULL FROM outbox_shard ORDER BY shard FOR UPDATE"

RESHARDING = "SELECT EXISTS (SELECT FROM outbox_reshard)"

WAITING = """
SELECT (SELECT count(*) FROM outbox_parked), (SELECT count(*) FROM outbox_job WHERE ended_at IS NULL)
"""
"""Where parked events may have landed is known by offsets of the old cluster only."""

KNOWN_CLUSTER = "SELECT kafka_cluster_id FROM outbox_identity"

SENT_TO = "SELECT DISTINCT topic FROM outbox_topic ORDER BY topic"

READ_FROM = """
SELECT grp, topic, partition, next_offset, parked FROM consumer_offset
WHERE cluster_id <> %(cluster)s ORDER BY grp, topic, partition FOR UPDATE
"""

ADOPT_IDENTITY = "UPDATE outbox_identity SET kafka_cluster_id = %(cluster)s"

FORGET_TOPICS = "DELETE FROM outbox_topic"
"""Partition counts of the old cluster."""

NEXT_GENERATION = """
UPDATE outbox_shard SET generation = generation + 1, epoch = epoch + 1,
    wanted_mode = CASE mode WHEN 'transactional' THEN mode ELSE wanted_mode END
"""
"""The other cluster knows nothing of a transactional shard yet: it begins its records there from its row."""

BEGIN_ANEW = """
UPDATE consumer_offset
SET cluster_id = %(cluster)s, topic_id = %(topic_id)s, next_offset = 0, leader_epoch = NULL,
    owner_epoch = owner_epoch + 1, updated_at = clock_timestamp()
WHERE topic = %(topic)s AND cluster_id <> %(cluster)s
"""
"""Read everything; `sources` stays, and drops what was applied. The epoch fences whoever reads the old."""

FORGET_DISCARDED = """
DELETE FROM consumer_parked p USING consumer_offset o
WHERE (o.grp, o.topic, o.partition) = (p.grp, p.topic, p.partition) AND o.topic = %(topic)s
  AND p.state = 'discarded'
"""
"""They name offsets of the old topic, where the new one holds other records."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was done, or with `changed` False what would be."""

    changed: bool
    cluster: str
    before: str | None
    shards: int
    topics: tuple[str, ...]
    groups: tuple[str, ...]


class Adoption:
    """Moves one database to the cluster behind `new`.

    `old`: the cluster that was used so far, None if it cannot be reached any more. `mirrored`: the new topics
    hold a copy of the old ones, and mirroring has stopped; otherwise they must be empty and, before that,
    each consumer here must have read the old ones to their ends (`drained` asserts it where `old` is None).
    Raises GuardViolation, SchemaError or ConfigurationError where it may not be done: nothing was changed.
    """

    def __init__(
        self,
        url: str,
        new: Mapping[str, Any],
        *,
        old: Mapping[str, Any] | None,
        mirrored: bool = False,
        drained: bool = False,
    ) -> None:
        self._url = url
        self._new = new
        self._old = old
        self._mirrored = mirrored
        self._drained = drained

    def run(self, *, dry_run: bool = False) -> Adopted:
        """Do it. Raises OutcomeUnknown when the commit's answer is missing: run it again."""
        with opened(self._new) as new, database.open_plain(self._url) as connection:
            connection.add_notice_handler(connection.remember)
            if self._old is None:
                done = self._in_transaction(connection, new, None, dry_run)
            else:
                with opened(self._old) as old:
                    done = self._in_transaction(connection, new, old, dry_run)
            connection.warned = None
            try:
                connection.rollback() if dry_run else connection.commit()
            except psycopg.Error as error:
                raise database.failed(error) from error
            if connection.warned is not None:
                raise OutcomeUnknown(connection.warned)
            return done

    def _in_transaction(
        self, connection: Connection, new: Cluster, old: Cluster | None, dry_run: bool
    ) -> Adopted:
        for setting in ("synchronous_commit = on", "lock_timeout = '10s'", "statement_timeout = 0"):
            connection.execute(f"SET LOCAL {setting}".encode())
        guards.require_version(connection)
        require_owner(connection)
        cluster = new.id
        try:
            shards = database.execute(connection, LOCK_SHARDS).fetchall()
            reading = database.execute(connection, READ_FROM, {"cluster": cluster}).fetchall()
        except OutcomeUnknown as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise GuardViolation(IN_USE) from error
            raise
        known = database.execute(connection, KNOWN_CLUSTER).fetchone()
        before = known[0] if known is not None else None
        moving = before is not None and before != cluster
        sent = [t for (t,) in database.execute(connection, SENT_TO).fetchall()] if moving else []
        if old is not None and before is not None and moving and old.id != before:
            raise GuardViolation(f"--from is Kafka cluster {old.id}, but events went to {before}")
        if moving:
            refuse_while_busy(connection)
            self._require_drained_relay(connection, shards)
        self._require_no_parked(reading)
        self._compare(new, old, sent, reading)
        topics = sorted({topic for _, topic, *_ in reading})
        if not dry_run:
            if moving:
                _execute(connection, ADOPT_IDENTITY, "identity", {"cluster": cluster})
                _execute(connection, FORGET_TOPICS, "topics")
                _execute(connection, NEXT_GENERATION, "generation")
            for topic in topics:
                values = {"topic": topic, "cluster": cluster, "topic_id": new.topic_id(topic)}
                database.execute(connection, FORGET_DISCARDED, values)
                _execute(connection, BEGIN_ANEW, "offsets", values)
        groups = tuple(sorted({group for group, *_ in reading}))
        done = (moving or bool(reading)) and not dry_run
        return Adopted(
            done, cluster, before, len(shards) if moving else 0, tuple(sorted({*sent, *topics})), groups
        )

    def _require_drained_relay(self, connection: Connection, shards: list[tuple[Any, ...]]) -> None:
        if planned := [shard for shard, open_ in shards if open_]:
            raise GuardViolation(
                f"shard {', '.join(map(str, planned))} has a planned delta, part of which may lie in the old "
                "cluster; start `outbox-relay run` against the old cluster, stop it once it is idle, and run "
                "this again"
            )
        parked, replays = database.execute(connection, WAITING).fetchall()[0]
        if parked:
            raise GuardViolation(
                f"{parked} events are parked, and whether they landed is known for the old cluster only; "
                "release or discard them against the old one first: outbox-relay parked list"
            )
        if replays:
            raise GuardViolation(
                "a replay is under way; let the relay finish it against the old cluster, or cancel it: "
                "outbox-relay replay --list"
            )
        if database.execute(connection, RESHARDING).fetchone() == (True,):
            raise GuardViolation(
                "the number of shards is being changed; let the relay finish that against the old one, or "
                "cancel it: outbox-relay shards cancel"
            )

    def _require_no_parked(self, reading: list[tuple[Any, ...]]) -> None:
        if parked := sorted({f"{group} {topic}" for group, topic, _, _, parked in reading if parked}):
            raise GuardViolation(
                f"records of {', '.join(parked)} are parked under offsets of the old cluster; release or "
                "discard them first: outbox-relay consumers parked"
            )

    def _compare(
        self, new: Cluster, old: Cluster | None, sent: list[str], reading: list[tuple[Any, ...]]
    ) -> None:
        """The new topics are what the mode says they are; the old ones are read to their ends, or copied."""
        if reading and old is None and not self._drained:
            raise GuardViolation(
                "whether the consumers here have read everything cannot be told without the old cluster; "
                "name it with --from, or say that they have with --consumers-drained"
            )
        for topic in sorted({*sent, *(topic for _, topic, *_ in reading)}):
            there = new.ends(topic)
            if there is None:
                raise GuardViolation(f"topic {topic} does not exist in the new cluster; create it")
            before = old.ends(topic) if old is not None else None
            if self._mirrored:
                if old is None or before is None:
                    raise GuardViolation(f"topic {topic} of the old cluster is needed to compare its copy")
                if before.keys() != there.keys():
                    raise GuardViolation(
                        f"topic {topic} has {len(before)} partitions in the old cluster and {len(there)} in "
                        "the new one; a mirrored topic must have as many"
                    )
                for partition, end in before.items():
                    if old.last(topic, partition, end) != new.last(topic, partition, there[partition]):
                        raise GuardViolation(
                            f"topic {topic}, partition {partition}: the copy does not end with the old one's "
                            "last record; let mirroring finish, then stop it"
                        )
                continue
            if full := [partition for partition, end in there.items() if not end.empty]:
                raise GuardViolation(
                    f"topic {topic} of the new cluster holds records in partition {full[0]}; give empty "
                    "topics, or --mirrored if they are a copy"
                )
            if before is not None:
                self._require_drained(topic, before, reading)

    def _require_drained(self, topic: str, ends: Mapping[int, Any], reading: list[tuple[Any, ...]]) -> None:
        for group, of, partition, offset, _ in reading:
            if of == topic and partition in ends and offset < ends[partition].high:
                raise GuardViolation(
                    f"group {group} has read {topic}[{partition}] up to {offset} of {ends[partition].high}; "
                    "run its consumers against the old cluster until they are through, then stop them"
                )


def _execute(connection: Connection, statement: str, step: str, values: dict[str, Any] | None = None) -> None:
    database.execute(connection, statement, values)
    hooks.fire(points.ADOPTING, step=step)
