"""A topic, a database with a table of effects, and consumers on both: what the tests here play on."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from confluent_kafka import Producer
from sqlalchemy import Engine, Row, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import hooks
from outbox.consumer import AsyncConsumer, Consumer, Record
from tests import nursery
from tests.nursery import Child

F = TypeVar("F", bound=Callable[..., object])

ROOT = Path(__file__).parents[2]

TABLE = """
CREATE TABLE IF NOT EXISTS effect (
    n bigint GENERATED ALWAYS AS IDENTITY, grp text, partition int, "offset" bigint, value text, pid int,
    sent float, stored timestamptz DEFAULT clock_timestamp())
"""
INSERT = text("""
INSERT INTO effect (grp, partition, "offset", value, pid, sent)
VALUES (:grp, :partition, :offset, :value, :pid, :sent)
""")

PROTOCOLS: dict[str, dict[str, Any]] = {
    "cooperative": {"partition.assignment.strategy": "cooperative-sticky"},
    "kip848": {"group.protocol": "consumer"},
    "eager": {"partition.assignment.strategy": "range"},
}

SHORT = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 300, "max.poll.interval.ms": 3000}
"""For members that are killed or frozen: how soon the group notices."""


def eventually(fact: Callable[[], Any], *, within: float = 60.0, what: str = "") -> Any:
    """The first true value of `fact`, asked again and again for `within` seconds."""
    pause = threading.Event()
    end = time.monotonic() + within
    while True:
        if value := fact():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {within} s: {what or fact}")
        pause.wait(0.02)


class Witness:
    """Remembers which hook points were reached, and lets a test wait for one or act at one."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._actions: dict[str, Callable[[dict[str, Any]], None]] = {}

    def __call__(self, point: str, facts: dict[str, Any]) -> None:
        with self._changed:
            self._seen.append((point, facts))
            self._changed.notify_all()
        action = self._actions.get(point)
        if action is not None:
            action(facts)

    def at(self, point: str, action: Callable[[dict[str, Any]], None]) -> None:
        """Call `action` in the working thread whenever `point` is reached."""
        self._actions[point] = action

    def all(self, point: str) -> list[dict[str, Any]]:
        with self._changed:
            return [facts for seen, facts in self._seen if seen == point]

    def wait(self, point: str, *, count: int = 1, within: float = 60.0) -> dict[str, Any]:
        """The facts of the `count`-th time `point` was reached."""

        def found() -> dict[str, Any] | None:
            facts = [facts for seen, facts in self._seen if seen == point]
            return facts[count - 1] if len(facts) >= count else None

        with self._changed:
            facts = self._changed.wait_for(found, within)
            assert facts, (
                f"{point} was not reached {count} times within {within} s: {[s for s, _ in self._seen]}"
            )
            return facts


@contextmanager
def witness() -> Iterator[Witness]:
    """A Witness while inside."""
    observer = Witness()
    unsubscribe = hooks.subscribe(observer)
    try:
        yield observer
    finally:
        unsubscribe()


class Awaiting(AsyncConsumer):
    """An AsyncConsumer for the tests that Consumer has to pass too: it awaits their handlers."""

    def on(self, *events: Any, **options: Any) -> Callable[[F], F]:
        register = super().on(*events, **options)

        def wrap(function: F) -> F:
            @wraps(function)
            async def call(session: AsyncSession, *rest: Any) -> object:
                return await session.run_sync(function, *rest)

            register(call)
            return function

        return wrap


