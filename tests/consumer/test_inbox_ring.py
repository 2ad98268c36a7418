"""A leaf of ids is emptied when nobody can meet a repeat of them any more, and never before."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox import Retry
from outbox.consumer import Record
from outbox.consumer.foreign import ring as inbox_ring
from outbox.consumer.foreign.ring import SWEEP
from outbox.storage import ring
from tests.consumer.conftest import StageFactory
from tests.consumer.foreign import PlainProducer
from tests.consumer.stage import Stage, Witness, eventually, running, witness
from tests.consumer.test_inbox import deduping, read_to

ENDED = f"""
to_timestamp((floor(extract(epoch FROM clock_timestamp()) / {ring.SECONDS_PER_INBOX_LEAF}) - :age + 1)
    * {ring.SECONDS_PER_INBOX_LEAF})
"""
PARTITION = f"""
INSERT INTO consumer_offset (grp, topic, partition, next_offset, inbox_window, inbox_read_through)
VALUES (:grp, 't', :partition, 0, CAST(:window AS interval), {ENDED} + CAST(:seen AS interval))
"""
ID = f"""
INSERT INTO consumer_inbox (grp, topic, partition, event_id, record_offset, slot)
SELECT 'g', 't', 0, 'id', 0, mod(
    floor(extract(epoch FROM clock_timestamp()) / {ring.SECONDS_PER_INBOX_LEAF})::bigint - :age,
    {ring.INBOX_LEAVES})
"""
HOUR, MINUTE, MOMENT = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def partition(
    engine: Engine,
    seen: timedelta | None,
    *,
    age: int = 1,
    window: timedelta | None = HOUR,
    grp: str = "g",
    number: int = 0,
) -> None:
    """One that has seen all until `seen` after the end of the leaf that was full `age` turns ago."""
    with engine.begin() as connection:
        values = {"age": age, "window": window, "grp": grp, "partition": number, "seen": seen}
        connection.execute(text(PARTITION), values)


def filled(engine: Engine, age: int) -> None:
    with engine.begin() as connection:
        connection.execute(text(ID), {"age": age})


def swept(engine: Engine) -> bool:
    with engine.begin() as connection:
        return bool(connection.execute(SWEEP).scalar_one())


def left(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM consumer_inbox")).scalar_one())


@pytest.mark.parametrize(
    ("seen", "goes"),
    [(HOUR + MINUTE, True), (HOUR + MINUTE - MOMENT, False), (-HOUR, False), (None, False)],
)
def test_a_leaf_goes_when_the_window_after_its_end_was_seen(
    engine: Engine, seen: timedelta | None, goes: bool
) -> None:
    filled(engine, 1)
    partition(engine, seen)
    assert (swept(engine), left(engine)) == (goes, int(not goes))
    assert swept(engine) is False


@pytest.mark.parametrize("age", [1, 2, 15])
def test_each_leaf_has_the_end_of_its_own_turn(engine: Engine, age: int) -> None:
    filled(engine, age)
    partition(engine, HOUR + MINUTE - MOMENT, age=age)
    assert swept(engine) is False
    with engine.begin() as connection:
        connection.execute(text("UPDATE consumer_offset SET inbox_read_through = inbox_read_through + '1 s'"))
    assert swept(engine) is True


def test_the_leaf_that_is_being_filled_stays(engine: Engine) -> None:
    filled(engine, 0)
    partition(engine, timedelta(days=99))
    assert (swept(engine), left(engine)) == (False, 1)


@pytest.mark.parametrize(
    ("grp", "number", "window"), [("g", 1, HOUR), ("stopped", 0, HOUR), ("patient", 0, 3 * HOUR)]
)
def test_the_slowest_partition_of_any_group_decides_by_its_own_window(
    engine: Engine, grp: str, number: int, window: timedelta
) -> None:
    filled(engine, 1)
    partition(engine, 2 * HOUR)
    partition(engine, None if grp == "stopped" else HOUR, grp=grp, number=number, window=window)
    assert (swept(engine), left(engine)) == (False, 1)


def test_partitions_that_drop_no_repeats_have_no_say(engine: Engine) -> None:
    filled(engine, 1)
    partition(engine, 2 * HOUR)
    partition(engine, None, number=1, window=None)
    assert swept(engine) is True


def test_a_batch_under_way_is_not_disturbed_and_the_rule_is_asked_again_behind_it(engine: Engine) -> None:
    filled(engine, 1)
    partition(engine, 2 * HOUR)
    with engine.connect() as batch, engine.connect() as waiting:
        batch.execute(text("SELECT count(*) FROM consumer_inbox"))
        assert swept(engine) is False  # gave up within its lock time-out
        # One whose claim of the ids is not committed when the question is first asked.
        batch.execute(text("UPDATE consumer_offset SET inbox_read_through = NULL"))
        answers: list[bool] = []
        waiting.execute(text("SET lock_timeout = 0"))
        waiting.commit()
        asking = threading.Thread(target=lambda: answers.append(_patiently(waiting)))
        asking.start()
        eventually(lambda: _waits_for_lock(engine), what="a sweep that waits for the batch")
        batch.commit()
        asking.join(30)
    assert (answers, left(engine)) == ([False], 1)


def _patiently(connection: Any) -> bool:
    """The sweep's own time-out taken away: it waits as long as the batch lasts."""
    connection.execute(text("ALTER FUNCTION consumer_inbox_sweep() RESET lock_timeout"))
    connection.execute(text("SELECT 1"))
    found = connection.execute(SWEEP).scalar_one()
    connection.rollback()
    return bool(found)


