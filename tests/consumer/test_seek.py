"""A group can be sent to another place while it runs, and everything from there is applied once."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import OperationalError

from outbox import Reject
from outbox.consumer.identity import BrokerIdentities, TopicIdentity, TopicMissing
from outbox.consumer.place import run_up, scout
from outbox.consumer.place.position import Misplaced
from outbox.errors import ConfigurationError
from tests.consumer import broken
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually, running
from tests.consumer.test_parking import Keyed

WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


def done(stage: Stage) -> bool:
    """Is every partition read to its end, with whole marks?"""
    rows = stage.rows("SELECT partition, next_offset, run_up FROM consumer_offset ORDER BY partition")
    return rows == [(p, stage.end(p), None) for p in range(stage.partitions)]


def wait_done(stage: Stage) -> None:
    eventually(lambda: done(stage), what="all partitions at their ends")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_running_group_reads_again_from_the_beginning_exactly_once(
    stage: Stage, seen: Witness, protocol: str
) -> None:
    stage.send(300)
    consumer = stage.recorder(PROTOCOLS[protocol])
    with running(consumer, threads=2):
        wait_done(stage)
        moved = consumer.seek("beginning")
        assert [(m.partition, m.origin, m.to) for m in moved] == [(0, 100, 0), (1, 100, 0), (2, 100, 0)]
        seen.wait("consumer.run_up", count=3)
        wait_done(stage)
        stage.repeat(0, 20)
        stage.send(3)
        wait_done(stage)
    for partition in range(3):
        once = stage.expected(partition)
        assert stage.effects(partition) == once[:-1] + once


def test_a_stopped_group_begins_there_when_it_starts_and_the_row_says_why(stage: Stage) -> None:
    stage.send(30)
    consumer = stage.recorder()
    with running(consumer):
        wait_done(stage)
    before = stage.row(1).owner_epoch
    consumer.seek(4, partition=1)
    row = stage.row(1)
    assert (row.next_offset, row.run_up, row.moved_from, row.moved_to) == (4, -1, 10, 4)
    assert (row.moved_why, row.owner, row.owner_epoch) == ("seek to 4", None, before + 1)
    assert "@" in row.moved_by
    with running(consumer):
        wait_done(stage)
    assert stage.effects(1) == stage.expected(1) + stage.expected(1)[4:]
    assert stage.effects(0) == stage.expected(0)


def test_the_run_up_knows_repeats_of_what_stands_before_the_place(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(50)
    stage.repeat(0, 30)
    with running(stage.recorder()) as consumer:
        wait_done(stage)
        consumer.seek(50, partition=0)
        wait_done(stage)
        assert stage.effects() == stage.expected(0)
        consumer.seek(40, partition=0)
        wait_done(stage)
    assert stage.effects() == stage.expected(0) + stage.expected(0)[40:]


@pytest.mark.parametrize("naive", [broken.marks_emptied, broken.marks_kept])
def test_marks_emptied_or_kept_by_a_seek_are_wrong(build: StageFactory, naive: broken.Patch) -> None:
    stage = build(partitions=1)
    stage.send(50)
    stage.repeat(0, 30)
    with running(stage.recorder()) as consumer, broken.variant(naive):
        wait_done(stage)
        consumer.seek(60, partition=0)
        consumer.seek(40, partition=0)
        wait_done(stage)
        consumer.seek(55, partition=0)
        wait_done(stage)
    right = stage.expected(0) + stage.expected(0)[40:]
    assert stage.effects() != right


def test_a_seek_forward_skips_and_does_not_apply_repeats_of_what_it_skipped(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()) as consumer:
        wait_done(stage)
    stage.send(10)
    consumer.seek("end")
    stage.repeat(0, 5)
    stage.send(1)
    with running(consumer):
        wait_done(stage)
    sent = stage.expected(0)
    assert stage.effects() == [*sent[:10], sent[-1]]


def test_a_place_can_be_a_time_or_an_event(build: StageFactory) -> None:
    stage = build(partitions=2)
    event = UUID("0196f3a0-0000-7000-8000-000000000001")
    stage.send(10)
    for value in ("before", "it", "after"):
        stage.put(value, partition=1, id_=event if value == "it" else uuid4())
    stage.flush()
    consumer = stage.recorder()
    with running(consumer):
        wait_done(stage)
        (moved,) = consumer.seek(event)
        assert (moved.partition, moved.to) == (1, 6)
        wait_done(stage)
        assert stage.effects(1) == [*stage.expected(1), "before", "it", "after", "it", "after"]
        ahead = consumer.seek(datetime.now(UTC) + timedelta(minutes=1), dry_run=True)
        assert [(m.origin, m.to) for m in ahead] == [(5, 5), (8, 8)]
        behind = consumer.seek(datetime.now(UTC) - timedelta(days=1), dry_run=True)
        assert [m.to for m in behind] == [0, 0]
        with pytest.raises(ConfigurationError, match="no record of event"):
            consumer.seek(uuid4())


def test_a_group_can_be_placed_before_it_ever_reads(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(10)
    consumer = stage.recorder()
    (moved,) = consumer.seek(7, partition=0)
    assert moved.origin is None
    with running(consumer):
        wait_done(stage)
    assert stage.effects() == stage.expected(0)[7:]


def test_parked_records_behind_the_place_come_again_and_those_before_it_keep_waiting(
    build: StageFactory,
) -> None:
    keyed = Keyed(build(partitions=1))
    keyed.bad |= {"a:1": Reject("bad"), "b:1": Reject("bad"), "c:1": Reject("bad"), "d:1": Reject("bad")}
    keyed.put("a:1", "b:1", "c:1", "a:2", "b:2", "d:1")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 6)
        keyed.discard(2)
        eventually(lambda: keyed.counted() == 5)
    keyed.discard(5, "carried out by the seek, nobody else is there")
    keyed.bad.pop("b:1")
    (moved,) = keyed.consumer.seek(1, partition=0)
    assert moved.forgotten == 4
    assert keyed.waiting() == [(0, "failed"), (2, "discarded"), (5, "discarded")]
    assert keyed.counted() == 1
    with running(keyed.consumer):
        eventually(lambda: keyed.stage.offset() == 6)
        assert keyed.stage.effects() == ["b:1", "b:2"]
        assert keyed.waiting() == [(0, "failed"), (2, "discarded"), (3, "queued"), (5, "discarded")]
        keyed.bad.clear()
        keyed.release(0)
        eventually(lambda: keyed.counted() == 0)
    assert keyed.stage.effects() == ["b:1", "b:2", "a:1", "a:2"]


def test_what_is_not_there_moves_nothing(stage: Stage) -> None:
    stage.send(30)
    consumer = stage.recorder()
    with running(consumer):
        wait_done(stage)
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: consumer.seek(11, partition=0), "has no offset 11: Kafka still has 0 to 10"),
        (lambda: consumer.seek(1), "one partition only"),
        (lambda: consumer.seek(1, partition=7), "has no partition 7"),
        (lambda: consumer.seek("beginning", topic="nowhere"), "no topic nowhere"),
    ]
    for call, words in refused:
        with pytest.raises(ConfigurationError, match=words):
            call()
    stage.sql("UPDATE consumer_offset SET topic_id = 'another' WHERE partition = 2")
    with pytest.raises(Misplaced, match="consumers accept"):
        consumer.seek("beginning")
    assert [stage.offset(p) for p in range(3)] == [10, 10, 10]


def test_a_seek_waits_for_the_batch_under_way_and_fences_the_next(stage: Stage, seen: Witness) -> None:
    stage.send(30, partition=0)
    consumer = stage.recorder(batch_size=10)
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: dict[str, Any]) -> None:
        entered.set()
        assert go_on.wait(60)

    seen.at("consumer.batch.before_commit", hold)
    with running(consumer):
        assert entered.wait(60)
        thread = threading.Thread(target=consumer.seek, args=("beginning",))
        thread.start()
        eventually(lambda: stage.rows(WAITING) == [(1,)])
        go_on.set()
        thread.join(60)
        seen.wait("consumer.moved")
        eventually(lambda: stage.offset() == 30)
        wait_done(stage)
    # Whole batches before the fence, everything once after it.
    before = len(stage.effects()) - 30
    assert before in {10, 20}
    assert stage.effects() == stage.expected(0)[:before] + stage.expected(0)


def test_a_sleeper_that_wakes_after_a_seek_changes_nothing(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(20)
    fast = {**PROTOCOLS["cooperative"], **SHORT}
    orders = {"at": "consumer.batch.advanced", "count": 2, "do": "freeze", "settings": {"batch_size": 10}}
    sleeper = stage.process(kafka=fast, **orders)
    try:
        eventually(lambda: stage.offset() == 10)
        with running(stage.recorder(fast, batch_size=10)) as consumer:
            eventually(lambda: stage.offset() == 20)
            consumer.seek(5, partition=0)
            os.kill(sleeper.pid, signal.SIGCONT)
            wait_done(stage)
            stage.send(1)
            wait_done(stage)
    finally:
        sleeper.kill()
        sleeper.wait()
    sent = stage.expected(0)
    assert stage.effects() == sent[:20] + sent[5:]


@pytest.mark.parametrize("point", ["consumer.run_up", "consumer.batch.before_commit"])
def test_a_member_that_dies_after_a_seek_leaves_nothing_half_done(build: StageFactory, point: str) -> None:
    stage = build(partitions=1)
    stage.send(50)
    stage.repeat(0, 30)
    with running(stage.recorder()) as consumer:
        wait_done(stage)
    consumer.seek(60, partition=0)
    consumer.seek(45, partition=0)
    victim = stage.process(kafka={**PROTOCOLS["cooperative"], **SHORT}, at=point, do="kill")
    assert victim.wait(60) != 0
    with running(stage.recorder({**PROTOCOLS["cooperative"], **SHORT})):
        wait_done(stage)
        consumer.seek(60, partition=0)
        wait_done(stage)
    assert stage.effects() == stage.expected(0) + stage.expected(0)[45:]


def test_a_run_up_that_is_interrupted_goes_on_from_its_last_stage(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = build(partitions=1)
    stage.send(100)
    monkeypatch.setattr(run_up, "STORE", 0.0)
    monkeypatch.setattr(scout.Scout.read, "__kwdefaults__", {"size": 10})
    with running(stage.recorder()) as consumer:
        wait_done(stage)
    consumer.seek(90, partition=0)
    entered = threading.Event()

    def die(facts: dict[str, Any]) -> None:
        if facts["reached"] is not None and not entered.is_set():
            entered.set()
            raise OperationalError("the connection", None, Exception("is gone"))

    seen.at("consumer.run_up", die)
    with running(consumer):
        wait_done(stage)
    stages = [facts["reached"] for facts in seen.all("consumer.run_up")]
    assert stages[-1] is None
    assert len(stages) > 3
    sources = stage.row().sources
    assert sources["s"]["shards"]["0"] == [1, 100]


def test_a_run_up_stores_nothing_of_a_topic_that_was_made_again_meanwhile(
    build: StageFactory, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marks would drop the new topic's records as applied, whoever goes on there."""
    stage = build(partitions=1)
    stage.send(100)
    monkeypatch.setattr(run_up, "STORE", 0.0)
    monkeypatch.setattr(scout.Scout.read, "__kwdefaults__", {"size": 10})
    consumer = stage.recorder()
    with running(consumer):
        wait_done(stage)
    consumer.seek(90, partition=0)

    class Another(BrokerIdentities):
        """What the brokers say once records were read."""

        def look(self, topics: Iterable[str]) -> dict[str, TopicIdentity | TopicMissing]:
            found = super().look(topics)
            if not threading.current_thread().name.startswith("run-up"):
                return found
            return {topic: TopicIdentity(stage.row().cluster_id, "new") for topic in found}

    consumer._setup = replace(consumer._setup, new_identities=Another)
    with running(consumer):
        seen.wait("consumer.claimed", count=4)
    assert seen.all("consumer.run_up") == []
    assert (stage.row().sources, stage.row().run_up) == ({}, -1)
