"""Read whole topics from their beginning and stay at their end: one thread, one Kafka client, no group.

Whatever makes positions meaningless (another topic under the name, another cluster, a log that begins later
or ends earlier) begins a new reading into a new table; the old one serves until the new one has caught up.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import describe
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.reach import Reach, opened
from outbox.consumer.record import Polled
from outbox.consumer.state.latest import Latest, Place

log = logging.getLogger(__name__)

V = TypeVar("V")

TIMEOUT = 5.0
"""Seconds that a question to the brokers may take."""

AT_ONCE = 1_000
"""Records applied under one lock."""

_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


@dataclass(slots=True)
class Position:
    """Where the reading stands in one partition. target: where it ended when the reading began."""

    next: int
    target: int
    caught_up: bool = False
    lag: int = 0


@dataclass(slots=True)
class Reading(Generic[V]):
    """One pass from the beginning to the end and on."""

    topics: Mapping[str, TopicIdentity]
    positions: dict[Place, Position]
    table: Latest[V] = field(default_factory=Latest)

    @property
    def caught_up(self) -> bool:
        return all(position.caught_up for position in self.positions.values())

    @property
    def lag(self) -> int:
        return sum(position.lag for position in self.positions.values())


class Follower(Generic[V]):
    """Follows `topics`.

    apply: called with the reading and its next messages; what it raises ends the work. complete: called once
    with each reading that has caught up.
    """

    def __init__(
        self,
        topics: Sequence[str],
        properties: Mapping[str, Any],
        identities: Identities,
        *,
        apply: Callable[[Reading[V], list[Polled]], None],
        complete: Callable[[Reading[V]], None],
        check: float,
    ) -> None:
        self._topics = topics
        self._properties = properties
        self._identities = identities
        self._apply = apply
        self._complete = complete
        self._check = check
        self._client: KafkaConsumer | None = None
        self._checked = 0.0
        self._failures = 0
        self._due = 0.0
        self._doubt: str | None = None
        self._completed = False
        self.reading: Reading[V] | None = None
        self.notice = Notice()
        self.reach = Reach(str(properties["group.id"]), 0, self._failed)

    def run_once(self, timeout: float = 0.1) -> int:
        """Begin a reading if none is under way, or go on with it; how many records were read."""
        wait = self._due - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, timeout))
            return 0
        try:
            if self.reading is None:
                self._begin()
            return self._go_on(timeout)
        except KafkaException as error:
            self._failures += 1
            self._due = time.monotonic() + min(2.0, backoff.seconds(backoff.FAILURE, self._failures))
            self.notice.trouble(f"the topics {', '.join(self._topics)} cannot be read: {describe(error)}")
            if _fatal(error):
                self._drop_client()
            return 0

    def close(self) -> None:
        self._drop_client()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except (KafkaException, RuntimeError) as error:
                log.debug("closing the Kafka client: %s", error)

    def _open(self) -> KafkaConsumer:
        """The client; a new one goes on where the reading stands."""
        if self._client is None:
            properties = {**self._properties, **self.reach.callbacks}
            self._client = opened(KafkaConsumer, properties, "a State")
            if self.reading is not None:
                self._assign(self.reading)
        return self._client

    def _begin(self) -> None:
        client = self._open()
        found = self._identities.look(self._topics)
        missing = [topic for topic in self._topics if not isinstance(found.get(topic), TopicIdentity)]
        if missing:
            raise KafkaException(
                KafkaError(
                    KafkaError.UNKNOWN_TOPIC_OR_PART,
                    f"the brokers do not know, or do not describe to us, topic {', '.join(missing)}",
                )
            )
        positions: dict[Place, Position] = {}
        for topic in self._topics:
            for number in range(self._partitions(client, topic)):
                bounds = client.get_watermark_offsets(
                    TopicPartition(topic, number), timeout=TIMEOUT, cached=False
                )
                if bounds is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                low, high = bounds
                positions[topic, number] = Position(low, high, caught_up=low >= high, lag=high - low)
        self.reading = Reading(
            {topic: identity for topic, identity in found.items() if isinstance(identity, TopicIdentity)},
            positions,
        )
        self._assign(self.reading)
        self._checked = time.monotonic()
        self._completed = False
        self._doubt = None
        log.info("reading %s from the beginning: %s offsets", ", ".join(self._topics), self.reading.lag)
        hooks.fire("state.reading", topics=tuple(self._topics), lag=self.reading.lag)

    def _partitions(self, client: KafkaConsumer, topic: str) -> int:
        described = client.list_topics(topic, timeout=TIMEOUT).topics[topic]
        if described.error is not None:
            raise KafkaException(described.error)
        return len(described.partitions)

    def _assign(self, reading: Reading[V]) -> None:
        assert self._client is not None
        self._client.assign(
            [TopicPartition(*place, position.next) for place, position in reading.positions.items()]
        )

    def _go_on(self, timeout: float) -> int:
        client, reading = self._open(), self.reading
        assert reading is not None
        messages: list[Polled] = []
        ended: set[Place] = set()
        for message in client.consume(AT_ONCE, timeout):
            error, place = message.error(), (message.topic() or "", message.partition() or 0)
            if error is None:
                messages.append(message)
                ended.discard(place)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(place)
            else:
                self._report(reading, message, error)
        if messages:
            self._take(client, reading, messages)
        for place in ended & reading.positions.keys():
            # Behind the last record control records may follow, which no position tells of.
            reading.positions[place].caught_up, reading.positions[place].lag = True, 0
        if self._doubt is not None:
            self._restart(self._doubt)
            return len(messages)
        if not self._completed and reading.caught_up:
            self._complete(reading)
            self._completed = True
            hooks.fire("state.ready", topics=tuple(self._topics), keys=len(reading.table.values))
        self._watch(client, reading)
        if reading.caught_up or messages:
            self._failures = 0
            self.notice.over(f"the topics {', '.join(self._topics)} are read again")
            self.reach.works()
        return len(messages)

    def _take(self, client: KafkaConsumer, reading: Reading[V], messages: list[Polled]) -> None:
        news = []
        touched: dict[Place, Position] = {}
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            offset = message.offset()
            position = reading.positions.get(place)
            if position is None or offset is None or offset < position.next:
                continue
            position.next = offset + 1
            touched[place] = position
            news.append(message)
        self._apply(reading, news)
        for place, position in touched.items():
            position.caught_up = position.caught_up or position.next >= position.target
            _, end = client.get_watermark_offsets(TopicPartition(*place), cached=True)
            position.lag = max(0, end - position.next)

    def _report(self, reading: Reading[V], message: Polled, error: KafkaError) -> None:
        position = reading.positions.get((message.topic() or "", message.partition() or 0))
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:
            where = f"{message.topic()}[{message.partition()}]"
            self._doubt = f"{where} has no record at offset {position.next if position else '?'} any more"
        elif error.fatal() or code == KafkaError._FATAL:
            raise KafkaException(error)
        else:
            self.notice.trouble(f"Kafka reports {error.name()}: {error.str()}")
            if code in _GONE:
                self._checked = 0.0

    def _watch(self, client: KafkaConsumer, reading: Reading[V]) -> None:
        """From time to time: are these still the same topics, and have they more partitions?"""
        for topic, answer in self._identities.answers().items():
            if isinstance(answer, TopicMissing):
                self.notice.trouble(f"{answer} any more")
            elif not answer.agrees(known := reading.topics[topic]):
                self._restart(answer.difference(topic, cluster_id=known.cluster_id, topic_id=known.topic_id))
                return
        now = time.monotonic()
        if now - self._checked < self._check:
            return
        self._checked = now
        reading.table.forget()
        self._identities.ask(self._topics)
        added = [
            (topic, number)
            for topic in self._topics
            for number in range(self._partitions(client, topic))
            if (topic, number) not in reading.positions
        ]
        if added:
            for place in added:
                reading.positions[place] = Position(0, 0, caught_up=True)
            log.info("new partitions: %s", ", ".join(f"{topic}[{number}]" for topic, number in added))
            self._assign(reading)

    def _restart(self, reason: str) -> None:
        log.warning("%s; its State is read again from the beginning", reason.rstrip("."))
        hooks.fire("state.restarted", topics=tuple(self._topics), reason=reason)
        self.reading = None
        self._doubt = None

    def _failed(self, failure: Exception) -> None:
        """Of somebody who listens to the client: the reading goes on."""
        log.error("a hook failed: %s", failure, exc_info=failure)


def _fatal(error: KafkaException) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.fatal()
