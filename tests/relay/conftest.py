"""A database, a topic, and relays in processes of their own that a test can kill at any step."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
from sqlalchemy import Engine

from outbox.testing.servers import KafkaBroker, KafkaServer, start_kafka
from relay.database import plain_url
from tests.conftest import TopicFactory
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, Session


class StartRelay(Protocol):
    """Starts a relay on this test's scene; keyword arguments are settings (`lease="1"`)."""

    def __call__(
        self, *, strike: str | None = None, sabotage: str | None = None, **settings: object
    ) -> RelayProcess: ...


class Connect(Protocol):
    """Opens a session of an application on this test's database."""

    def __call__(self, *, autocommit: bool = False) -> Session: ...


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens sessions; they are closed after the test."""
    opened: list[Session] = []

    def open_(*, autocommit: bool = False) -> Session:
        opened.append(psycopg.connect(plain_url(database), autocommit=autocommit))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@pytest.fixture
def scene(database: str, engine: Engine, kafka: KafkaServer, topic: TopicFactory) -> Iterator[Scene]:
    """A fresh database and a topic of six partitions on the session's servers."""
    with Scene(database, kafka.bootstrap, topic("events")) as scene:
        yield scene


@pytest.fixture(scope="session")
def second_kafka() -> Iterator[KafkaServer]:
    """A broker of one's own to kill and freeze, without having to start it each time."""
    with start_kafka(own=True) as server:
        yield server


@pytest.fixture
def broker(second_kafka: KafkaServer, scene: Scene) -> Iterator[KafkaBroker]:
    """The only broker of this scene's cluster. It may be left dead, not frozen."""
    (broker,) = second_kafka.brokers
    if not broker.running:
        broker.start()
    scene.bootstrap = scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = second_kafka.bootstrap
    second_kafka.create_topic(scene.topic, 6)
    yield broker
    if broker.running:
        broker.resume()


@pytest.fixture
def start(tmp_path: Path, scene: Scene) -> Iterator[StartRelay]:
    """Starts relays; they are gone after the test."""
    running: list[RelayProcess] = []

    def start_one(
        *, strike: str | None = None, sabotage: str | None = None, **settings: object
    ) -> RelayProcess:
        given = {**scene.settings, **{f"OUTBOX_{name.upper()}": str(v) for name, v in settings.items()}}
        given.setdefault("OUTBOX_INSTANCE", f"relay-{len(running) + 1}")
        log = tmp_path / f"relay-{len(running) + 1}.log"
        running.append(RelayProcess(given, log, strike=strike, sabotage=sabotage))
        return running[-1]

    yield start_one
    for relay in running:
        relay.close()


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    logging.getLogger("relay.kafka").setLevel(logging.CRITICAL)
