"""Read the log itself to tell what became of a row: committed records only, from a known offset on."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from outbox.errors import UndecodableRecord
from outbox.record import SEQ, Seq
from relay.parking.landing import Trace, Undecided, Verdict
from relay.producers.delivery import Abandoned, Interrupted
from relay.producers.properties import connection_only

ANSWER_WITHIN = 5.0
"""Seconds for a question to the brokers."""

SILENT = 10.0
"""Seconds without a record before the end is given up: somebody else's open transaction hides it."""

READ_AT_ONCE = 1_000


class KafkaLandings:
    """Reads the log itself. `properties` are a producer's; needs READ on the topic."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        shared = connection_only(properties)
        self._admin = AdminClient(dict(shared))
        self._consumer = Consumer(
            {
                **shared,
                "group.id": "outbox-relay-look",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            }
        )
        self._read: dict[tuple[str, int], tuple[Seq, int]] = {}

    def verdict(self, trace: Trace, alive: Callable[[], bool]) -> Verdict:
        start, whole = self._start(trace)
        end = self._offset(trace, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        if start > end:
            raise Undecided(
                f"partition {trace.partition} of {trace.topic} ends at {end}, before it was sent: "
                "the topic was made anew"
            )
        found, at = self._first(trace, start, end, alive)
        if whole:
            self._read[trace.topic, trace.partition] = trace.seq, at
        elif found is not Verdict.LANDED:
            raise Undecided(
                f"partition {trace.partition} of {trace.topic} begins at {start}: "
                "what lay there when it was sent is gone"
            )
        return found

    def close(self) -> None:
        self._consumer.close()

    def _start(self, trace: Trace) -> tuple[int, bool]:
        """Where to read from, and whether nothing that counts lies before it."""
        known = self._read.get((trace.topic, trace.partition))
        start = trace.start or 0
        if known is not None and _follows(trace.seq, known[0]):
            start = max(start, known[1])
        first = self._offset(trace, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        return max(start, first), first <= start

    def _offset(self, trace: Trace, which: OffsetSpec) -> int:
        place = TopicPartition(trace.topic, trace.partition)
        try:
            (answer,) = self._admin.list_offsets({place: which}, request_timeout=ANSWER_WITHIN).values()
            return int(answer.result().offset)
        except KafkaException as error:
            raise _failed(error.args[0], trace) from error

    def _first(self, trace: Trace, start: int, end: int, alive: Callable[[], bool]) -> tuple[Verdict, int]:
        """The first record that decides, or OPEN; and where the next row's look may begin."""
        self._consumer.assign([TopicPartition(trace.topic, trace.partition, start)])
        heard, at = time.monotonic(), start
        try:
            while at < end:
                if not alive():
                    raise Abandoned("told to stop while looking for a row")
                for message in self._consumer.consume(READ_AT_ONCE, 0.1):
                    error, offset = message.error(), message.offset()
                    if error is not None:
                        if error.code() != KafkaError._PARTITION_EOF:
                            raise _failed(error, trace)
                        at = max(at, offset or 0)
                        continue
                    found = _judge(message, trace.seq)
                    if found is not None:
                        return found, offset or 0
                    at, heard = (offset or 0) + 1, time.monotonic()
                if time.monotonic() - heard > SILENT:
                    raise Undecided(
                        f"partition {trace.partition} of {trace.topic} cannot be read to its end: "
                        "an open transaction of another producer hides it; release again when it has ended"
                    )
            return Verdict.OPEN, end
        except KafkaException as error:
            raise _failed(error.args[0], trace) from error
        finally:
            self._consumer.unassign()


def _follows(seq: Seq, known: Seq) -> bool:
    """May the look for `seq` go on where the one for `known` ended?"""
    return (seq.source, seq.generation, seq.shard) == (
        known.source,
        known.generation,
        known.shard,
    ) and seq.mark >= known.mark


def _judge(message: Message, wanted: Seq) -> Verdict | None:
    found = None
    headers: Any = message.headers()
    for name, value in headers or ():
        if name == SEQ:
            found = value
            break
    if found is None or not found.startswith(wanted.source.encode() + b"/"):
        return None
    try:
        seq = Seq.parse(found)
    except UndecodableRecord:
        return None
    if seq.generation > wanted.generation:
        return Verdict.PASSED
    if (seq.generation, seq.shard) != (wanted.generation, wanted.shard) or seq.mark < wanted.mark:
        return None
    return Verdict.LANDED if seq == wanted else Verdict.PASSED


def _failed(error: KafkaError, trace: Trace) -> Exception:
    where = f"partition {trace.partition} of {trace.topic}"
    if error.code() in {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}:
        return Undecided(f"{where} may not be read: grant READ on the topic to the relay")
    if error.code() in {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }:
        return Undecided(f"{where} does not exist any more")
    if error.code() in {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET}:
        return Undecided(f"{where} no longer holds what lay there when it was sent")
    return Interrupted(f"{where} cannot be read: {error.str()}")