class Stage:
    """One topic and one database; `group` names the consumers' group. kind: how they call handlers."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        new: bool = True,
        kind: str = "plain",
    ) -> None:
        self.engine = engine
        self.url = url
        self.bootstrap = bootstrap
        self.topic = topic
        self.partitions = partitions
        self.group = f"group.{topic}"
        self.kind = kind
        self.awaited = "async" in kind
        self._sent: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self._put: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self._connect()
        if new:
            with engine.begin() as connection:
                connection.execute(text(TABLE))

    def _connect(self) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "linger.ms": 1,
                "enable.idempotence": True,
                "message.timeout.ms": 0,  # without end: a record given up while brokers die would be no loss
            }
        )

    def send(
        self,
        count: int,
        *,
        partition: int | None = None,
        source: str = "s",
        generation: int = 1,
        flush: bool = True,
    ) -> None:
        """`count` records, spread over the partitions unless one is named, each with its place."""
        for n in range(count):
            where = n % self.partitions if partition is None else partition
            self._sent[where] += 1
            seq = f"{source}/{generation}/{where}:1.{self._sent[where]}"
            self.put(f"{where}.{self._sent[where]}", partition=where, seq=seq)
        if flush:
            self.flush()

    def grow(self, partitions: int) -> None:
        """The topic has so many now."""
        for partition in range(self.partitions, partitions):
            self._sent[partition] = self._put[partition] = 0
        self.partitions = partitions
        self._connect()  # who knew the topic before would not know of them for minutes

    def repeat(self, partition: int, count: int, *, flush: bool = True) -> int:
        """What a relay does that slept, or died unconfirmed: the last records once more, byte for byte."""
        last = self._sent[partition]
        again = range(max(1, last - count), last + 1)
        for n in again:
            self.put(f"{partition}.{n}", partition=partition, seq=f"s/1/{partition}:1.{n}")
        if flush:
            self.flush()
        return len(again)

    def end(self, partition: int) -> int:
        """How many records were put there, repeats included."""
        return self._put[partition]

    def put(
        self,
        value: str | bytes | None,
        *,
        partition: int = 0,
        seq: str | None = None,
        type_: str | None = "thing.done.v1",
        key: str | None = "k",
        topic: str | None = None,
        id_: UUID | None = None,
    ) -> None:
        """One record; `flush` afterwards."""
        headers: list[tuple[str, str | bytes | None]] = []
        if type_ is not None:
            headers.append(("type", type_.encode()))
        if seq is not None:
            headers.append(("outbox-seq", seq.encode()))
        if id_ is not None:
            headers.append(("id", str(id_).encode()))
        self._put[partition] += topic is None
        self._producer.poll(0)  # records count as queued until their reports are taken
        self._producer.produce(topic or self.topic, value, key, partition=partition, headers=headers)

    def flush(self, *, within: float = 20) -> None:
        assert self._producer.flush(within) == 0

    def consumer(self, kafka: dict[str, Any] | None = None, **settings: Any) -> Consumer:
        """A consumer without handlers."""
        properties = {
            "bootstrap.servers": self.bootstrap,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
            **(kafka or {}),
        }
        if properties.get("group.protocol") == "consumer":
            del properties["session.timeout.ms"], properties["heartbeat.interval.ms"]
        settings.setdefault("concurrency", 3 if "lanes" in self.kind else 1)
        group = settings.pop("group", self.group)
        if self.awaited:
            engine = create_async_engine(self.engine.url)
            return Awaiting(group=group, sessions=async_sessionmaker(engine), kafka=properties, **settings)
        sessions = settings.pop("sessions", None) or sessionmaker(self.engine)
        return Consumer(group=group, sessions=sessions, kafka=properties, **settings)

    def recorder(self, kafka: dict[str, Any] | None = None, **settings: Any) -> Consumer:
        """A consumer that stores each record as an effect."""
        consumer = self.consumer(kafka, **settings)

        @consumer.on(topic=self.topic)
        def store(session: Session, value: bytes, record: Record) -> None:
            self.store(session, record, consumer.group)

        return consumer

    def store(self, session: Session, record: Record, group: str | None = None, pid: int = 0) -> None:
        """The effect of one record."""
        session.execute(
            INSERT,
            {
                "grp": group or self.group,
                "partition": record.partition,
                "offset": record.offset,
                "value": (record.value or b"").decode(),
                "pid": pid,
                "sent": None if record.timestamp is None else record.timestamp.timestamp(),
            },
        )

    def effects(self, partition: int | None = None, group: str | None = None) -> list[str]:
        """What was stored, in the order of storing."""
        where = "" if partition is None else f" AND partition = {partition}"
        with self.engine.connect() as connection:
            rows = connection.execute(
                text(f"SELECT value FROM effect WHERE grp = :grp{where} ORDER BY n"),
                {"grp": group or self.group},
            )
            return [value for (value,) in rows]

    def expected(self, partition: int) -> list[str]:
        """What `send` sent to it, in order."""
        return [f"{partition}.{n}" for n in range(1, self._sent[partition] + 1)]

    def row(self, partition: int = 0, topic: str | None = None) -> Row[Any]:
        """The partition's row in consumer_offset."""
        with self.engine.connect() as connection:
            return connection.execute(
                text("SELECT * FROM consumer_offset WHERE grp = :g AND topic = :t AND partition = :p"),
                {"g": self.group, "t": topic or self.topic, "p": partition},
            ).one()

    def offset(self, partition: int = 0, group: str | None = None) -> int:
        """Its next offset in the database; -1 before the first claim."""
        with self.engine.connect() as connection:
            found = connection.scalar(
                text("SELECT next_offset FROM consumer_offset WHERE (grp, topic, partition) = (:g, :t, :p)"),
                {"g": group or self.group, "t": self.topic, "p": partition},
            )
            return -1 if found is None else int(found)

    def sql(self, statement: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def all_there(self) -> bool:
        """Are all effects stored (or more)?"""
        return len(self.effects()) >= sum(self._sent.values())

    def wait(self, *, within: float = 90.0) -> None:
        """Until every record sent has an effect."""
        eventually(self.all_there, within=within, what="all effects")

    def faults(self) -> list[str]:
        """Lost, doubled and misplaced effects, in words; empty when each is stored once and in order."""
        wrong = []
        for partition in range(self.partitions):
            stored, sent = self.effects(partition), self.expected(partition)
            if stored != sent:
                wrong.append(
                    f"[{partition}] lost {sorted(set(sent) - set(stored))[:5]}, doubled "
                    f"{sorted({v for v in stored if stored.count(v) > 1})[:5]}, {len(stored)} of {len(sent)}"
                )
        return wrong

    def process(self, **orders: Any) -> Child:
        """A consumer process (see app.py). Whoever starts it ends it."""
        task = {
            "url": self.url,
            "bootstrap": self.bootstrap,
            "group": self.group,
            "topic": self.topic,
            "kind": self.kind,
            **orders,
        }
        return nursery.give_birth("tests.consumer.app", [json.dumps(task)])


@contextmanager
def running(
    consumer: Consumer, threads: int = 1, partitions: list[tuple[str, int]] | None = None
) -> Iterator[Consumer]:
    """The consumer at work while inside; what ended it too early is raised."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            consumer.run(threads, partitions=partitions)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="running")
    thread.start()
    try:
        yield consumer
    finally:
        consumer.stop()
        thread.join(30)
        assert not thread.is_alive(), "the consumer does not stop"
    if failures:
        raise failures[0]
