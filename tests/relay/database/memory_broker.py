"""A broker in memory, NOT Kafka: these tests are about the database half of the relay.

It accepts every record at once and keeps them in the order of arrival. What it cannot show (queues,
retries, zombies on the wire) is tested with the real one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from outbox import record
from outbox.record import Mark, Seq
from relay.envelope import headers
from relay.parking.landing import Trace, Verdict
from relay.producers import Abandoned, Chunk, Names, Recorded, RecordingProducer, Refused, Target
from relay.row import ID, KEY, PAYLOAD, POSITION, Row


@dataclass(frozen=True, slots=True)
class Record:
    """What arrived. `seq` is read from the header, as a consumer reads it."""

    topic: str
    partition: int
    key: bytes | None
    payload: bytes | None
    id: str
    seq: Seq


@dataclass
class MemoryBroker:
    """The log of everything that any producer delivered, repeats included."""

    log: list[Record] = field(default_factory=list)
    partition_count: int = 3
    cluster: str | None = "memory"
    refuses: Callable[[Row], bool] = field(default=lambda _: False)

    def sequenced(self) -> "MemoryProducer":
        return MemoryProducer(self)

    def transactional(self, names: Names) -> RecordingProducer:
        raise NotImplementedError("what a transaction hides or shows is the real broker's business")

    def once(self) -> list[Record]:
        """What a reader with marks applies: repeats dropped.

        Fails if a repeat differs from the first copy, or an event came under two numbers.
        """
        marks: dict[tuple[str, int, str], tuple[int, dict[int, Mark]]] = {}
        seen: dict[Seq, Record] = {}
        numbered: dict[str, Seq] = {}
        applied = []
        for found in self.log:
            assert numbered.setdefault(found.id, found.seq) == found.seq, f"{found.id} has two numbers"
            assert seen.setdefault(found.seq, found) == found, f"{found.seq} was used for two records"
            place = (found.topic, found.partition, found.seq.source)
            generation, shards = marks.get(place, (0, {}))
            if found.seq.generation > generation:
                marks[place] = found.seq.generation, {found.seq.shard: found.seq.mark}
            elif found.seq.generation == generation and (
                found.seq.shard not in shards or found.seq.mark > shards[found.seq.shard]
            ):
                shards[found.seq.shard] = found.seq.mark
            else:
                continue
            applied.append(found)
        return applied

    def ids(self) -> list[str]:
        return [found.id for found in self.once()]


class MemoryLandings:
    """A `relay.parking.landing.Landings` by the same rule."""

    def __init__(self, log: Sequence[Record]) -> None:
        self._log = log

    def verdict(self, trace: Trace, alive: Callable[[], bool]) -> Verdict:  # noqa: ARG002 - at hand
        for found in self._log:
            seq = found.seq
            if (found.topic, found.partition, seq.source) != (trace.topic, trace.partition, trace.seq.source):
                continue
            if seq.generation > trace.seq.generation:
                return Verdict.PASSED
            if seq.shard == trace.seq.shard and seq.mark >= trace.seq.mark:
                return Verdict.LANDED if seq == trace.seq else Verdict.PASSED
        return Verdict.OPEN

    def close(self) -> None:
        pass


class MemoryProducer:
    """A `relay.producers.Producer`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def take_over(
        self,
        alive: Callable[[], bool],  # noqa: ARG002 - nobody to wait for
        *,
        known: Recorded | None = None,  # noqa: ARG002
        wrote: Collection[Target] = (),  # noqa: ARG002
    ) -> Recorded | None:
        return None

    def tend(self, alive: Callable[[], bool]) -> None:
        pass

    def leave(self, alive: Callable[[], bool]) -> None:
        pass

    def deliver(self, chunks: Iterable[Chunk | None], alive: Callable[[], bool]) -> Iterator[int]:
        for chunk in filter(None, chunks):
            for row, (topic, partition) in zip(chunk.rows, chunk.targets, strict=True):
                if not alive():
                    raise Abandoned("told to stop")
                if self._broker.refuses(row):
                    if row is not chunk.rows[0]:
                        yield row[POSITION] - 1
                    raise Refused(row, "the broker in memory refuses it")
                wire = dict(headers(row, chunk.stream))
                seq = wire[record.SEQ]
                assert isinstance(seq, bytes)
                self._broker.log.append(
                    Record(topic, partition, row[KEY], row[PAYLOAD], row[ID].decode(), Seq.parse(seq))
                )
            yield chunk.rows[-1][0]

    def compacted(self, topics: Collection[str]) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    def partitions(self, topic: str) -> int | None:  # noqa: ARG002 - knows every topic
        return self._broker.partition_count

    def landings(self) -> "MemoryLandings":
        return MemoryLandings(self._broker.log)

    def cluster_id(self) -> str | None:
        return self._broker.cluster

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        pass
