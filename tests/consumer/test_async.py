"""AsyncConsumer: what its loop adds to the promises that test_twins.py repeats."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import AsyncOutbox, ConfigurationError, Event
from outbox.consumer import AsyncConsumer, Consumer, Record
from outbox.consumer.foreign import ring as inbox_ring
from tests.consumer.conftest import StageFactory
from tests.consumer.foreign import PlainProducer
from tests.consumer.stage import Stage, Witness, eventually, running


def consumer_of(stage: Stage, **settings: Any) -> AsyncConsumer:
    """A plain AsyncConsumer without handlers."""
    engine = create_async_engine(stage.engine.url, poolclass=NullPool)
    kafka = {"bootstrap.servers": stage.bootstrap, "session.timeout.ms": 6000}
    return AsyncConsumer(group=stage.group, sessions=async_sessionmaker(engine), kafka=kafka, **settings)


async def store(stage: Stage, session: AsyncSession, record: Record) -> None:
    await session.run_sync(lambda within: stage.store(within, record))


@asynccontextmanager
async def serving(consumer: AsyncConsumer, threads: int = 1) -> AsyncIterator[asyncio.Task[None]]:
    """The consumer at work on this loop while inside."""
    task = asyncio.create_task(consumer.serve(threads))
    try:
        yield task
    finally:
        consumer.stop()
        await asyncio.wait_for(task, 60)


async def until(fact: Any) -> None:
    await asyncio.to_thread(eventually, fact)


def test_handlers_of_all_members_share_the_loop_that_is_served(stage: Stage) -> None:
    stage.send(90)
    consumer = consumer_of(stage)
    loops = set()

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        loops.add(asyncio.get_running_loop())
        await store(stage, session, record)

    async def main() -> None:
        async with serving(consumer, threads=2):
            await until(stage.all_there)
        assert loops == {asyncio.get_running_loop()}

    asyncio.run(main())
    assert stage.faults() == []


def test_the_loop_goes_on_while_nothing_arrives(build: StageFactory, seen: Witness) -> None:
    """Waiting for Kafka is done elsewhere."""
    stage = build(partitions=1)
    consumer = consumer_of(stage)

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes) -> None: ...

    async def main() -> None:
        async with serving(consumer):
            await until(lambda: seen.all("consumer.claimed"))
            loop, gaps = asyncio.get_running_loop(), []
            for _ in range(100):
                before = loop.time()
                await asyncio.sleep(0.01)
                gaps.append(loop.time() - before)
            assert sorted(gaps)[50] < 0.05

    asyncio.run(main())


def test_a_served_consumer_that_is_cancelled_finishes_its_batch(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(5)
    consumer = consumer_of(stage)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        begun.set()
        await go_on.wait()
        await store(stage, session, record)

    async def main() -> None:
        task = asyncio.create_task(consumer.serve())
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        asyncio.get_running_loop().call_later(0.3, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 60)

    asyncio.run(main())
    assert stage.effects() == stage.expected(0)[: stage.offset()]
    assert stage.offset() > 0


def test_a_loop_that_ends_commits_nothing_by_half(build: StageFactory) -> None:
    """All tasks are cancelled, in the midst of a handler that has stored something."""
    stage = build(partitions=1)
    stage.send(5)
    consumer = consumer_of(stage)
    begun = asyncio.Event()

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await store(stage, session, record)
        if record.offset == 3:
            begun.set()
            await asyncio.sleep(3600)

    async def main() -> None:
        asyncio.create_task(consumer.serve())  # noqa: RUF006
        await asyncio.wait_for(begun.wait(), 60)

    asyncio.run(main())
    assert stage.effects() == []
    assert stage.offset() == 0
    with running(stage.recorder()):
        stage.wait()
    assert stage.faults() == []


def test_a_handler_that_waits_too_long_for_anything_is_cancelled(build: StageFactory, seen: Witness) -> None:
    stage = build(partitions=1)
    stage.send(4)
    consumer = consumer_of(stage, attempts=1, handler_limit=timedelta(milliseconds=500), concurrency=2)
    cancelled: list[int] = []

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await store(stage, session, record)
        if record.offset == 1:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(record.offset)
                raise

    with running(consumer):
        assert "handler_limit" in seen.wait("consumer.parked")["error"]
        eventually(lambda: stage.offset() == 4)
    assert set(cancelled) == {1}
    assert stage.effects() == ["0.1"]  # the others are of its key


def test_a_statement_that_a_handler_gives_up_takes_the_batch_with_it(
    build: StageFactory, seen: Witness
) -> None:
    """It leaves the connection in a state that nobody knows: nothing of the batch is committed."""
    stage = build(partitions=1)
    stage.put("0.1", key="a")
    stage.put("0.2", key="b")
    stage.flush()
    consumer = consumer_of(stage, attempts=1)

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await store(stage, session, record)
        if value == b"0.1":
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.execute(text("SELECT pg_sleep(60)"))

    with running(consumer):
        seen.wait("consumer.parked")
        eventually(lambda: stage.offset() == 2)
    assert stage.effects() == ["0.2"]


def test_lanes_wait_at_the_same_time_and_a_failure_cancels_the_others(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=1)
    for n in range(1, 41):
        stage.put(f"0.{n}", key=f"k{n % 8}")
    stage.flush()
    consumer = consumer_of(stage, concurrency=4, attempts=1)
    inside, most, cancelled = 0, 0, 0

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        nonlocal inside, most, cancelled
        inside += 1
        most = max(most, inside)
        try:
            await store(stage, session, record)
            if value == b"0.17":
                for _ in range(100):  # not for ever: it is tried again alone
                    if inside > 1:
                        break
                    await asyncio.sleep(0.002)
                raise ValueError("poison")
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        finally:
            inside -= 1

    with running(consumer):
        seen.wait("consumer.parked")
        eventually(lambda: stage.offset() == 40)
    assert most == 4
    assert cancelled > 0
    behind = {f"0.{n}" for n in (17, 25, 33)}
    assert sorted(stage.effects()) == sorted({f"0.{n}" for n in range(1, 41)} - behind)
    for key in range(8):
        mine = [int(v[2:]) for v in stage.effects() if int(v[2:]) % 8 == key]
        assert mine == sorted(mine)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_handler_that_ends_as_cancelled_has_not_handled_its_record(
    build: StageFactory, seen: Witness, concurrency: int
) -> None:
    """A task group forgives a task that was cancelled: its records would be passed over."""
    stage = build(partitions=1)
    for n in range(1, 21):
        stage.put(f"0.{n}", key=f"k{n}")
    stage.flush()
    consumer = consumer_of(stage, concurrency=concurrency, attempts=1)

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        if value == b"0.7":
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone
        await store(stage, session, record)

    with running(consumer):
        assert "cancelled" in seen.wait("consumer.parked")["error"]
        eventually(lambda: stage.offset() == 20)
    assert sorted(stage.effects()) == sorted(f"0.{n}" for n in range(1, 21) if n != 7)


class ThingAwaited(Event, name="async.awaited", topic="awaited", aggregate="thing", key="n"):
    n: int


@pytest.mark.parametrize("concurrency", [1, 4])
def test_events_leave_with_the_results_and_in_the_order_of_the_records(
    build: StageFactory, concurrency: int
) -> None:
    stage = build(partitions=1)
    for n in range(12):
        stage.put(f"{n}", key=f"k{n}")
    stage.flush()
    consumer = consumer_of(stage, concurrency=concurrency)
    outbox = AsyncOutbox(async_sessionmaker(create_async_engine(stage.engine.url)))

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await asyncio.sleep(0.002 * (12 - record.offset))
        await outbox.emit(session, ThingAwaited(n=record.offset))

    with running(consumer):
        eventually(lambda: stage.offset() == 12)
    rows = stage.rows("SELECT convert_from(payload, 'UTF8')::json->>'n' FROM outbox_event ORDER BY position")
    assert [int(n) for (n,) in rows] == list(range(12))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_emit_that_is_not_awaited_fails_its_batch(
    build: StageFactory, seen: Witness, concurrency: int
) -> None:
    stage = build(partitions=1)
    stage.send(1)
    consumer = consumer_of(stage, concurrency=concurrency, attempts=1)
    outbox = AsyncOutbox(async_sessionmaker(create_async_engine(stage.engine.url)))

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        outbox.emit(session, ThingAwaited(n=1)).close()

    with running(consumer):
        assert "await" in seen.wait("consumer.parked")["error"]
    assert stage.rows("SELECT 1 FROM outbox_event") == []


def test_it_can_be_served_again(build: StageFactory) -> None:
    stage = build(partitions=1)
    consumer = consumer_of(stage)

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await store(stage, session, record)

    for _ in range(2):
        stage.send(3)
        with running(consumer):
            stage.wait()
    assert stage.faults() == []


def test_handlers_and_sessions_of_the_other_twin_are_refused(stage: Stage) -> None:
    kafka = {"bootstrap.servers": "localhost:1"}
    engine = create_async_engine(stage.engine.url)
    awaiting = AsyncConsumer(group="g", sessions=async_sessionmaker(engine), kafka=kafka)
    with pytest.raises(ConfigurationError, match="async def"):

        @awaiting.on(topic="t")
        def handle(session: Session, value: bytes) -> None: ...

    plain = Consumer(group="g", sessions=sessionmaker(stage.engine), kafka=kafka)
    with pytest.raises(ConfigurationError, match="AsyncConsumer"):

        @plain.on(topic="t")
        async def handle_async(session: AsyncSession, value: bytes) -> None: ...

    with pytest.raises(ConfigurationError, match="AsyncConsumer"):
        Consumer(group="g", sessions=async_sessionmaker(engine), kafka=kafka)
    with pytest.raises(ConfigurationError, match="async_sessionmaker"):
        AsyncConsumer(group="g", sessions=sessionmaker(stage.engine), kafka=kafka)
    with pytest.raises(ConfigurationError, match="async_sessionmaker"):
        AsyncConsumer(group="g", sessions=async_sessionmaker(), kafka=kafka)


def test_a_foreign_producers_repeat_is_dropped(
    stage: Stage, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_ring, "EVERY", 0.05)
    monkeypatch.setattr(inbox_ring, "SWEEP_EVERY", 0.05)
    producer = PlainProducer(stage)
    for name in ("a", "b", "a", "c"):
        producer.event(name)
    producer.flush()

    async def main() -> None:
        consumer = consumer_of(stage)

        @consumer.on(topic=stage.topic, dedupe="event_id")
        async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
            await store(stage, session, record)

        async with serving(consumer):
            await asyncio.to_thread(eventually, producer.all_there)
            await asyncio.to_thread(seen.wait, "consumer.inbox_seen", count=3)

    asyncio.run(main())
    assert producer.faults() == []


def test_moving_it_on_its_own_loop_is_refused_and_works_from_a_thread(stage: Stage) -> None:
    """The loop would wait for a transaction that only it can run."""
    consumer = consumer_of(stage)

    @consumer.on(topic=stage.topic)
    async def handle(session: AsyncSession, value: bytes, record: Record) -> None:
        await store(stage, session, record)

    async def main() -> None:
        async with serving(consumer):
            stage.send(3)
            await until(lambda: len(stage.effects()) == 3)
            with pytest.raises(ConfigurationError, match=r"asyncio\.to_thread"):
                consumer.seek("beginning")
            assert len(await asyncio.to_thread(consumer.seek, "beginning", dry_run=True)) == stage.partitions

    asyncio.run(main())
