"""Fail over a pair under writers, with relays as processes and a real Kafka, and judge what arrived.

`python -m tests.relay.disaster.campaign --rounds 20` (or `make disasters`): each round a pair of its own and
the next kind. Judged by what the promoted server knows, with rules that share no code with the framework,
and by the effects of a consumer whose database fails over, too. `--reshard`: the number of shards is changed
all the while, every other round in mode transactional, and relays are killed.
"""

import argparse
import logging
import random
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
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
from tests.relay.effects import Effects
from tests.relay.effects import complaints as effects_complaints
from tests.relay.process import RelayProcess
from tests.relay.scene import until
from tests.relay.sharding.campaign import DRAINED

SMALL: dict[str, str | int | float | bool] = {**postgres_copies.PAIR, "max_connections": 80}

KEYS = 3
"""Of each writer."""

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
    generations: int
    complaints: list[str]


class Writers:
    """Commit events on whichever server takes them, each under keys of its own: one after the other.

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
        turn = 0
        while not self._over.is_set():
            try:
                with psycopg.connect(self._pair.url, autocommit=True, connect_timeout=3) as session:
                    while not self._over.is_set():
                        values = {"key": f"writer {number}, {turn % KEYS}", "topic": self._topic}
                        turn += 1
                        found = session.execute(WRITE, values).fetchall()
                        self.committed += [id_ for (id_,) in found]
                        self._over.wait(0.005)
            except psycopg.Error:
                self._over.wait(0.05)


class Relays:
    """Two of them, one of which is killed now and then; others take their places."""

    def __init__(self, settings: Mapping[str, str], log: Path) -> None:
        self._settings, self._log = settings, log
        self.running = [self._start(), self._start()]

    def kill(self, choose: random.Random) -> None:
        self.running.pop(choose.randrange(2)).close()
        self.running.append(self._start())

    def stop(self) -> None:
        for relay in self.running:
            relay.stop()

    def close(self) -> None:
        for relay in self.running:
            relay.close()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def _start(self) -> RelayProcess:
        return RelayProcess({**self._settings, "OUTBOX_INSTANCE": uuid4().hex[:8]}, self._log)


class Operator:
    """Changes the number of shards again and again, on whichever server takes it, and kills relays."""

    def __init__(self, pair: Pair, relays: Relays, choose: random.Random) -> None:
        self._pair, self._relays, self._choose = pair, relays, choose
        self.asked = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(self._choose.uniform(0.05, 0.5)):
            if self._choose.random() < 0.05:
                self._relays.kill(self._choose)
            with (
                suppress(psycopg.Error),
                psycopg.connect(self._pair.url, autocommit=True, connect_timeout=3) as session,
            ):
                session.execute("SELECT outbox_shards_set(%s)", [self._choose.choice([1, 2, 3, 4])])
                self.asked += 1


@dataclass(frozen=True, slots=True)
class Round:
    """`reshard`: whose choices the operator makes; None where the number of shards stays."""

    kind: Kind
    events: int = 200
    reshard: random.Random | None = None
    mode: str = "sequenced"


def play(round_: Round, kafka: KafkaServer, log: Path) -> Verdict:
    topic = kafka.create_topic(f"failing.{uuid4().hex[:12]}", 4)
    with start_postgres(SMALL, own=True) as primary:
        assert isinstance(primary, OwnPostgres)
        here = _installed(primary)
        billing = primary.database("billing", template=here.name)
        with here.session() as session:
            session.execute("UPDATE outbox_shard SET wanted_mode = nullif(%s, mode)", [round_.mode])
        with postgres_copies.start_standby(primary, NAME, SMALL) as standby:
            pair = Pair(primary, standby, here)
            pair.wait_until_it_streams()
            effects = Effects(pair.url_of(Here(primary, billing).name), kafka.bootstrap, topic)
            if round_.kind.synchronous:
                primary.reload({"synchronous_standby_names": NAME})
            try:
                with effects.storing():
                    return _fail_over(pair, round_, kafka, topic, log, effects)
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


def _fail_over(
    pair: Pair, round_: Round, kafka: KafkaServer, topic: str, log: Path, effects: Effects
) -> Verdict:
    kind, events = round_.kind, round_.events
    settings = {
        "OUTBOX_DATABASE_URL": pair.url,
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "OUTBOX_LEASE": "1",
        **({"OUTBOX_WAIT_FOR_STANDBY": "1"} if kind.waiting else {}),
    }
    writers, relays = Writers(pair, topic, 3), Relays(settings, log)
    with ExitStack() as ends:
        ends.callback(relays.close)
        ends.callback(writers.stop)
        operator = None
        if round_.reshard is not None:
            operator = Operator(pair, relays, round_.reshard)
            ends.callback(operator.stop)
        until(lambda: len(writers.committed) >= events, 60, lambda: "writers do not begin")
        until(lambda: bool(effects.stored()), 60, lambda: relays.log)
        if kind.switch:
            pair.switch_over()
        elif kind.synchronous:
            pair.fail_over()
        else:
            with pair.held_back():
                so_far = len(writers.committed)
                until(
                    lambda: len(writers.committed) >= so_far + events // 2, 60, lambda: "writers do not go on"
                )
                pair.fail_over()
        so_far = len(writers.committed)
        if kind.waiting:
            following = postgres_copies.start_standby(pair.standby, "replica2", SMALL)
            ends.callback(following.close)
        until(lambda: len(writers.committed) >= so_far + events, 90, lambda: "writers do not go on")
        writers.stop()
        if operator is not None:
            operator.stop()
        with pair.there.session() as session:
            until(lambda: session.execute(DRAINED).fetchone() == (True,), 90, lambda: relays.log)
            known = session.execute(
                "SELECT id::text, aggregateid FROM outbox_event ORDER BY position"
            ).fetchall()
            [(generations,)] = session.execute("SELECT max(generation) FROM outbox_shard")
        ids = {id_ for id_, _ in known}
        effects.wait_for(ids)
        arrived, stored = wire.read(kafka.bootstrap, topic), effects.stored()
        relays.stop()
    ghosts = {record.id for record in arrived} - ids
    forgotten = set(writers.committed) - ids
    complaints = effects_complaints(stored, known, exact=kind.exact)
    if kind.exact:
        complaints += wire.complaints(arrived, known)
        if round_.mode == "transactional":
            complaints += wire.plain_complaints(arrived, known)
    if (kind.synchronous or kind.switch) and forgotten:
        complaints.append(f"{len(forgotten)} acknowledged commits are gone")
    return Verdict(
        kind, len(ids), len(forgotten), len(ghosts), wire.repeats(arrived), generations, complaints
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reshard", action="store_true", help="change the number of shards all the while")
    given = parser.parse_args()
    choose, wrong = random.Random(given.seed), 0
    logging.disable(logging.WARNING)
    with start_kafka(own=True) as kafka, tempfile.TemporaryDirectory() as logs:
        for number in range(given.rounds):
            round_ = Round(
                KINDS[number % len(KINDS)],
                choose.randint(50, 600),
                random.Random(choose.random()) if given.reshard else None,
                "transactional" if given.reshard and number % 2 else "sequenced",
            )
            verdict = play(round_, kafka, Path(logs) / f"{number}.log")
            wrong += bool(verdict.complaints)
            sys.stdout.write(
                f"{number:3} {round_.kind}, {round_.mode}: {verdict.known} known in {verdict.generations} "
                f"generations, {verdict.forgotten} commits forgotten, {verdict.ghosts} sent and forgotten, "
                f"{verdict.repeats} repeats on the wire, {'; '.join(verdict.complaints) or 'as promised'}\n"
            )
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
