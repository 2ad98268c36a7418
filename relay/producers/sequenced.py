"""Mode `sequenced`: at-least-once on the wire, without gaps, repeats recognisable by their number."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from outbox.errors import ConfigurationError
from relay.producers.delivery import Chunk, Interrupted, Refused
from relay.producers.properties import checked
from relay.producers.session import ALIVE_EVERY, Session, SessionEnded
from relay.row import Row

log = logging.getLogger("relay.producer")

DEPTH = 3
"""Chunks on their way at once; more bring nothing."""

STALLED_AFTER = 15.0
"""Seconds without an acknowledgement before we ask the broker what is wrong."""

CAREFUL_ROWS = 20_000
"""After a failure without a name, this many rows are sent one by one: the refused one is among them."""

METADATA_TIMEOUT = 5.0

REFUSALS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._INVALID_ARG,
        KafkaError._UNKNOWN_PARTITION,
    }
)
"""Codes with which the broker says that trying again cannot help. An outage never uses them."""


class SequencedProducer:
    """Producer of mode `sequenced`. `properties` are librdkafka's own; what breaks a guarantee is refused."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = checked(properties)
        self._complaints: deque[KafkaError] = deque(maxlen=1)
        self._session: Session | None = None
        self._careful = 0
        self._suspect: Row | None = None
        self._topics: set[str] = set()

    def deliver(self, chunks: Iterable[Chunk], alive: Callable[[], bool]) -> Iterator[int]:
        """See `Producer.deliver`. The first error ends the session; nothing later overtakes what failed."""
        session = self._opened()
        try:
            for chunk in chunks:
                self._topics.update(topic for topic, _ in set(chunk.targets))
                for part in self._parts(chunk):
                    session.send(part, alive)
                    yield from session.acknowledged(0, alive)
                    while session.in_flight >= (DEPTH if self._careful <= 0 else 1):
                        yield from self._wait(session, alive)
            while session.in_flight:
                yield from self._wait(session, alive)
        except SessionEnded as ended:
            self._end()
            raise self._verdict(ended) from ended
        except BaseException:
            # Whoever stops listening leaves records on their way: they must not meet the next session's.
            if session.in_flight:
                self._end()
            raise

    def partitions(self, topic: str) -> int | None:
        found = self._metadata(topic).topics.get(topic)
        if found is None or found.error is not None or not found.partitions:
            return None
        return len(found.partitions)

    def cluster_id(self) -> str | None:
        return self._metadata(None).cluster_id or None

    def trouble(self) -> str | None:
        return self._complaints[-1].str() if self._complaints else None

    def close(self) -> None:
        self._end()

    def _opened(self) -> Session:
        if self._session is None:
            try:
                self._session = Session(self._properties, self._complaints)
            except KafkaException as error:
                raise ConfigurationError(
                    f"the Kafka client refuses its configuration: {error.args[0].str()}; "
                    "correct the [kafka] settings"
                ) from error
        return self._session

    def _metadata(self, topic: str | None) -> Any:
        client = self._opened().client
        try:
            found = (
                client.list_topics(topic, METADATA_TIMEOUT)
                if topic
                else client.list_topics(None, METADATA_TIMEOUT)
            )
        except KafkaException as error:
            raise Interrupted(
                f"no broker answers at {self._properties.get('bootstrap.servers')}: "
                f"{self.trouble() or error.args[0].str()}"
            ) from error
        self._complaints.clear()
        return found

    def _parts(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk whole, or row by row while a refused one is being looked for."""
        if self._careful <= 0:
            yield chunk
            return
        for row, target in zip(chunk.rows, chunk.targets, strict=True):
            self._careful -= 1
            self._suspect = row
            yield Chunk(chunk.stream, [row], [target])
        if self._careful <= 0:
            self._suspect = None

    def _wait(self, session: Session, alive: Callable[[], bool]) -> Iterator[int]:
        yield from session.acknowledged(ALIVE_EVERY, alive)
        silent = time.monotonic() - session.progressed_at
        if session.in_flight and silent > STALLED_AFTER:
            session.progressed_at = time.monotonic()
            self._ask_why(silent)

    def _ask_why(self, silent: float) -> None:
        """An outage is waited out. A topic that vanished would leave a gap: that ends the session."""
        try:
            present = self._metadata(None).topics
        except Interrupted as outage:
            log.warning("no acknowledgement for %.0f s: %s", silent, outage)
            return
        missing = sorted(self._topics - present.keys())
        if missing:
            raise SessionEnded(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {missing[0]} vanished"))
        log.warning("no acknowledgement for %.0f s although the brokers answer", silent)

    def _verdict(self, ended: SessionEnded) -> Exception:
        """Who is to blame: a row, found while it was sent alone, or nobody yet."""
        refused = ended.cause is not None and ended.cause.code() in REFUSALS
        if refused and self._suspect is not None:
            assert ended.cause is not None
            return Refused(self._suspect, ended.cause.str())
        if refused or ended.cause is None:
            self._careful = CAREFUL_ROWS
        return ended

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
