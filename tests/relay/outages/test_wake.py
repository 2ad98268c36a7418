"""An idle relay costs next to nothing; a commit in its own process wakes it without any poll."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import Event, Outbox, emit, hooks
from relay.config import RelayConfig
from relay.daemon import Relay
from tests.relay.conftest import StartRelay
from tests.relay.outages.strain import cpu
from tests.relay.scene import Scene, until

IDLE = 8.0
"""Seconds of idleness that are measured."""


class Rung(Event, name="wake.rung", version=1, aggregate="rung", key="id"):
    id: UUID


def test_an_idle_relay_costs_a_hundredth_of_a_core_and_twelve_queries_a_second(
    scene: Scene, start: StartRelay
) -> None:
    relay = start(lease="5", sabotage="counted")
    scene.write(10)
    scene.wait_until_through()
    time.sleep(2.0)  # until it polls as seldom as it ever does
    began, took, asked = time.monotonic(), cpu(relay.pid), relay.count("statement")
    time.sleep(IDLE)
    passed = time.monotonic() - began
    took, asked = cpu(relay.pid) - took, relay.count("statement") - asked
    assert asked / passed < 12, f"{asked / passed:.1f} queries a second"
    assert took / passed < 0.01, f"{took / passed:.2%} of a core"


@contextmanager
def embedded(scene: Scene, **settings: Any) -> Iterator[Relay]:
    """A relay that runs on a thread of this process, and has become idle."""
    relay = Relay(
        RelayConfig(database_url=scene.database, kafka_bootstrap_servers=scene.bootstrap, **settings)
    )
    running = threading.Thread(target=relay.run)
    running.start()
    try:
        until(lambda: relay.status["state"] == "carrying", 20, lambda: str(relay.status))
        yield relay
    finally:
        relay.stop()
        running.join(20)
        assert not running.is_alive()


def by_session(engine: Engine, topic: str) -> None:
    outbox = Outbox(sessionmaker(engine))

    @outbox.transaction
    def ring(session: Session) -> None:
        outbox.emit(session, Rung(id=uuid4()), topic=topic)

    ring()


def by_connection(engine: Engine, topic: str) -> None:
    with engine.begin() as connection:
        emit(connection, Rung(id=uuid4()), topic=topic)


@pytest.fixture(params=["pooled", "unpooled"])
def service(request: pytest.FixtureRequest, scene: Scene) -> Iterator[Engine]:
    url = make_url(scene.database).set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool) if request.param == "unpooled" else create_engine(url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("commit", [by_session, by_connection])
def test_a_commit_in_the_same_process_is_published_without_a_poll(
    scene: Scene, service: Engine, commit: Callable[[Engine, str], None]
) -> None:
    never = timedelta(minutes=10)
    with embedded(scene, poll_idle=never, poll_busy=never) as relay:
        for n in range(1, 4):
            commit(service, scene.topic)
            until(lambda: relay.status["published"] == n, 20, lambda: str(relay.status))  # noqa: B023


def test_what_is_rolled_back_rings_nobody(service: Engine) -> None:
    heard: list[str] = []
    unsubscribe = hooks.subscribe(lambda point, _facts: heard.append(point))
    try:
        with service.connect() as connection, connection.begin() as transaction:
            emit(connection, Rung(id=uuid4()))
            transaction.rollback()
        with service.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.commit()
        assert "outbox.committed" not in heard
        by_connection(service, "somewhere")
        assert heard.count("outbox.committed") == 1
    finally:
        unsubscribe()
