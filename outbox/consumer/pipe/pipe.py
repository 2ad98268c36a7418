"""Kafka → handlers → Kafka, exactly once, where there is no database: results and offsets in one transaction.

    pipe = Pipe(group="totals", kafka={"bootstrap.servers": "..."})

    @pipe.on(OrderPlaced)
    def total(out: Out, event: OrderPlaced) -> None:
        out.emit(OrderTotalled(order_id=event.order_id, total=event.total))

    pipe.run(threads=2)

A handler is a function of its record: it may run several times, and only what it sent the last time is ever
seen, by readers that are read_committed. What else it does happens as often as it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, TypeVar
from uuid import uuid4

from confluent_kafka import KafkaException, Producer

from outbox import kafka_log
from outbox.consumer.assignment import describe
from outbox.consumer.crew import settled_heap, signals, work
from outbox.consumer.handlers import Handlers
from outbox.consumer.health import Health
from outbox.consumer.identity import BrokerIdentities
from outbox.consumer.pipe.member import PipeMember, PipeSetup
from outbox.consumer.pipe.settings import PipeSettings
from outbox.consumer.properties import admin_properties, consumer_properties
from outbox.consumer.readiness import wait_for_topics
from outbox.consumer.settings import Edge
from outbox.consumer.stopping import Stop
from outbox.errors import ConfigurationError
from outbox.event import Event

F = TypeVar("F", bound=Callable[..., object])

_DEFAULTS = PipeSettings()

FIXED: dict[str, str] = {
    "transactional.id": "it is made of the group, the instance and the thread",
    "transaction.timeout.ms": "it is Pipe(transaction_timeout=...)",
    "enable.idempotence": "Kafka transactions need it",
    "acks": "what one broker has may be lost with it",
    "error_cb": "the client's errors are in Pipe.health() and the log",
    "logger": "the client logs to outbox.consumer.kafka; configure that logger",
}
"""What `producer` may not hold, and why."""


class Pipe:
    """A consumer group's handlers whose results go to Kafka, and what they run on.

    group: the name under which Kafka keeps its place. kafka: librdkafka's properties of the reading client;
    those of the connection are the sending client's too. producer: further ones of the sending client
    (compression.type, linger.ms, message.max.bytes).
    instance: a name of this process that stays the same when it is started again, and that no other process
    of the group has: then what it left open when it was killed is ended at its start. Without one that takes
    up to transaction_timeout, during which its partitions wait. The rest: see PipeSettings.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        group: str,
        kafka: Mapping[str, Any],
        producer: Mapping[str, Any] | None = None,
        instance: str | None = None,
        batch_size: int = _DEFAULTS.batch_size,
        batch_bytes: int = _DEFAULTS.batch_bytes,
        start: Edge = _DEFAULTS.start,
        unknown: Literal["skip", "poison", "stop"] = _DEFAULTS.unknown,
        attempts: int = _DEFAULTS.attempts,
        dead_letter: str | None = _DEFAULTS.dead_letter,
        transaction_timeout: timedelta = _DEFAULTS.transaction_timeout,
        identity_check: timedelta = _DEFAULTS.identity_check,
        wait_for_topics: timedelta = _DEFAULTS.wait_for_topics,
        stuck_after: timedelta = _DEFAULTS.stuck_after,
    ) -> None:
        if not group:
            raise ConfigurationError("a pipe needs a group: it names its place in the topics")
        settings = PipeSettings(
            batch_size=batch_size,
            batch_bytes=batch_bytes,
            start=start,
            unknown=unknown,
            attempts=attempts,
            dead_letter=dead_letter,
            transaction_timeout=transaction_timeout,
            identity_check=identity_check,
            wait_for_topics=wait_for_topics,
            stuck_after=stuck_after,
        )
        consumer = consumer_properties(kafka, group)
        self._kafka = dict(kafka)
        self._handlers = Handlers()
        self._stop = Stop()
        self._members: list[PipeMember] = []
        self._setup = PipeSetup(
            group=group,
            handlers=self._handlers,
            consumer=consumer,
            producer=_producer_properties(consumer, producer or {}, transaction_timeout),
            instance=instance or uuid4().hex,
            settings=settings,
        )

    @property
    def group(self) -> str:
        return self._setup.group

    @property
    def topics(self) -> list[str]:
        """What its handlers read."""
        return self._handlers.topics

    def on(
        self, *events: type[Event], topic: str | None = None, tombstones: bool = False
    ) -> Callable[[F], F]:
        """Register a handler `(out, event)` or `(out, event, record)` for these events; see Consumer.on."""
        for event in events:
            given: object = event
            if not (isinstance(given, type) and issubclass(given, Event)):
                raise ConfigurationError(
                    f"on() takes event classes, not {given!r}; write @pipe.on(OrderPlaced)"
                )

        if topic is not None and topic.startswith("^"):
            raise ConfigurationError(f"topic={topic!r} is a pattern; a pipe reads topics by name")

        def register(function: F) -> F:
            self._handlers.add(function, events, topic=topic, bulk=False, tombstones=tombstones)
            return function

        return register

    def run(self, threads: int = 1, *, kafka: Mapping[str, Any] | None = None) -> None:
        """Work until `stop()`, SIGTERM or SIGINT (the latter two when called in the main thread).

        threads: members of the group in this process. kafka: properties of the reading client that take
        precedence for this run. The transaction under way is finished before it
        returns. Raises OutboxError when it cannot work: bad settings, rights or topics.
        """
        if threads < 1:
            raise ConfigurationError(f"threads is {threads}; it must be at least 1")
        if not self.topics:
            raise ConfigurationError("this pipe has no handler; register one with @pipe.on(SomeEvent)")
        setup = self._setup
        if kafka:
            setup = replace(setup, consumer=consumer_properties({**self._kafka, **kafka}, setup.group))
        with signals(self._stop), settled_heap():
            try:
                identities = BrokerIdentities(admin_properties(setup.consumer))
                patience = setup.settings.wait_for_topics.total_seconds()
                if wait_for_topics(identities, self.topics, self._stop, patience=patience):
                    self._members = [PipeMember(_of(setup, n, threads), n) for n in range(threads)]
                    work(self._members, self._stop, name=setup.group)
            finally:
                self._stop.clear()

    def stop(self) -> None:
        """Let `run` return after the transaction under way. From any thread, any number of times."""
        self._stop.set()

    def health(self) -> Health:
        """What its threads are doing at this moment. From any thread."""
        return Health(group=self.group, members=tuple(member.health() for member in tuple(self._members)))


