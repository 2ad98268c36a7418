"""Services behind a pooler: what they write leaves with their data, what they read takes effect once."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Pool, QueuePool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import Event, Outbox
from outbox.consumer import Consumer, Record
from outbox.testing.servers import KafkaServer, PgBouncer
from tests.conftest import TopicFactory
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until

EVENTS = 300


class Counted(Event, name="pooler.counted", version=1, aggregate="count", key="id"):
    id: UUID
    n: int


@pytest.mark.parametrize("pool", [NullPool, QueuePool])
def test_events_written_and_applied_through_the_pooler_take_effect_once_in_order(
    scene: Scene,
    start: StartRelay,
    kafka: KafkaServer,
    topic: TopicFactory,
    pooler: PgBouncer,
    pool: type[Pool],
) -> None:
    url = make_url(pooler.through(scene.database)).set(drivername="postgresql+psycopg")
    engine = create_engine(
        url, poolclass=pool, connect_args={"prepare_threshold": None}, pool_pre_ping=pool is QueuePool
    )
    scene.session.execute("CREATE TABLE counted (place bigserial, n int); CREATE TABLE written (n int)")
    outbox = Outbox(sessionmaker(engine))
    one = uuid4()

    @outbox.transaction
    def count(session: Session, n: int) -> None:
        session.execute(text("INSERT INTO written VALUES (:n)"), {"n": n})
        outbox.emit(session, Counted(id=one, n=n), topic=scene.topic)

    consumer = Consumer(
        group=f"group.{scene.topic}",
        sessions=sessionmaker(engine),
        kafka={"bootstrap.servers": kafka.bootstrap},
    )

    @consumer.on(Counted, topic=scene.topic)
    def store(session: Session, event: Counted, record: Record) -> None:
        session.execute(text("INSERT INTO counted (n) VALUES (:n)"), {"n": event.n})

    with Running(consumer.run, consumer.stop):
        start(database_url=pooler.through(scene.database), sabotage="impatient")
        for n in range(EVENTS):
            with suppress(DBAPIError):
                count(n)
            if n in {100, 200}:
                pooler.kill()
                pooler.start()
        until(
            lambda: (
                scene.value("SELECT count(*) FROM counted") >= scene.value("SELECT count(*) FROM written")
            ),
            60,
            lambda: str(scene.value("SELECT count(*) FROM counted")),
        )
    written = [n for (n,) in scene.session.execute("SELECT n FROM written ORDER BY n").fetchall()]
    counted = [n for (n,) in scene.session.execute("SELECT n FROM counted ORDER BY place").fetchall()]
    engine.dispose()
    assert len(written) > EVENTS // 2
    assert counted == written


class Running:
    """`work` on a thread of its own while inside."""

    def __init__(self, work: Callable[[], Any], stop: Callable[[], Any]) -> None:
        self._thread = threading.Thread(target=work)
        self._stop = stop

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