def _waits_for_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")
            ).scalar_one()
        )


def test_a_sweep_that_could_not_see_what_commits_meanwhile_is_refused(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        with pytest.raises(DBAPIError, match="needs READ COMMITTED"):
            connection.execute(SWEEP)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends are asked at once, and leaves looked at too."""
    monkeypatch.setattr(inbox_ring, "EVERY", 0.05)
    monkeypatch.setattr(inbox_ring, "SWEEP_EVERY", 0.05)


def seen_until(stage: Stage, number: int, group: str | None = None) -> Any:
    rows = stage.rows(
        f"SELECT inbox_read_through FROM consumer_offset "
        f"WHERE partition = {number} AND grp = '{group or stage.group}'"
    )
    return rows[0][0] if rows else None


def now(stage: Stage) -> Any:
    return stage.rows("SELECT clock_timestamp()")[0][0]


def old(stage: Stage, *, turns: int) -> None:
    """Let the ids that are there have been stored so many turns ago."""
    stage.sql(f"UPDATE consumer_inbox SET slot = mod(slot - {turns} + 16, 16)")


def count(stage: Stage) -> int:
    return int(stage.rows("SELECT count(*) FROM consumer_inbox")[0][0])


@pytest.mark.usefixtures("quick")
def test_a_partition_that_lags_keeps_the_ids_of_all_until_it_has_caught_up(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=2)
    producer = PlainProducer(stage)
    lags = threading.Event()
    lags.set()
    consumer = stage.consumer()

    @consumer.on(topic=stage.topic, dedupe="event_id", dedupe_window=HOUR)
    def store(session: Session, value: bytes, record: Record) -> None:
        if record.partition == 1 and lags.is_set():
            raise Retry(after=timedelta(milliseconds=50))
        stage.store(session, record)

    producer.event("a", partition=0)
    producer.event("b", partition=1)
    producer.flush()
    with running(consumer):
        eventually(lambda: stage.offset(0) == 1)
        begun = now(stage)
        old(stage, turns=3)
        eventually(lambda: (at := seen_until(stage, 0)) is not None and at > begun)
        # The other has been asked as often, and has not seen anything.
        assert seen_until(stage, 1) is None
        assert count(stage) == 1
        lags.clear()
        eventually(lambda: (at := seen_until(stage, 1)) is not None and at > begun)
        seen.wait("consumer.inbox_swept")
        assert stage.rows("SELECT event_id FROM consumer_inbox") == [("id-of-b",)]


@pytest.mark.usefixtures("quick")
def test_a_moment_that_lies_behind_a_stop_still_counts(build: StageFactory) -> None:
    """What the row remembers is not forgotten with the process, so a partition that lags gets there."""
    stage = build(partitions=1)
    producer = PlainProducer(stage)
    for n in range(3):
        producer.event(f"{n}")
    producer.flush()
    begun = now(stage)
    stopped = stage.consumer(batch_size=1)

    @stopped.on(topic=stage.topic, dedupe="event_id")
    def one(session: Session, value: bytes, record: Record) -> None:
        if record.offset > 0:
            raise Retry(after=timedelta(milliseconds=20))
        stage.store(session, record)

    with running(stopped):
        eventually(lambda: stage.rows("SELECT inbox_seen_high FROM consumer_offset") == [(3,)])
        (first,) = stage.rows("SELECT inbox_seen_at FROM consumer_offset")
    producer.event("3")
    producer.flush()
    with running(deduping(stage, batch_size=1)), witness() as seen:
        seen.wait("consumer.inbox_seen")
        (second,) = stage.rows("SELECT inbox_seen_at FROM consumer_offset")
        assert second[0] >= first[0] > begun
        eventually(lambda: (at := seen_until(stage, 0)) is not None and at >= first[0])


@pytest.mark.usefixtures("quick")
def test_records_of_an_undecided_transaction_are_not_seen_yet(stage: Stage) -> None:
    producer = Producer({"bootstrap.servers": stage.bootstrap, "transactional.id": stage.topic})
    producer.init_transactions(20)
    plain = PlainProducer(stage)
    plain.event("a")
    plain.flush()
    with running(deduping(stage)):
        eventually(lambda: seen_until(stage, 0) is not None)
        producer.begin_transaction()
        producer.produce(stage.topic, "b", partition=0, headers=[("id", b"id-of-b")])
        producer.flush(20)
        begun = now(stage)
        # Other partitions are asked together with this one: two rounds later it would have moved.
        eventually(lambda: seen_until(stage, 1) > begun)
        again = now(stage)
        eventually(lambda: seen_until(stage, 1) > again)
        assert seen_until(stage, 0) < begun
        producer.commit_transaction(20)
        plain.event("c")
        plain.flush()
        eventually(lambda: seen_until(stage, 0) > again)


@pytest.mark.usefixtures("quick")
def test_a_group_that_stopped_keeps_its_ids_and_another_group_says_so(stage: Stage) -> None:
    producer = PlainProducer(stage)
    producer.event("a")
    producer.flush()
    with running(deduping(stage, dedupe_window=HOUR)):
        read_to(stage, 1)
    old(stage, turns=3)
    stage.sql("UPDATE consumer_offset SET updated_at = updated_at - interval '1 day'")
    stage.sql(
        "UPDATE consumer_offset SET inbox_read_through = updated_at WHERE inbox_read_through IS NOT NULL"
    )
    with witness() as seen, running(deduping(stage, group="another", dedupe_window=HOUR)) as other:
        held = seen.wait("consumer.inbox_held")
        assert (held["group"], held["topic"], held["idle"]) == (stage.group, stage.topic, True)
        eventually(lambda: count(stage) == 2)
        assert not any("nobody has read" in text for m in other.health().members for text in m.trouble)
        with running(deduping(stage, dedupe_window=HOUR)):
            seen.wait("consumer.inbox_swept", within=180)
    assert count(stage) == 1


@pytest.mark.usefixtures("quick")
def test_handlers_that_drop_no_repeats_any_more_hold_nobody_up(stage: Stage) -> None:
    producer = PlainProducer(stage)
    producer.event("a")
    producer.flush()
    windows = "SELECT inbox_window FROM consumer_offset WHERE inbox_window IS NOT NULL"
    with running(deduping(stage)):
        eventually(lambda: len(stage.rows(windows)) == 3)
    with running(deduping(stage, dedupe=None)):
        eventually(lambda: stage.rows(windows) == [])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("window", "right"), [(timedelta(days=2), True), (timedelta(minutes=1), False)])
def test_a_repeat_within_the_window_is_dropped_though_leaves_are_emptied_all_the_time(
    stage: Stage, window: timedelta, right: bool
) -> None:
    """Between two rounds half a day goes by; each repeats what was new three rounds before."""
    producer = PlainProducer(stage)
    with running(deduping(stage, dedupe_window=window, batch_size=3)), witness() as seen:
        for n in range(8):
            for number in range(3):
                producer.event(f"{number}.{max(0, n - 3)}", partition=number)
                producer.event(f"{number}.{n}", partition=number)
            producer.flush()
            eventually(producer.all_there)
            old(stage, turns=1)
            # Twice, as one may have been under way.
            seen.wait("consumer.inbox_seen", count=len(seen.all("consumer.inbox_seen")) + 3)
        seen.wait("consumer.inbox_swept")
    assert (producer.faults() == []) is right


@pytest.mark.usefixtures("quick")
def test_a_role_without_the_right_to_empty_leaves_goes_on_and_says_what_it_lacks(stage: Stage) -> None:
    producer = PlainProducer(stage)
    with running(deduping(stage)) as consumer:
        eventually(lambda: any(m.partitions for m in consumer.health().members))
        stage.sql("ALTER FUNCTION consumer_inbox_sweep() RENAME TO gone")
        eventually(
            lambda: any("outbox-relay db roles" in t for m in consumer.health().members for t in m.trouble)
        )
        producer.event("a")
        producer.event("a")
        producer.flush()
        read_to(stage, 2)
        stage.sql("ALTER FUNCTION gone() RENAME TO consumer_inbox_sweep")
        eventually(lambda: consumer.health().ok)
    assert producer.faults() == []