def _of(setup: PipeSetup, number: int, threads: int) -> PipeSetup:
    """Static members need a name each."""
    name = setup.consumer.get("group.instance.id")
    if name is None or threads == 1:
        return setup
    return replace(setup, consumer={**setup.consumer, "group.instance.id": f"{name}.{number}"})


def _producer_properties(
    consumer: Mapping[str, Any], given: Mapping[str, Any], timeout: timedelta
) -> dict[str, Any]:
    for name, reason in FIXED.items():
        if name in given:
            raise ConfigurationError(f"producer[{name!r}] cannot be set: {reason}")
    milliseconds = int(timeout.total_seconds() * 1000)
    properties = {
        **admin_properties(consumer),
        "client.id": "outbox-pipe",
        # Java's way to spread keys, so that results lie where its producers would put them.
        "partitioner": "murmur2_random",
        # A broker that is frozen is left after this long; 60 s by default, more than a transaction has.
        "socket.timeout.ms": min(6_000, milliseconds),
        **given,
        "enable.idempotence": True,
        "transaction.timeout.ms": milliseconds,
        "message.timeout.ms": min(milliseconds, int(given.get("message.timeout.ms", milliseconds))),
        "logger": kafka_log.quiet("outbox.consumer.kafka"),
    }
    try:
        Producer({**properties, "transactional.id": "checked"})
    except KafkaException as error:
        raise ConfigurationError(f"Kafka producer of a pipe: {describe(error)}") from error
    return properties
