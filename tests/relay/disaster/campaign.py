"""Fail over a pair under writers, with the relay as a process and a real Kafka, and judge what arrived.

`python -m tests.relay.disaster.campaign --rounds 20` (or `make disasters`): each round a pair of its own and
the next kind. Judged by what the promoted server knows, with rules that share no code with the framework.
"""

import argparse
import random
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg

from outbox.storage import ddl
from outbox.storage.roles import Roles, statements
from outbox.testing.servers import KafkaServer, postgres_copies, start_kafka, start_postgres
from outbox.testing.servers.postgres import OwnPostgres
from tests.conftest import create_engine
from tests.relay import wire
from tests.relay.disaster.copies import Here
from tests.relay.disaster.pair import NAME, Pair
from tests.relay.process import RelayProcess
from tests.relay.scene import until

SMALL: dict[str, str | int | float | bool] = {**postgres_copies.PAIR, "max_connections": 40}


WRITE = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', %(key)s, 'order.placed.v1', '{}', %(topic)s FROM generate_series(1, 2)
RETURNING id::text
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """How the pair is run and how it ends. `synchronous`: commits wait; `waiting`: the relay waits."""

    synchronous: bool
    waiting: bool
    switch: bool

    @property
    def exact(self) -> bool:
        """Is it promised that nothing is sent which the promoted server does not know?"""
        return self.synchronous or self.waiting or self.switch

    def __str__(self) -> str:
        words = ["synchronous" if self.synchronous else "asynchronous"]
        words += ["relay waits"] if self.waiting else []
        return ", ".join([*words, "switch-over" if self.switch else "fail-over"])


KINDS = [
    Kind(synchronous=True, waiting=False, switch=False),
    Kind(synchronous=False, waiting=True, switch=False),
    Kind(synchronous=False, waiting=False, switch=False),
    Kind(synchronous=False, waiting=False, switch=True),
    Kind(synchronous=True, waiting=True, switch=True),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of one round, and what was promised and is not so."""

    kind: Kind
    known: int
    forgotten: int
    ghosts: int
    repeats: int
    complaints: list[str]


class Writers:
    """Commit events on whichever server takes them, each under a key of its own: one after the other.

    `committed`: what was acknowledged.
    """

    def __init__(self, pair: Pair, topic: str, count: int) -> None:
        self._pair, self._topic = pair, topic
        self.committed: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        values = {"key": f"writer {number}", "topic": self._topic}
        while not self._over.is_set():
            try:
                with psycopg.connect(self._pair.url, autocommit=True, connect_timeout=3) as session:
                    while not self._over.is_set():
                        found = session.execute(WRITE, values).fetchall()
                        self.committed += [id_ for (id_,) in found]
                        self._over.wait(0.005)
            except psycopg.Error:
                self._over.wait(0.05)


def play(kind: Kind, kafka: KafkaServer, log: Path, *, events: int = 200) -> Verdict:
    """One round."""
    topic = kafka.create_topic(f"failing.{uuid4().hex[:12]}", 4)
    with start_postgres(SMALL, own=True) as primary:
        assert isinstance(primary, OwnPostgres)
        here = _installed(primary)
        with postgres_copies.start_standby(primary, NAME, {"max_connections": 40}) as standby:
            pair = Pair(primary, standby, here)
            pair.wait_until_it_streams()
            if kind.synchronous:
                primary.reload({"synchronous_standby_names": NAME})
            try:
                return _fail_over(pair, kind, kafka, topic, log, events)
            finally:
                kafka.delete_topic(topic)


def _installed(primary: OwnPostgres) -> Here:
    here = Here(primary, primary.database("shop"))
    engine = create_engine(here.url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    with here.session() as session:
        for statement in statements(Roles(standbys=True)):
            session.execute(statement.encode())
    return here


def _fail_over(pair: Pair, kind: Kind, kafka: KafkaServer, topic: str, log: Path, events: int) -> Verdict:
    settings = {
        "OUTBOX_DATABASE_URL": pair.url,
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "OUTBOX_LEASE": "2",
        "OUTBOX_INSTANCE": "campaign",
        **({"OUTBOX_WAIT_FOR_STANDBY": "1"} if kind.waiting else {}),
    }
    writers = Writers(pair, topic, 3)
    with RelayProcess(settings, log) as relay:
        try:
            until(lambda: len(writers.committed) >= events, 60, lambda: "writers do not begin")
            relay.wait_for("relay.acknowledged", 5)
            if kind.switch:
                pair.switch_over()
            else:
                pair.fail_over()
            so_far = len(writers.committed)
            following = (
                postgres_copies.start_standby(pair.standby, "replica2", SMALL) if kind.waiting else None
            )
            try:
                until(lambda: len(writers.committed) >= so_far + events, 90, lambda: "writers do not go on")
                writers.stop()
                with pair.there.session() as session:
                    known = session.execute(
                        "SELECT id::text, aggregateid FROM outbox_event ORDER BY position"
                    ).fetchall()
                ids = {id_ for id_, _ in known}
                until(
                    lambda: ids <= {r.id for r in wire.read(kafka.bootstrap, topic)},
                    90,
                    lambda: relay.log[-3000:],
                )
                arrived = wire.read(kafka.bootstrap, topic)
                relay.stop()
            finally:
                if following is not None:
                    following.close()
        finally:
            writers.stop()
    return _judge(kind, arrived, known, set(writers.committed) - ids)


def _judge(
    kind: Kind, arrived: list[wire.Arrived], known: list[tuple[str, str | None]], forgotten: set[str]
) -> Verdict:
    ids = {id_ for id_, _ in known}
    ghosts = {record.id for record in arrived} - ids
    complaints = wire.complaints([record for record in arrived if record.id in ids], known)
    if kind.exact and ghosts:
        complaints.append(f"{len(ghosts)} were sent that the promoted server does not know")
    if (kind.synchronous or kind.switch) and forgotten:
        complaints.append(f"{len(forgotten)} acknowledged commits are gone")
    return Verdict(kind, len(ids), len(forgotten), len(ghosts), wire.repeats(arrived), complaints)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    choose, wrong = random.Random(given.seed), 0
    with start_kafka(own=True) as kafka, tempfile.TemporaryDirectory() as logs:
        for number in range(given.rounds):
            kind = KINDS[number % len(KINDS)]
            verdict = play(kind, kafka, Path(logs) / f"{number}.log", events=choose.randint(50, 600))
            wrong += bool(verdict.complaints)
            sys.stdout.write(
                f"{number:3} {kind}: {verdict.known} known, {verdict.forgotten} commits forgotten, "
                f"{verdict.ghosts} sent and forgotten, {verdict.repeats} repeats on the wire, "
                f"{'; '.join(verdict.complaints) or 'as promised'}\n"
            )
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
