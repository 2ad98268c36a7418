"""Four services in a ring: each applies what the one before it announced and announces it to the next.

A walk is a key. The first service emits its steps; every hop stores a step and emits it on, in one
transaction; the fourth hop ends in the first service's database again.

`main('{"database": …, "bootstrap": …, "hop": 2, "from": …, "to": …, "break": …}')`
is the consumer of one hop.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Outbox
from outbox.consumer import Consumer
from outbox.testing.servers import KafkaServer, PostgresServer
from tests import nursery
from tests.conftest import create_engine
from tests.consumer import broken
from tests.consumer.stage import SHORT
from tests.nursery import Child
from tests.relay import wire
from tests.relay.process import RelayProcess

HOPS = 4

TABLE = "CREATE TABLE step (place bigint GENERATED ALWAYS AS IDENTITY, hop int, walk text, n int)"
STORE = text("INSERT INTO step (hop, walk, n) VALUES (:hop, :walk, :n)")
STORED = "SELECT walk, n FROM step WHERE hop = :hop ORDER BY place"
EMITTED = """
SELECT aggregateid, (convert_from(payload, 'UTF8')::jsonb ->> 'n')::int FROM outbox_event ORDER BY position
"""
COUNT = text("SELECT count(*) FROM step WHERE hop = :hop")


class Stepped(Event, name="hops.stepped", version=1, topic="unused", aggregate="walk", key="walk"):
    walk: str
    n: int
    pad: str = ""


Steps = dict[str, list[int]]


class Ring:
    """Databases 0 … 3 with a relay each, topics 0 … 3 that they send to, consumers of hops 1 … 4.

    Odd databases' relays are transactional, the others sequenced. A consumer that is killed comes back as
    the same static member, so that nobody waits for its session to end.
    """

    def __init__(
        self, postgres: PostgresServer, kafka: KafkaServer, template: str, log: Path, **orders: Any
    ) -> None:
        self.bootstrap = kafka.bootstrap
        self._log = log
        self._orders = orders
        self._tag = template.rpartition("_")[2]
        self.topics = [kafka.create_topic(f"hop.{n}.{self._tag}", 3) for n in range(HOPS)]
        self.urls = [postgres.database(f"hop_{n}_{self._tag}", template=template) for n in range(HOPS)]
        self.engines: list[Engine] = [create_engine(url) for url in self.urls]
        for number, engine in enumerate(self.engines):
            with engine.begin() as connection:
                connection.execute(text(TABLE))
                if number % 2:
                    connection.execute(text("UPDATE outbox_shard SET wanted_mode = 'transactional'"))
        self.relays = [self._relay(number) for number in range(HOPS)]
        self.consumers = [self._consumer(hop) for hop in range(1, HOPS + 1)]
        self.sent: Steps = defaultdict(list)
        self._first = Outbox(sessionmaker(self.engines[0]))

    def send(self, walk: str, count: int) -> None:
        """The next steps of a walk, one transaction for all."""
        with self._first.sessions.begin() as session:
            for _ in range(count):
                n = len(self.sent[walk])
                self._first.emit(session, Stepped(walk=walk, n=n, pad="x" * 200), topic=self.topics[0])
                self.sent[walk].append(n)

    def kill_relay(self, number: int) -> None:
        self.relays[number].close()
        self.relays[number] = self._relay(number)

    def kill_consumer(self, number: int) -> None:
        self.consumers[number].kill()
        self.consumers[number].wait(10)
        self.consumers[number] = self._consumer(number + 1)

    def hang_up(self) -> None:
        """Forget the connections to a server that was killed."""
        for engine in self.engines:
            engine.dispose()

    def arrived(self) -> bool:
        """Did as many steps as were sent (or more) reach every hop?"""
        total = sum(map(len, self.sent.values()))
        for hop in range(1, HOPS + 1):
            with self._at(hop).connect() as connection:
                if connection.execute(COUNT, {"hop": hop}).scalar_one() < total:
                    return False
        return True

    def faults(self) -> list[str]:
        """Where steps were lost, doubled or misplaced; empty if every hop has each once and in order."""
        found: list[str] = []
        for hop in range(1, HOPS + 1):
            found += self._compare(f"results of hop {hop}", self._rows(self._at(hop), STORED, hop=hop))
        for number in range(HOPS):
            found += self._compare(f"events of database {number}", self._rows(self.engines[number], EMITTED))
            applied = wire.effects(wire.read(self.bootstrap, self.topics[number]))
            records = [((r.key or b"").decode(), json.loads(r.value or b"{}")["n"]) for r in applied]
            found += self._compare(f"records of topic {number}", records)
        return found

    def _compare(self, what: str, found: Sequence[tuple[str, int]]) -> list[str]:
        steps: Steps = defaultdict(list)
        for walk, n in found:
            steps[walk].append(n)
        return [
            f"{what}: walk {walk} has {steps[walk][:30]} … ({len(steps[walk])} of {len(expected)})"
            for walk, expected in self.sent.items()
            if steps[walk] != expected
        ]

    def _at(self, hop: int) -> Engine:
        return self.engines[hop % HOPS]

    def _rows(self, engine: Engine, query: str, **values: Any) -> list[tuple[str, int]]:
        with engine.connect() as connection:
            return [(walk, n) for walk, n in connection.execute(text(query), values)]

    def _relay(self, number: int) -> RelayProcess:
        settings = {
            "OUTBOX_DATABASE_URL": self.urls[number],
            "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "OUTBOX_LEASE": "0.5",
            "OUTBOX_CHUNK_ROWS": "20",
            "OUTBOX_COMPACTED_TOPICS": "allow",
        }
        return RelayProcess(settings, self._log / f"relay-{number}.log")

    def _consumer(self, hop: int) -> Child:
        task = {
            "database": self.urls[hop % HOPS],
            "bootstrap": self.bootstrap,
            "group": f"hop.{hop}.{self._tag}",
            "hop": hop,
            "from": self.topics[hop - 1],
            "to": self.topics[hop] if hop < HOPS else None,
            **self._orders,
        }
        return nursery.give_birth("tests.consumer.hops", [json.dumps(task)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for consumer in self.consumers:
            consumer.kill()
            consumer.wait(10)
        for relay in self.relays:
            relay.close()
        self.hang_up()


def consumer(task: dict[str, Any]) -> Consumer:
    """The consumer of one hop."""
    sessions = sessionmaker(create_engine(task["database"]))
    outbox = Outbox(sessions)
    kafka = {
        **SHORT,
        "bootstrap.servers": task["bootstrap"],
        "max.poll.interval.ms": 10_000,
        "group.instance.id": f"hop-{task['hop']}",
    }
    consumer = Consumer(group=task["group"], sessions=sessions, kafka=kafka, batch_size=10)

    @consumer.on(Stepped, topic=task["from"])
    def step(session: Session, event: Stepped) -> None:
        session.execute(STORE, {"hop": task["hop"], "walk": event.walk, "n": event.n})
        if task["to"] is not None:
            outbox.emit(session, event, topic=task["to"])

    return consumer


def main(order: str) -> None:
    task: dict[str, Any] = json.loads(order)
    if task.get("break"):
        broken.apply(task["break"])
    consumer(task).run()
