"""Whatever dies, and whatever answer is lost: no effect is lost and none is stored twice."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PostgresServer, start_postgres
from tests.conftest import TopicFactory, create_engine
from tests.consumer import broken
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import SHORT, Stage, Witness, eventually, running

POINTS = [
    "consumer.batch.begin",
    "consumer.batch.advanced",
    "consumer.batch.before_commit",
    "consumer.batch.committed",
]


def killed_at(stage: Stage, point: str, **orders: Any) -> list[str]:
    """A process dies at `point`; another one goes on. What is wrong afterwards?"""
    stage.send(60)
    first = stage.process(at=point, count=2, do="kill", settings={"batch_size": 7}, **orders)
    assert first.wait(30) == -signal.SIGKILL
    with running(stage.recorder(orders.get("kafka"))):
        eventually(lambda: stage.all_there() or all(stage.offset(p) >= 20 for p in range(3)), within=30)
    return stage.faults()


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_step_of_a_batch_changes_nothing(stage: Stage, point: str) -> None:
    assert killed_at(stage, point, kafka=SHORT) == []


def test_an_offset_committed_apart_from_the_results_is_caught(stage: Stage) -> None:
    faults = killed_at(stage, "consumer.batch.advanced", kafka=SHORT, **{"break": "offset_apart"})
    assert any("lost" in fault for fault in faults)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server whose settings a test may change."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def own_stage(
    own_postgres: PostgresServer, kafka: KafkaServer, topic: TopicFactory, kind: str
) -> Iterator[Stage]:
    url = own_postgres.database("own")
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    yield Stage(engine, url, kafka.bootstrap, topic("things", partitions=1), 1, kind=kind)
    engine.dispose()


TERMINATE = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


TERMINATE_IDLE = text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()
""")


def committed_but_unknown(stage: Stage, server: PostgresServer, seen: Witness) -> None:
    """COMMIT waits for a standby that is not there; its connection is terminated: done, but no answer."""
    armed = [True]

    def withhold(_facts: dict[str, Any]) -> None:
        if armed:
            armed.clear()
            server.reload({"synchronous_standby_names": "nosuch"})

    seen.at("consumer.batch.before_commit", withhold)
    admin = sqlalchemy.create_engine(stage.engine.url, isolation_level="AUTOCOMMIT")
    with running(stage.recorder()), admin.connect() as connection:

        def terminated() -> bool:
            # The server's checkpointer turns the waiting on, some commits after the reload.
            stage.send(1)
            return bool(connection.execute(TERMINATE).all())

        eventually(terminated, what="a COMMIT that waits")
        server.reload({"synchronous_standby_names": ""})
        stage.wait()
        # A second application would come with the next batch at the latest.
        stage.send(5)
        stage.wait()
    admin.dispose()


def test_a_commit_that_happened_though_its_answer_was_lost_is_not_repeated(
    own_stage: Stage, own_postgres: PostgresServer, seen: Witness
) -> None:
    own_stage.send(20)
    committed_but_unknown(own_stage, own_postgres, seen)
    assert own_stage.faults() == []
    assert own_stage.row().owner_epoch >= 2, "an unknown outcome must lead to a new claim"


def test_repeating_an_unknown_commit_blindly_is_caught(
    own_stage: Stage, own_postgres: PostgresServer, seen: Witness
) -> None:
    own_stage.send(20)
    with broken.variant(broken.no_comparison), broken.variant(broken.repeats_unknown):
        committed_but_unknown(own_stage, own_postgres, seen)
    assert any("doubled" in fault for fault in own_stage.faults())


def test_a_commit_that_did_not_happen_is_done_again(stage: Stage, seen: Witness) -> None:
    killed: list[int] = []

    def terminate(_facts: dict[str, Any]) -> None:
        if len(killed) < 3:
            with stage.engine.connect() as connection:
                killed.append(connection.execute(TERMINATE_IDLE).scalar_one())

    seen.at("consumer.batch.before_commit", terminate)
    stage.send(60)
    with running(stage.recorder(batch_size=5)):
        # Before that it may be this thread's connection that is idle in a transaction.
        seen.wait("consumer.batch.before_commit", count=4)
        stage.wait()
    assert sum(killed) >= 3
    assert stage.faults() == []


def test_the_server_of_the_database_killed_under_load(
    own_stage: Stage, own_postgres: PostgresServer, seen: Witness
) -> None:
    own_stage.send(200)
    with running(own_stage.recorder(batch_size=5)):
        seen.wait("consumer.batch.committed", count=3)
        own_postgres.kill()
        own_postgres.start()
        own_stage.wait(within=60)
    assert own_stage.faults() == []


def test_a_member_that_leaves_hands_on_exactly_what_it_did_not_commit(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=4)
    stage.send(400)
    with running(stage.recorder(batch_size=10)):
        seen.wait("consumer.batch.committed", count=5)
        with running(stage.recorder(batch_size=10)):
            seen.wait("consumer.revoked")
            stage.send(100)
            stage.wait()
        stage.send(40)
        stage.wait()
    assert stage.faults() == []
