"""Relays behind a pooler: whatever it does to their connections, every event arrives, in order."""

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PgBouncer, PostgresServer, start_pgbouncer, start_postgres
from outbox.testing.servers.postgres import OwnPostgres
from tests.conftest import TopicFactory, create_engine
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.database.half import drain, shard, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.database.test_fail_over import Pair
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until

LEAKS = (
    "SET synchronous_commit = off",
    "SET default_transaction_isolation = 'repeatable read'",
    "SET jit = on",
    "SET enable_seqscan = on",
    "SET bytea_output = escape",
    "SET client_min_messages = error",
    "SET lock_timeout = '1ms'",
    "SET extra_float_digits = 0",
    "SELECT pg_try_advisory_lock(7)",
    "LISTEN somebody",
)
"""What a client that takes its connection for a session leaves behind in the pool."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)


class Noise(threading.Thread):
    """Clients of the same pool: they leak settings, hold transactions open, and write events now and then."""

    def __init__(self, scene: Scene, pooled: str, until: float) -> None:
        super().__init__(daemon=True)
        self._scene = scene
        self._pooled = pooled
        self._until = until
        self._random = random.Random(1)

    def run(self) -> None:
        while time.monotonic() < self._until:
            with suppress(psycopg.Error), psycopg.connect(self._pooled, prepare_threshold=None) as session:
                session.autocommit = True
                session.execute(self._random.choice(LEAKS).encode())
                session.autocommit = False
                self._scene.write(self._random.randint(1, 20), keys=0, session=session)
                time.sleep(self._random.uniform(0, 0.05))
                if self._random.random() < 0.2:
                    session.rollback()


def test_neighbours_that_leak_and_a_pooler_that_dies_cost_nothing(
    scene: Scene, start: StartRelay, pooler: PgBouncer, pooled: str
) -> None:
    scene.settings["OUTBOX_DATABASE_URL"] = pooler.through(scene.database)
    relays = [start(sabotage="impatient") for _ in range(2)]
    until(lambda: any(r.count("relay.claimed") for r in relays), 30, lambda: relays[0].log)
    end = time.monotonic() + 4
    noise = [Noise(scene, pooled, end) for _ in range(3)]
    for thread in noise:
        thread.start()
    for _ in range(3):
        scene.write(50)
        time.sleep(1)
        pooler.kill()
        pooler.start()
    for thread in noise:
        thread.join(30)
    last = scene.write(20)
    scene.wait_until_through(60)
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert last[-1] in {record.id for record in records}
    assert all(relay.stop() == 0 for relay in relays)


def test_a_relay_with_a_role_of_its_own_carries_through_the_pooler(
    scene: Scene, start: StartRelay, relay_role: str
) -> None:
    scene.settings["OUTBOX_DATABASE_URL"] = relay_role
    relay = start()
    for _ in range(20):
        scene.write(50)
    scene.wait_until_through()
    assert scene.complaints() == []
    assert wire.repeats(scene.arrived()) == 0
    assert relay.stop() == 0
    assert "WARNING" not in relay.log


def test_an_exhausted_pool_is_named_and_left_behind(
    scene: Scene, start: StartRelay, postgres: PostgresServer
) -> None:
    with start_pgbouncer(postgres.url, {"default_pool_size": "2", "query_wait_timeout": "1"}) as small:
        scene.settings["OUTBOX_DATABASE_URL"] = small.through(scene.database)
        relay = start(sabotage="impatient")
        relay.wait_for("relay.claimed")
        scene.write(10)
        scene.wait_until_through()
        with ExitStack() as hogs:
            for _ in range(2):
                hog = hogs.enter_context(
                    psycopg.connect(small.through(scene.database), prepare_threshold=None)
                )
                hog.execute("SELECT 1")
            scene.write(10)
            until(lambda: "raise its default_pool_size" in relay.log, 30, lambda: relay.log)
        scene.wait_until_through()
        assert scene.complaints() == []
        assert relay.stop() == 0


class Behind:
    """A server of this test's own, a pooler in front of it, and a relay that knows the pooler only."""

    def __init__(self, server: PostgresServer, pooler: PgBouncer, scene: Scene, relay: RelayProcess) -> None:
        self.server, self.pooler, self.scene, self.relay = server, pooler, scene, relay


@pytest.fixture
def behind(kafka: KafkaServer, topic: TopicFactory, tmp_path: Path) -> Iterator[Behind]:
    with (
        start_postgres({"fsync": "off", "synchronous_commit": "off"}, own=True) as server,
        start_pgbouncer(server.url) as pooler,
    ):
        engine = create_engine(url := server.database("shop"))
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        with Scene(url, kafka.bootstrap, topic("events")) as scene:
            settings = {**scene.settings, "OUTBOX_DATABASE_URL": pooler.through(url)}
            with RelayProcess(settings, tmp_path / "log", sabotage="impatient") as relay:
                relay.wait_for("relay.claimed")
                yield Behind(server, pooler, scene, relay)


def test_a_server_that_crashes_behind_the_pooler_loses_nothing_that_it_kept(behind: Behind) -> None:
    """The relay's connection may survive the crash; what it knows of the server must not."""
    scene = behind.scene
    for _ in range(3):
        for _ in range(20):
            with suppress(psycopg.Error):
                scene.write(5)
        behind.server.kill()
        behind.server.start()
        scene.session.close()
        scene.session = psycopg.connect(scene.database, autocommit=True)
        until(lambda: works(behind.pooler.through(scene.database)), 20, behind.pooler.log)
    scene.write(20)
    scene.wait_until_through(60)
    records = scene.arrived()
    kept = scene.committed()
    assert wire.complaints(records, kept) == []
    assert behind.relay.stop() == 0


def works(url: str) -> Any:
    with suppress(psycopg.Error), psycopg.connect(url, prepare_threshold=None, connect_timeout=2) as session:
        return session.execute("SELECT true").fetchall()
    return None


@pytest.fixture
def turncoat() -> Iterator[OwnPostgres]:
    with start_postgres({"max_connections": 30}, own=True) as server:
        assert isinstance(server, OwnPostgres)
        yield server


def test_a_promotion_behind_the_pooler_is_noticed_although_the_connection_stands(
    turncoat: OwnPostgres,
) -> None:
    """What answers next has the same row and another history: numbers go on under a new name."""
    url = turncoat.database("shop")
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    broker, pair = MemoryBroker(), Pair(turncoat, url)
    with start_pgbouncer(turncoat.url) as pooler:
        carrying = shard(pooler.through(url), broker)
        with pair.session() as session:
            before = write(session, 3)
        drain(carrying)
        pair.become_standby()
        pair.promote()
        with pair.session() as session:
            after = write(session, 3)
        until(lambda: works(pooler.through(url)), 20, pooler.log)

        def through() -> bool:
            carrying.run_once()
            return broker.ids() == before + after

        until(through, 20, lambda: str(broker.log))
        sources = [record.seq.source for record in broker.log]
        assert len(set(sources)) == 2, "one number for two histories"
        pair.become_standby()
        with suppress(AssertionError):
            until(lambda: bool(carrying.run_once().published), 0.2, str)
        assert len(broker.log) == len(sources), "a standby behind the pooler is waited out"
        pair.promote()
        carrying.finish()
