"""`concurrency=N`: handlers of different keys wait at the same time, and nothing else is different."""

import random
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from outbox import ConfigurationError, Event, Reject, emit, pending
from outbox.consumer import Record
from outbox.consumer.handlers import Handler, Route, Run
from outbox.consumer.lanes import AHEAD, Bulk, Deal, Task, steps
from outbox.consumer.record import Polled
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import SHORT, Stage, Witness, eventually, running


class Keyed:
    """A record of which only the key is looked at."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    def key(self) -> bytes | None:
        return self._key


def nothing(*_: object) -> None:
    return None


ONE = Route(Handler(nothing, False, False, False, False, None), "", "")
MANY = Route(Handler(nothing, False, True, False, False, None), "", "")


def records(keys: Sequence[bytes | None]) -> list[Polled]:
    return [cast(Polled, Keyed(key)) for key in keys]


def tasks(keys: Sequence[bytes | None]) -> list[Task]:
    return [Task(n, ONE, message) for n, message in enumerate(records(keys))]


KEYS = st.lists(st.sampled_from([None, b"a", b"b", b"c", b"d", b"e"]), max_size=60)


@given(KEYS, st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 80))
def test_every_record_is_dealt_once_and_each_keys_in_order_whoever_asks_when(
    keys: list[bytes | None], count: int, chance: random.Random, stop: int
) -> None:
    deal = Deal(count)
    dealt = tasks(keys)
    deal.begin(dealt)
    done: list[Task] = []
    where: dict[bytes | None, set[int]] = {}
    asking = list(range(count))
    while asking:
        lane = chance.choice(asking)
        task = deal.next(lane)
        if task is None:
            asking.remove(lane)
            continue
        done.append(task)
        where.setdefault(task.message.key(), set()).add(lane)
        if len(done) == stop:
            deal.stop()
    assert all(len(found) == 1 for found in where.values())
    for key in set(keys):
        numbers = [task.number for task in done if task.message.key() == key]
        assert numbers == sorted(numbers)
    # Whenever time was over: exactly a beginning of the batch is done.
    assert sorted(task.number for task in done) == list(range(len(done)))
    left = deal.left()
    assert left is (dealt[len(done)].message if len(done) < len(dealt) else None)


def test_a_bulk_handler_stands_alone_and_the_rest_is_dealt_in_pieces() -> None:
    runs = [Run(ONE, records([b"a"] * 70)), Run(MANY, records([b"a", b"b"])), Run(ONE, records([b"c"]))]
    found = list(steps(runs, 2))
    sizes = [len(step.run.messages) if isinstance(step, Bulk) else len(step) for step in found]
    assert sizes == [2 * AHEAD, 70 - 2 * AHEAD, 2, 1]
    assert [step.number if isinstance(step, Bulk) else step[0].number for step in found] == [0, 64, 70, 72]


def put(stage: Stage, count: int, keys: int) -> None:
    """Records 0.1, 0.2 …, their keys in turn."""
    for n in range(1, count + 1):
        stage.put(f"0.{n}", key=f"k{n % keys}")
    stage.flush()


def by_key(stage: Stage, count: int, keys: int) -> dict[int, list[str]]:
    """What should be stored of each key, in order."""
    return {k: [f"0.{n}" for n in range(1, count + 1) if n % keys == k] for k in range(keys)}


def stored_by_key(stage: Stage, keys: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {k: [] for k in range(keys)}
    for value in stage.effects():
        found[int(value.split(".")[1]) % keys].append(value)
    return found


class Together:
    """Measures how many handlers wait at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._since = 0.0
        self._by_number: dict[int, float] = {}

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(self, *_: object) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            now = time.monotonic()
            spent = self._by_number.get(self._inside, 0.0) + now - self._since
            self._by_number[self._inside] = spent
            self._inside += by
            self._since = now

    def most(self) -> int:
        return max(self._by_number)

    def speed_up(self) -> float:
        """The time that all waited in sum, by the time in which anybody did."""
        waited = {n: seconds for n, seconds in self._by_number.items() if n}
        return sum(n * seconds for n, seconds in waited.items()) / sum(waited.values())


def test_handlers_that_wait_wait_at_the_same_time_and_each_key_keeps_its_order(build: StageFactory) -> None:
    stage = build(partitions=1)
    put(stage, 120, 8)
    consumer = stage.consumer(concurrency=4, batch_size=120, batch_wait=timedelta(seconds=10))
    together = Together()

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        with together:
            threading.Event().wait(0.05)

    with running(consumer):
        eventually(lambda: stage.offset() == 120)
    assert stored_by_key(stage, 8) == by_key(stage, 120, 8)
    assert together.most() == 4
    assert together.speed_up() >= 3
    assert len(set(stage.rows("SELECT xmin::text FROM effect"))) == 1


def test_records_without_a_key_keep_their_order(build: StageFactory) -> None:
    stage = build(partitions=1)
    for n in range(1, 41):
        stage.put(f"0.{n}", key=None)
    stage.flush()
    with running(stage.recorder(concurrency=4)):
        eventually(lambda: stage.offset() == 40)
    assert stage.effects() == [f"0.{n}" for n in range(1, 41)]


