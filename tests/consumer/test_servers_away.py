"""A consumer starts before its servers, outlives them, and never goes on at a wrong place."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from outbox import ddl
from outbox.consumer import consumer as door
from outbox.consumer import readiness
from outbox.consumer.intake import ClientDied
from outbox.testing.servers import KafkaServer, PostgresServer, ServerFailed, start_kafka, start_postgres
from tests.conftest import TopicFactory, create_engine
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that tests may stop."""
    with start_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[KafkaServer]:
    """A broker that tests may kill."""
    with start_kafka() as server:
        yield server


@pytest.fixture
def away(own_postgres: PostgresServer, kafka: KafkaServer, topic: TopicFactory) -> Iterator[Stage]:
    """A stage whose database can go away."""
    name = f"away_{uuid4().hex[:12]}"
    url = own_postgres.database(name)
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    yield Stage(engine, url, kafka.bootstrap, topic("things", partitions=2), 2)
    with suppress(ServerFailed):  # it runs
        own_postgres.start()
    engine.dispose()
    own_postgres.drop(name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_database_that_is_down_when_partitions_are_assigned_is_claimed_from_later(
    away: Stage, own_postgres: PostgresServer, seen: Witness, protocol: str
) -> None:
    away.send(20)
    with running(away.recorder(PROTOCOLS[protocol])):
        away.wait()
    away.send(20)
    consumer = away.recorder(PROTOCOLS[protocol])

    check = readiness.wait_for_topics

    # Down between the check at the start and the assignment.
    def check_and_stop(*arguments: Any, **more: Any) -> bool:
        found = check(*arguments, **more)
        own_postgres.stop()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "wait_for_topics", check_and_stop)
        with running(consumer):
            seen.wait("consumer.assigned", count=2)
            (member,) = consumer.health().members
            assert [p.next_offset for p in member.partitions] == [None, None]
            assert member.trouble
            own_postgres.start()
            away.wait()
            away.send(20)
            away.wait()
    assert away.faults() == []
    assert seen.all("consumer.jump") == []


def test_a_consumer_started_before_its_database_waits_and_says_so(
    away: Stage, own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    away.send(10)
    own_postgres.stop()
    with running(away.recorder()):
        eventually(lambda: [line for line in caplog.messages if "waiting for the database" in line])
        own_postgres.start()
        away.wait()
    assert away.faults() == []


def test_a_consumer_outlives_its_broker(
    own_kafka: KafkaServer, engine: Engine, database: str, seen: Witness
) -> None:
    broker = own_kafka.brokers[0]
    name = own_kafka.create_topic("outlived", partitions=2)
    stage = Stage(engine, database, own_kafka.bootstrap, name, 2)
    stage.send(20)
    with running(stage.recorder()):
        stage.wait()
        broker.kill()
        broker.start()
        own_kafka.await_in_sync(name)
        stage.send(20)
        stage.wait(within=60)
    assert stage.faults() == []


def test_a_consumer_started_before_its_broker_waits_and_says_so(
    own_kafka: KafkaServer, engine: Engine, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_kafka.brokers[0]
    name = own_kafka.create_topic("early", partitions=2)
    stage = Stage(engine, database, own_kafka.bootstrap, name, 2)
    stage.send(20)
    broker.stop()
    with running(stage.recorder()):
        eventually(lambda: [line for line in caplog.messages if "waiting for the Kafka brokers" in line])
        broker.start()
        stage.wait(within=60)
    assert stage.faults() == []


def test_a_client_that_died_is_replaced(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=2)
    stage.send(20)
    consumer = stage.recorder()
    with running(consumer):
        stage.wait()
        (member,) = consumer._members
        died = member._intake._read

        def die_once(call: Any) -> Any:
            member._intake._read = died  # type: ignore[method-assign]
            raise ClientDied("for the test")

        member._intake._read = die_once  # type: ignore[method-assign]
        seen.wait("consumer.rebuilt")
        stage.send(20)
        stage.wait(within=40)
    assert stage.faults() == []


def test_a_batch_slower_than_the_poll_interval_is_fenced_or_counted_once(
    build: StageFactory, seen: Witness
) -> None:
    """The member is thrown out in the middle of a batch, and comes back."""
    stage = build(partitions=1)
    slow = [True]

    def dawdle(_facts: dict[str, Any]) -> None:
        if slow:
            slow.clear()
            with stage.engine.connect() as connection:
                connection.execute(text("SELECT pg_sleep(5)"))

    seen.at("consumer.batch.begin", dawdle)
    stage.send(20)
    with running(stage.recorder({"session.timeout.ms": 3000, "max.poll.interval.ms": 3000})):
        stage.wait()
        stage.send(20)
        stage.wait(within=40)
    assert stage.faults() == []
