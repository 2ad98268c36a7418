"""A consumer that stalls and wakes can do no harm, and nobody waits for it."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import sessionmaker

from outbox.consumer.claim import Claim, Claimer
from outbox.consumer.database import Database
from outbox.consumer.identity import TopicIdentity
from tests.consumer import broken
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually, running
from tests.nursery import Child

LOCK = "UPDATE consumer_offset SET next_offset = next_offset WHERE topic = :t"


@pytest.fixture
def processes() -> Iterator[list[Child]]:
    """Whoever is appended is ended after the test, frozen or not."""
    started: list[Child] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def await_frozen(process: Child) -> None:
    """Until it has stopped itself."""

    eventually(lambda: process.frozen, within=40, what="the freeze")


def one_freezes_another_takes_over(stage: Stage, processes: list[Child], point: str, **orders: Any) -> None:
    """The first owner is frozen at `point` past its session, the second goes on, the first wakes."""
    stage.send(60)
    sleeper = stage.process(at=point, count=3, do="freeze", settings={"batch_size": 5}, **orders)
    processes.append(sleeper)
    await_frozen(sleeper)
    before = len(stage.effects())
    with running(stage.recorder(orders.get("kafka"))):
        eventually(lambda: len(stage.effects()) >= before + 30, within=40)
        sleeper.send_signal(signal.SIGCONT)
        stage.send(60)
        stage.wait(within=40)
        # Its partitions go on, whoever owns them now.
        stage.send(30)
        stage.wait(within=40)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["consumer.polled", "consumer.batch.begin", "consumer.batch.advanced"])
def test_a_sleeper_that_wakes_is_fenced_by_the_row(
    build: StageFactory, processes: list[Child], point: str
) -> None:
    stage = build(partitions=1)
    one_freezes_another_takes_over(stage, processes, point, kafka=SHORT)
    assert stage.faults() == []


@pytest.mark.slow
def test_without_the_comparison_the_sleeper_does_harm(build: StageFactory, processes: list[Child]) -> None:
    stage = build(partitions=1)
    one_freezes_another_takes_over(
        stage, processes, "consumer.batch.begin", kafka=SHORT, **{"break": "no_comparison"}
    )
    eventually(stage.faults, what="harm")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_owner_frozen_in_its_transaction_blocks_the_next_claim_only_for_the_bound(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(20)
    with stage.engine.connect() as frozen:
        # An owner that locked the row and will neither commit nor roll back.
        with running(stage.recorder(PROTOCOLS[protocol])):
            stage.wait()
        frozen.execute(text(LOCK), {"t": stage.topic})
        stage.send(20)
        with running(stage.recorder(PROTOCOLS[protocol])):
            facts = seen.wait("consumer.blocker_terminated", within=20)
            stage.wait(within=10)
        assert facts["terminated"]
        frozen.invalidate()
    assert stage.faults() == []


def test_a_claim_that_leaves_its_blocker_alone_stands_still(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(20)
    with running(stage.recorder()):
        stage.wait()
    with stage.engine.connect() as frozen, broken.variant(broken.waits_for_ever):
        frozen.execute(text(LOCK), {"t": stage.topic})
        stage.send(20)
        with running(stage.recorder(claim_patience=timedelta(milliseconds=500))):
            seen.wait("consumer.assigned", count=2, within=20)
            assert len(stage.effects()) == 20
            frozen.rollback()
            stage.wait()


def test_a_claim_does_not_end_a_migration_that_locks_the_table(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(20)
    with stage.engine.connect() as migration:
        with running(stage.recorder()):
            stage.wait()
        migration.execute(text("LOCK TABLE consumer_offset IN ACCESS EXCLUSIVE MODE"))
        stage.send(20)
        with running(stage.recorder(claim_patience=timedelta(milliseconds=500))):
            seen.wait("consumer.assigned", count=2, within=20)
            assert seen.all("consumer.blocker_terminated") == []
            migration.execute(text("SELECT 1"))
            migration.rollback()
            stage.wait()
    assert stage.faults() == []


LATE_CLAIM = """
UPDATE consumer_offset SET owner_epoch = owner_epoch + 1, owner = 'a zombie' WHERE topic = :topic
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_right_owner_claims_back_what_a_late_claim_took(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    stage.send(20)
    with running(stage.recorder(PROTOCOLS[protocol])):
        stage.wait()
        for _ in range(2):
            stage.sql(LATE_CLAIM, topic=stage.topic)
            stage.send(20)
            stage.wait(within=10)
    assert len(seen.all("consumer.fenced")) == 2
    assert stage.faults() == []


def test_a_batch_polled_before_a_claim_changes_nothing_after_it(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(20)
    stole: list[bool] = []

    def steal(_facts: dict[str, Any]) -> None:
        if not stole:
            stole.append(True)
            stage.sql(LATE_CLAIM, topic=stage.topic)

    seen.at("consumer.batch.begin", steal)
    with running(stage.recorder()):
        stage.wait()
    assert stage.faults() == []
    assert len(seen.all("consumer.fenced")) == 1


def test_without_the_epoch_a_fenced_batch_goes_through(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(20)
    stole: list[bool] = []

    def steal(_facts: dict[str, Any]) -> None:
        if not stole:
            stole.append(True)
            stage.sql(LATE_CLAIM, topic=stage.topic)

    seen.at("consumer.batch.begin", steal)
    with broken.variant(broken.no_epoch), running(stage.recorder()):
        stage.wait()
    assert seen.all("consumer.fenced") == []


def test_claims_wait_in_line_without_ending_each_other(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(1)
    with running(stage.recorder()):
        stage.wait()
    claimer = Claimer(
        database=Database(stage.engine, sessionmaker(stage.engine)),
        group=stage.group,
        owner="test",
        patience=timedelta(milliseconds=300),
    )

    def claim(_: int) -> int:
        return claimer.claim(stage.topic, 0, TopicIdentity(None, None), lambda: None, lambda: 0).epoch

    with stage.engine.connect() as frozen, ThreadPoolExecutor(3) as pool:
        frozen.execute(text(LOCK), {"t": stage.topic})
        pid = frozen.execute(text("SELECT pg_backend_pid()")).scalar_one()
        epochs = list(pool.map(claim, range(3)))
        frozen.invalidate()
    assert sorted(epochs) == [2, 3, 4]
    seen.wait("consumer.blocker_terminated")
    assert {facts["pid"] for facts in seen.all("consumer.blocker_terminated")} == {pid}


def test_two_members_that_claim_a_new_partition_at_once_both_get_it(stage: Stage) -> None:
    """The other one's first row appears after our claim found none: that is no other topic."""
    identity = TopicIdentity("cluster", "topic")
    database = Database(stage.engine, sessionmaker(stage.engine))
    mine, other = (
        Claimer(database=database, group=stage.group, owner=name, patience=timedelta(seconds=5))
        for name in ("mine", "other")
    )
    began: list[str] = []
    claims: list[Claim] = []

    def begin() -> None:
        stage.sql(
            "INSERT INTO consumer_offset (grp, topic, partition, cluster_id, topic_id, next_offset) "
            "VALUES (:grp, :topic, 0, 'cluster', 'topic', 7) ON CONFLICT DO NOTHING",
            grp=stage.group,
            topic=stage.topic,
        )

    def overtake(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "UPDATE consumer_offset" in statement and not began:
            began.append(statement)
            claims.append(other.claim(stage.topic, 0, identity, begin, lambda: 0))

    event.listen(stage.engine, "after_cursor_execute", overtake)
    try:
        claim = mine.claim(stage.topic, 0, identity, begin, lambda: 0)
    finally:
        event.remove(stage.engine, "after_cursor_execute", overtake)
    assert (claim.next_offset, claim.epoch) == (7, claims[0].epoch + 1)
