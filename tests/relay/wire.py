"""Judge what arrived, with a plain consumer and rules of its own: shares no code with the framework."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition


@dataclass(frozen=True, slots=True)
class Arrived:
    """One record as it lies in its partition."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    time: int
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def id(self) -> str:
        return (dict(self.headers)["id"] or b"").decode()

    @property
    def seq(self) -> str:
        return (dict(self.headers)["outbox-seq"] or b"").decode()

    @property
    def content(self) -> tuple[object, ...]:
        """All that a repeat must have in common with the first copy."""
        return (self.topic, self.partition, self.key, self.value, self.time, self.headers)


def read(bootstrap: str, *topics: str) -> list[Arrived]:
    """All records of these topics, partition by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reads-without-a-group",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "socket.timeout.ms": 5000,
        }
    )
    try:
        known = consumer.list_topics(timeout=20).topics
        places = [TopicPartition(t, p, 0) for t in topics for p in known[t].partitions]
        consumer.assign(places)
        found: list[Arrived] = []
        open_ = {(place.topic, place.partition) for place in places}
        end = time.monotonic() + 30
        while open_:
            assert time.monotonic() < end, f"{sorted(open_)} have not ended"
            for message in consumer.consume(2000, 0.1):
                end = time.monotonic() + 30  # of silence: half a million records take longer to read
                topic, partition = message.topic(), message.partition()
                assert topic is not None
                assert partition is not None
                if message.error() is not None:
                    assert message.error().name() == "_PARTITION_EOF", message.error()  # type: ignore[union-attr]
                    open_.discard((topic, partition))
                    continue
                found.append(
                    Arrived(
                        topic,
                        partition,
                        message.offset() or 0,
                        message.key(),
                        message.value(),
                        message.timestamp()[1],
                        tuple(message.headers() or ()),  # type: ignore[arg-type]
                    )
                )
        return sorted(found, key=lambda record: (record.topic, record.partition, record.offset))
    finally:
        consumer.close()


_SEQ = re.compile(r"(?P<source>[^/]+)/(?P<generation>\d+)/(?P<shard>\d+):(?P<delta>\d+)\.(?P<position>\d+)")


def effects(records: Iterable[Arrived]) -> list[Arrived]:
    """What a consumer of the framework applies: per source and partition only what is above its mark, and
    nothing of an older generation than one that it has seen."""
    newest: dict[tuple[str, int, str], int] = {}
    marks: dict[tuple[str, int, str, int, str], tuple[int, int]] = {}
    applied = []
    for record in records:
        seq = _SEQ.fullmatch(record.seq)
        assert seq is not None, record.seq
        place, generation = (record.topic, record.partition, seq["source"]), int(seq["generation"])
        line = (*place, generation, seq["shard"])
        mark = int(seq["delta"]), int(seq["position"])
        if generation >= newest.get(place, 0) and mark > marks.get(line, (0, 0)):
            newest[place], marks[line] = generation, mark
            applied.append(record)
    return applied


def complaints(records: Sequence[Arrived], committed: Sequence[tuple[str, str | None]]) -> list[str]:
    """What is wrong with `records`, given the ids and keys of all committed events in their order."""
    wrong = []
    arrived = {record.id for record in records}
    known = {id_ for id_, _ in committed}
    if lost := [id_ for id_, _ in committed if id_ not in arrived]:
        wrong.append(f"{len(lost)} lost, {lost[0]} first")
    if ghosts := arrived - known:
        wrong.append(f"{len(ghosts)} never committed, {min(ghosts)} for one")
    copies = defaultdict(set)
    for record in records:
        copies[record.id].add(record.content)
    if differing := [id_ for id_, contents in copies.items() if len(contents) > 1]:
        wrong.append(f"{len(differing)} repeated otherwise, {copies[differing[0]]}")
    applied = effects(records)
    if len(applied) != len({record.id for record in applied}):
        wrong.append("some take effect twice")
    if dropped := arrived - {record.id for record in applied}:
        wrong.append(f"{len(dropped)} never take effect, {min(dropped)} for one")
    wrong += _inversions(applied, committed)
    return wrong


def plain_complaints(records: Sequence[Arrived], committed: Sequence[tuple[str, str | None]]) -> list[str]:
    """What is wrong to a reader without marks: each event exactly once, each key in order."""
    wrong = complaints(records, committed)
    if again := repeats(records):
        wrong.append(f"{again} came again")
    return wrong + _inversions(records, committed)


def repeats(records: Sequence[Arrived]) -> int:
    return len(records) - len({record.id for record in records})


def _inversions(applied: Sequence[Arrived], committed: Sequence[tuple[str, str | None]]) -> list[str]:
    place = {id_: n for n, (id_, _) in enumerate(committed)}
    last: dict[object, int] = {}
    inverted = 0
    for record in applied:
        if record.id not in place or record.key is None:
            continue
        now = place[record.id]
        inverted += now < last.get((record.topic, record.key), -1)
        last[record.topic, record.key] = max(now, last.get((record.topic, record.key), -1))
    return [f"{inverted} overtook an earlier event of their key"] if inverted else []
