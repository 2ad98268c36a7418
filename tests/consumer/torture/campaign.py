"""One stretch of torture: records and repeats flow while members, database and brokers are attacked."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from confluent_kafka import KafkaException
from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PostgresServer, start_kafka, start_postgres
from tests.conftest import create_engine
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, eventually
from tests.consumer.torture.crew import Crew
from tests.consumer.torture.wire import Wire

PARTITIONS = 8

STATIC = "static"
"""Cooperative members with names of their own: who comes under a dead one's name has its partitions."""

BY_HAND = "by-hand"
"""Each process is given its partitions, and while it sleeps another one is given the same."""

FORMS = (*PROTOCOLS, STATIC, BY_HAND)

END_BACKENDS = text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.4
""")


@dataclass(frozen=True, slots=True)
class Servers:
    """Three brokers, one database server that may crash, and the wire between it and the consumers."""

    kafka: KafkaServer
    postgres: PostgresServer
    wire: Wire

    def stage(self, name: str) -> Stage:
        """A new database and a new topic; the stage itself does not use the wire."""
        engine = create_engine(self.postgres.database(name))
        with engine.begin() as connection:
            ddl.apply(connection)
        topic = self.kafka.create_topic(name, PARTITIONS)
        url = make_url(self.postgres.url_of(name)).set(
            port=self.wire.port, query={"sslmode": "disable", "gssencmode": "disable"}
        )
        return Stage(
            engine, url.render_as_string(hide_password=False), self.kafka.bootstrap, topic, PARTITIONS
        )


@contextmanager
def servers() -> Iterator[Servers]:
    """What all stretches share."""
    with (
        start_kafka(brokers=3) as kafka,
        start_postgres({"max_connections": 200}, own=True) as postgres,
        Wire("127.0.0.1", make_url(postgres.url).port or 5432) as wire,
    ):
        yield Servers(kafka, postgres, wire)


@dataclass(slots=True)
class Verdict:
    """What one stretch did, and what came of it; no `faults`: every effect is there once, in order."""

    protocol: str
    seed: int
    seconds: float
    records: int = 0
    repeats: int = 0
    claims: int = 0
    attacks: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        attacks = ", ".join(f"{count} {name}" for name, count in sorted(self.attacks.items()))
        return (
            f"{self.protocol}, seed {self.seed}, {self.seconds:.0f} s: {self.records} records, "
            f"{self.repeats} repeats, {self.claims} claims; {attacks}; "
            + ("each effect once and in order" if not self.faults else "WRONG: " + "; ".join(self.faults))
        )


class Campaign:
    """Attacks one group for some seconds and judges what it stored."""

    def __init__(self, servers: Servers, protocol: str, seed: int, processes: int = 6, **orders: Any) -> None:
        """protocol: one of `FORMS`. orders: what each process is told (see app.py)."""
        self._servers = servers
        self._random = Random(f"{protocol}/{seed}")
        self._stage = servers.stage(f"torture_{protocol}_{seed}".replace("-", "_"))
        self._down: list[tuple[float, Callable[[], None]]] = []
        self._verdict = Verdict(protocol, seed, 0.0)
        # So many die here that some record would be taken for the cause, and parked.
        settings = {"batch_size": 20, "attempts": 1000}
        orders = {"settings": settings, "threads": 2, "retry": 0.002, **orders}
        self._crew = Crew(
            self._stage,
            self._random,
            [{**orders, **self._own(protocol, place, processes)} for place in range(processes)],
            replace_sleepers=protocol == BY_HAND,
            one_at_a_time=protocol == STATIC,
        )
        self._attacks: dict[str, tuple[int, Callable[[], bool]]] = {
            "kills": (6, self._crew.kill),
            "freezes": (6, self._crew.freeze),
            "leaves": (3, self._crew.leave),
            "rebalance storms": (2, self._crew.storm),
            "backends ended": (4, self._end_backends),
            "answers to COMMIT lost": (8, self._lose_answers),
            "runs of repeats": (8, self._repeat),
            "postmasters killed": (1, self._crash_postgres),
            "brokers killed": (2, self._kill_broker),
            "brokers frozen": (1, self._freeze_broker),
        }
        if protocol == STATIC:
            # A coordinator that wakes up after another took over has older members of these names and fences
            # the new: their processes end, and whoever watches over them starts them again.
            del self._attacks["brokers frozen"]

    def run(self, seconds: float) -> Verdict:
        """Attack, let everybody recover, judge. Raises AssertionError when they do not recover."""
        names = list(self._attacks)
        weights = [weight for weight, _ in self._attacks.values()]
        lost_before = self._servers.wire.lost
        try:
            self._stage.send(PARTITIONS)
            # By the offsets: a form that commits them apart may lose an effect while members still join.
            eventually(self._at_work, within=120, what="members at work")
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                self._stage.send(self._random.randint(1, 200), flush=False)
                (name,) = self._random.choices(names, weights)
                if self._attacks[name][1]():
                    self._verdict.attacks[name] += 1
                self._crew.wake()
                self._crew.muster()
                self._restore()
                self._let_them_work()
            self._crew.wake(everybody=True)
            self._restore(everything=True)
            self._stage.send(20 * PARTITIONS, flush=False)
            self._stage.flush(within=120)
            eventually(self._read_to_the_ends, within=180, what=f"every record read; {self._verdict}")
            self._crew.muster()
        finally:
            self._crew.close()
            self._restore(everything=True)
        return self._judged(time.monotonic() - began, self._servers.wire.lost - lost_before)

    def _own(self, protocol: str, place: int, places: int) -> dict[str, Any]:
        """What the process at this place is told for itself."""
        if protocol == BY_HAND:
            own = [[self._stage.topic, number] for number in range(place, PARTITIONS, places)]
            return {"kafka": SHORT, "partitions": own, "threads": len(own)}
        if protocol == STATIC:
            return {"kafka": {**PROTOCOLS["cooperative"], **SHORT, "group.instance.id": f"place-{place}"}}
        return {"kafka": {**PROTOCOLS[protocol], **SHORT}}

    def _let_them_work(self) -> None:
        """Until something is applied again, mostly: blows that come too fast would hit who stands still."""
        before, pause = self._applied(), threading.Event()
        until = time.monotonic() + self._random.choice([0.1, 1.0, 4.0, 8.0])
        while time.monotonic() < until and self._applied() <= before:
            pause.wait(0.1)

    def _applied(self) -> int:
        """How many effects there are; none while the database is away."""
        with suppress(SQLAlchemyError):
            return int(self._stage.rows("SELECT count(*) FROM effect")[0][0])
        return 0

    def _judged(self, seconds: float, lost_answers: int) -> Verdict:
        verdict, stage = self._verdict, self._stage
        verdict.seconds = seconds
        verdict.attacks["answers to COMMIT lost"] = lost_answers
        verdict.records = sum(len(stage.expected(p)) for p in range(PARTITIONS))
        ((verdict.claims,),) = stage.rows("SELECT sum(owner_epoch) FROM consumer_offset")
        verdict.faults = stage.faults()
        if self._crew.deserters:
            verdict.faults.append(f"processes ended by themselves, with codes {self._crew.deserters}")
        stage.engine.dispose()
        return verdict

    def _at_work(self) -> bool:
        with suppress(SQLAlchemyError):
            return all(self._stage.offset(p) > 0 for p in range(PARTITIONS))
        return False

    def _read_to_the_ends(self) -> bool:
        with suppress(SQLAlchemyError):
            return all(self._stage.offset(p) == self._stage.end(p) for p in range(PARTITIONS))
        return False

    def _restore(self, *, everything: bool = False) -> None:
        """What was down long enough goes on."""
        now = time.monotonic()
        for until, again in list(self._down):
            if everything or until < now:
                self._down.remove((until, again))
                again()

    def _end_backends(self) -> bool:
        with suppress(SQLAlchemyError), self._stage.engine.connect() as connection:
            return bool(connection.scalar(END_BACKENDS))
        return False

    def _lose_answers(self) -> bool:
        self._servers.wire.lose(self._random.randint(1, 3))
        return True

    def _repeat(self) -> bool:
        self._verdict.repeats += self._stage.repeat(
            self._random.randrange(PARTITIONS), self._random.randint(1, 60), flush=False
        )
        return True

    def _crash_postgres(self) -> bool:
        self._servers.postgres.kill()
        self._servers.postgres.start()
        with suppress(SQLAlchemyError):
            self._stage.engine.dispose()
        return True

    def _kill_broker(self) -> bool:
        """At most one at a time, and only when the others have all that it has: two must agree."""
        if not self._whole():
            return False
        broker = self._random.choice(self._servers.kafka.brokers)
        broker.kill()
        # Mostly back at once; sometimes gone for so long that nobody may have to wait for it.
        away = self._random.choice([1.0, 3.0, 5.0, 25.0])
        self._down.append((time.monotonic() + away, broker.launch))
        return True

    def _freeze_broker(self) -> bool:
        if not self._whole():
            return False
        broker = self._random.choice(self._servers.kafka.brokers)
        broker.pause()
        self._down.append((time.monotonic() + self._random.uniform(1, 5), broker.resume))
        return True

    def _whole(self) -> bool:
        """Do all brokers run, with every replica in sync?"""
        if self._down:
            return False
        with suppress(KafkaException):
            topic = self._servers.kafka.admin.list_topics(self._stage.topic, timeout=5).topics[
                self._stage.topic
            ]
            return all(len(p.isrs) == len(p.replicas) for p in topic.partitions.values())
        return False