def test_a_failure_in_one_lane_leaves_nothing_of_the_others(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    put(stage, 40, 8)
    consumer = stage.consumer(concurrency=4, attempts=1)
    calls: list[str] = []

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        calls.append(value.decode())
        stage.store(session, record)
        if value == b"0.20":
            raise Reject("poison")

    with running(consumer):
        seen.wait("consumer.parked")
        eventually(lambda: stage.offset() == 40)
    poisoned = 20 % 8
    assert {k: v for k, v in stored_by_key(stage, 8).items() if k != poisoned} == {
        k: v for k, v in by_key(stage, 40, 8).items() if k != poisoned
    }
    assert stored_by_key(stage, 8)[poisoned] == ["0.4", "0.12"]
    assert stage.rows("SELECT record_offset, state FROM consumer_parked ORDER BY 1") == [
        (19, "failed"), (27, "queued"), (35, "queued")
    ]  # fmt: skip
    assert len(calls) > 40  # the first try, of which nothing is left


class ThingFollowed(Event, name="lanes.followed", topic="followed", aggregate="thing", key="n"):
    n: int


def emitted(build: StageFactory, **settings: Any) -> list[int]:
    """The order in which a batch's events are written, while later records are done sooner."""
    stage = build(partitions=1)
    put(stage, 24, 24)
    consumer = stage.consumer(concurrency=4, **settings)

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        threading.Event().wait(0.001 * (24 - record.offset))
        emit(session, ThingFollowed(n=record.offset))
        emit(session, ThingFollowed(n=100 + record.offset))

    with running(consumer):
        eventually(lambda: stage.offset() == 24)
    rows = stage.rows("SELECT convert_from(payload, 'UTF8')::json->>'n' FROM outbox_event ORDER BY position")
    return [int(n) for (n,) in rows]


def test_what_handlers_emit_leaves_in_the_order_of_their_records(build: StageFactory) -> None:
    assert emitted(build) == [n for offset in range(24) for n in (offset, 100 + offset)]


def test_without_arranging_them_events_leave_as_handlers_happen_to_end(
    build: StageFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending.Pending, "arrange", lambda _: None)
    assert emitted(build) != [n for offset in range(24) for n in (offset, 100 + offset)]


def test_threads_that_emit_at_once_into_one_transaction_lose_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event opens what is pending; of several first ones only one may."""
    gate = threading.Barrier(4)
    monkeypatch.setattr(pending, "_listen", lambda _engine: gate.wait(60))
    with stage.engine.connect() as connection, connection.begin():
        threads = [
            threading.Thread(target=emit, args=(connection, ThingFollowed(n=n))) for n in range(gate.parties)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = pending.of(connection)
        assert kept is not None
        assert len(kept.rows) == 4
        kept.drop()


def test_savepoints_are_refused(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    put(stage, 4, 4)
    consumer = stage.consumer(concurrency=2)

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        with session.begin_nested():
            stage.store(session, record)

    with running(consumer):
        assert "begin_nested" in seen.wait("consumer.stopped")["reason"]
    assert stage.effects() == []
    assert stage.offset() == 0


def test_a_batch_of_lanes_whose_time_is_over_ends_at_a_record(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    put(stage, 60, 6)
    consumer = stage.consumer(concurrency=3, batch_time=timedelta(milliseconds=300))
    hurry = threading.Event()

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        hurry.wait(0.1)

    with running(consumer):
        seen.wait("consumer.batch.cut")
        hurry.set()
        eventually(lambda: stage.offset() == 60)
    assert stored_by_key(stage, 6) == by_key(stage, 60, 6)


def test_each_call_has_its_own_time_also_when_that_of_the_batch_is_over(
    build: StageFactory, seen: Witness
) -> None:
    """What a lane still owes before a record that was begun takes long together, but not one by one."""
    stage = build(partitions=1)
    consumer = stage.consumer(
        concurrency=2, batch_time=timedelta(milliseconds=1), handler_limit=timedelta(seconds=2)
    )
    calls: list[bytes] = []

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        calls.append(value)
        if value != b"last":
            time.sleep(0.5)
        stage.store(session, record)

    # One lane comes to the last record while the other one has eight of the same key before it.
    for _ in range(8):
        stage.put("slow", key="slow")
    stage.put("last", key="last")
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 9)
    assert len(calls) == 9
    assert seen.all("consumer.retrying") == []


def test_rows_of_one_session_are_read_afresh_where_a_bulk_handler_comes_between(build: StageFactory) -> None:
    """What is loaded in a lane's session must not hide what a list's handler changed meanwhile."""
    stage = build(partitions=1)
    consumer = stage.consumer(concurrency=2)
    counts: list[int] = []

    @consumer.on(topic=stage.topic)
    def one(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)

    @consumer.on(Counted, topic=stage.topic, batch=True)
    def many(session: Session, events: list[Any]) -> None:
        counts.append(session.execute(text("SELECT count(*) FROM effect")).scalar_one())

    for n in range(6):
        stage.put(f"{n}", key=f"k{n}")
    stage.put('{"n": 1}', key="k1", type_="lanes.counted.v1")
    stage.put("7", key="k1")
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 8)
    assert counts == [6]


class Counted(Event, name="lanes.counted", topic="counted", aggregate="thing", key="n"):
    n: int


@pytest.mark.parametrize("kind", ["lanes", "async lanes"], indirect=True)
@pytest.mark.parametrize("point", ["consumer.batch.advanced", "consumer.batch.before_commit"])
def test_a_process_killed_in_the_midst_of_its_lanes_changes_nothing(build: StageFactory, point: str) -> None:
    stage = build(partitions=1)
    put(stage, 60, 6)
    first = stage.process(at=point, count=2, do="kill", settings={"batch_size": 20}, kafka=SHORT)
    assert first.wait(30) == -signal.SIGKILL
    with running(stage.recorder(SHORT)):
        eventually(lambda: stage.offset() == 60, within=60)
    assert stored_by_key(stage, 6) == by_key(stage, 60, 6)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5])
def test_no_number_of_lanes_is_refused(build: StageFactory, concurrency: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency"):
        build(partitions=1).consumer(concurrency=concurrency)
