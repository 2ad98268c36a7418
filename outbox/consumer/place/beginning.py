"""Begin once where the group was told to; what appears afterwards is read from its beginning.

A partition is found some time after it was made, and records may be in it by then: a group that begins at the
end must not begin there again, or it would never apply them. So the first member that meets a topic writes
down the place of every partition it has, in one transaction. A partition without a row beside others that
have one can then only be a later one, unless a person placed those. Topics read by one pattern begin
together, as one topic would.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from sqlalchemy import Connection, text

from outbox.consumer.assignment import Key
from outbox.consumer.database import Database
from outbox.consumer.identity import Identities, TopicIdentity
from outbox.consumer.place.position import Misplaced, command
from outbox.consumer.settings import Start

TIMEOUT = 5.0
"""Seconds a question to the brokers may take: short, it is asked between two polls."""

# Promise: of two members that meet a topic at once, one writes its beginning and the other sees that.
ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended('outbox consumer begins ' || :grp, 0))")

# Promise: who is frozen or cut off in here keeps nobody else waiting for ever.
BOUND = text("""
SELECT set_config('lock_timeout', '10000', true),
       set_config('idle_in_transaction_session_timeout', '5000', true)
""")

# Served by the primary key, whose first column is the group.
KNOWN = text("SELECT DISTINCT topic FROM consumer_offset WHERE grp = :grp")

# Promise: how many partitions the topic had when the group met it. Served by the primary key.
MET = text("SELECT min(partitions) FROM consumer_offset WHERE grp = :grp AND topic = :topic")

# Promise: a partition's first offset is written once, whoever comes first, with why it is this one.
FIRST = text("""
INSERT INTO consumer_offset (grp, topic, partition, cluster_id, topic_id, next_offset, partitions,
    moved_at, moved_by, moved_why, moved_to)
VALUES (:grp, :topic, :partition, :cluster_id, :topic_id, :next_offset, :partitions,
    clock_timestamp(), :owner, :why, :next_offset)
ON CONFLICT (grp, topic, partition) DO NOTHING
""")


def appeared_later(known: Iterable[str], began: Callable[[str], object]) -> bool:
    """Has the group begun already with what this partition belongs to?"""
    return any(began(topic) for topic in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """Writes the first rows of one group's partitions, also inside a callback of the client: there its
    list_topics() would make confluent-kafka (2.16) forget the call under way, and end the process at the next
    callback, be it a line of the log. identities: tell how many partitions a topic has.
    together: the topics that begin with a topic, itself included, and a test for those that once did.
    """

    client: KafkaConsumer
    database: Database
    group: str
    owner: str
    identities: Identities
    start: Start
    together: Callable[[str], tuple[Iterable[str], Callable[[str], object]]]

    def write(self, topic: str, partition: int, identity: TopicIdentity) -> None:
        """See to it that the partition has a row.

        Raises KafkaException, or Misplaced where a person has to say where. Nothing was written then.
        """
        topics, began = self.together(topic)
        # The brokers are asked before anybody is kept waiting.
        first = {(topic, partition): self.bounds(topic, partition)[0]}
        identified = {topic: identity}
        ends: dict[Key, int] = {}
        if self.start != "earliest":
            identified = self._identified({topic, *topics}, topic, identity)
            counts = {name: found.partitions or 0 for name, found in identified.items()}
            if partition >= counts[topic]:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
            if self.start != "stop":
                ends = {(name, n): self._start(name, n) for name in counts for n in range(counts[name])}
        self.database.transact(lambda: self._store(began, identified, first, ends))

    def _store(
        self,
        began: Callable[[str], object],
        identified: Mapping[str, TopicIdentity],
        first: Mapping[Key, int],
        ends: Mapping[Key, int],
    ) -> None:
        """One transaction: all of them where the group starts, or the one that appeared later at its
        beginning."""
        with (
            self.database.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection,
            connection.begin(),
        ):
            connection.execute(BOUND)
            connection.execute(ALONE, {"grp": self.group})
            known = connection.scalars(KNOWN, {"grp": self.group}).all()
            ((topic, partition),) = first
            later = self.start == "earliest" or appeared_later(known, began)
            others = [name for name in known if name != topic]
            if self.start == "stop" or (self.start != "earliest" and not appeared_later(others, began)):
                # A person may have said where for one partition, and not yet for this one: the row counts
                # those that were there.
                met = connection.scalar(MET, {"grp": self.group, "topic": topic})
                later = later and (met is None or partition >= met)
            if later:
                start = self.start == "earliest"
                why = "start=earliest" if start else "it appeared after the group began"
                self._insert(connection, identified, first, why)
            elif self.start == "stop":
                raise Misplaced(
                    f"group {self.group} never read it, and start='stop'; say where: "
                    f"{command('seek', self.group, topic, partition, ' --to beginning')}",
                    moves=None,
                )
            else:
                self._insert(connection, identified, ends, f"start={self.start}")

    def _insert(
        self,
        connection: Connection,
        identified: Mapping[str, TopicIdentity],
        offsets: Mapping[Key, int],
        why: str,
    ) -> None:
        rows = [
            {
                "grp": self.group,
                "topic": topic,
                "partition": partition,
                "cluster_id": identified[topic].cluster_id,
                "topic_id": identified[topic].topic_id,
                "next_offset": offset,
                "partitions": identified[topic].partitions,
                "owner": self.owner,
                "why": why,
            }
            for (topic, partition), offset in offsets.items()
        ]
        connection.execute(FIRST, rows)

    def _identified(
        self, topics: Iterable[str], topic: str, identity: TopicIdentity
    ) -> dict[str, TopicIdentity]:
        others = set(topics) - {topic}
        found = self.identities.look(others) if others else {}
        known = {name: it for name, it in found.items() if isinstance(it, TopicIdentity)}
        return {topic: identity, **known}

    def _start(self, topic: str, partition: int) -> int:
        """The end, or the first record of the time at which the group starts."""
        end = self.bounds(topic, partition)[1]
        if not isinstance(self.start, datetime):
            return end
        place = TopicPartition(topic, partition, int(self.start.timestamp() * 1000))
        (found,) = self.client.offsets_for_times([place], timeout=TIMEOUT)
        if found.error is not None:
            raise KafkaException(found.error)
        return end if found.offset < 0 else found.offset

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Its oldest offset, and its end. Raises KafkaException."""
        place = TopicPartition(topic, partition)
        bounds = self.client.get_watermark_offsets(place, timeout=TIMEOUT, cached=False)
        if bounds is None:
            raise KafkaException("no answer")
        return bounds
