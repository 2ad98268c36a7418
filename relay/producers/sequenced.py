"""Mode `sequenced`: at-least-once on the wire, without gaps, repeats recognisable by their number."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from outbox.errors import ConfigurationError
from relay.envelope import Envelope, headers
from relay.parking.landing import Landings
from relay.producers.delivery import Chunk, Interrupted, Recorded, Refused, Target
from relay.producers.inquiry import OF_TOPIC, REFUSALS, Inquiry, explained
from relay.producers.landings import KafkaLandings
from relay.producers.properties import checked
from relay.producers.session import ALIVE_EVERY, Session, SessionEnded
from relay.row import POSITION

log = logging.getLogger("relay.producer")

DEPTH = 3
"""Chunks on their way at once; more bring nothing."""

STALLED_AFTER = 15.0
"""Seconds without an acknowledgement before we ask the broker what is wrong."""


class SequencedProducer:
    """Producer of mode `sequenced`. `properties` are librdkafka's own; what breaks a guarantee is refused."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        stopping: Callable[[], bool] = lambda: False,
        envelope: Envelope = headers,
    ) -> None:
        self._envelope = envelope
        self._properties = checked(properties)
        self._inquiry = Inquiry(self._properties, listen=self._listen, stopping=stopping)
        self._session: Session | None = None
        self._careful_to = -1

    def take_over(
        self,
        alive: Callable[[], bool],  # noqa: ARG002 - nobody to wait for
        *,
        known: Recorded | None = None,  # noqa: ARG002
        wrote: Collection[Target] = (),  # noqa: ARG002
    ) -> Recorded | None:
        """Nobody can be fenced: a former producer's late records are repeats that readers with marks drop."""
        return None

    def tend(self, alive: Callable[[], bool]) -> None:
        pass

    def leave(self, alive: Callable[[], bool]) -> None:
        pass

    def deliver(self, chunks: Iterable[Chunk | None], alive: Callable[[], bool]) -> Iterator[int]:
        """See `Producer.deliver`. The first error ends the session; nothing later overtakes what failed."""
        session = self._opened()
        try:
            for chunk in filter(None, chunks):
                for part in self._parts(chunk):
                    self._inquiry.make_sure(session.client, session.partitions, part.targets)
                    session.send(part, alive)
                    yield from session.acknowledged(0, alive)
                    while session.in_flight >= (1 if self._careful(part) else DEPTH):
                        yield from self._wait(session, alive)
            while session.in_flight:
                yield from self._wait(session, alive)
        except SessionEnded as ended:
            self._end(session)
            raise self._verdict(session, ended) from ended
        except BaseException:
            # Whoever stops listening leaves records on their way: they must not meet the next session's.
            if session.in_flight:
                self._end(session)
            raise
        self._careful_to = -1

    def partitions(self, topic: str) -> int | None:
        return self._inquiry.partitions(self._opened().client, topic)

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        return self._inquiry.compacted(topics)

    def landings(self) -> Landings:
        return KafkaLandings(self._properties)

    def cluster_id(self) -> str | None:
        return self._inquiry.metadata(self._opened().client, None).cluster_id or None

    def trouble(self) -> str | None:
        self._listen()
        return self._inquiry.trouble()

    def _listen(self) -> None:
        session = self._session
        if session is not None and not session.in_flight:
            try:
                # Also what keeps the client's log lines from piling up in it while nothing is sent.
                session.client.poll(0)
            except (KafkaException, SystemError) as error:
                log.warning("the Kafka client ended its session while idle: %s", error)
                self._end(session)

    def close(self) -> None:
        if self._session is not None:
            self._end(self._session)

    def _opened(self) -> Session:
        if self._session is None:
            self._inquiry.forget_fatal()
            try:
                self._session = Session(self._properties, self._inquiry.complaints, self._envelope)
            except KafkaException as error:
                raise ConfigurationError(
                    f"the Kafka client refuses its configuration: {error.args[0].str()}; "
                    "correct the [kafka] settings"
                ) from error
        return self._session

    def _careful(self, chunk: Chunk) -> bool:
        return chunk.rows[0][POSITION] <= self._careful_to

    def _parts(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk whole; row by row what was on its way when a row was refused, to find out which."""
        doubtful = 0
        if self._careful(chunk):
            doubtful = sum(row[POSITION] <= self._careful_to for row in chunk.rows)
            for row, target in zip(chunk.rows[:doubtful], chunk.targets[:doubtful], strict=True):
                yield Chunk(chunk.stream, [row], [target])
        if doubtful < len(chunk.rows):
            yield Chunk(chunk.stream, chunk.rows[doubtful:], chunk.targets[doubtful:]) if doubtful else chunk

    def _wait(self, session: Session, alive: Callable[[], bool]) -> Iterator[int]:
        yield from session.acknowledged(ALIVE_EVERY, alive)
        silent = time.monotonic() - session.progressed_at
        if session.in_flight and silent > STALLED_AFTER:
            session.progressed_at = time.monotonic()
            self._ask_why(session, silent)

    def _ask_why(self, session: Session, silent: float) -> None:
        """An outage is waited out. A topic that vanished would leave a gap: that ends the session."""
        try:
            present = self._inquiry.metadata(session.client, None).topics
        except Interrupted as outage:
            log.warning("no acknowledgement for %.0f s: %s", silent, outage)
            return
        missing = sorted(session.partitions.keys() - present.keys())
        if missing:
            gone = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {missing[0]} vanished")
            raise SessionEnded(gone, None)
        log.warning("no acknowledgement for %.0f s although the brokers answer", silent)

    def _verdict(self, session: Session, ended: SessionEnded) -> Exception:
        """Who is to blame: the row that was alone on its way, or one to be found by sending singly."""
        refused = ended.cause is not None and ended.cause.code() in REFUSALS
        if ended.cause is not None and refused and ended.row is not None:
            return Refused(ended.row, explained(ended.cause), of_topic=ended.cause.code() in OF_TOPIC)
        if refused or ended.cause is None:
            self._careful_to = max(self._careful_to, session.handed)
        ended.at_once = refused
        return ended

    def _end(self, session: Session) -> None:
        session.close()
        if self._session is session:
            self._session = None
