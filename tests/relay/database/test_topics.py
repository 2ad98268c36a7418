"""A key keeps its partition: the counts are durable in time, and nobody but the owner changes them."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from outbox.errors import Fenced
from relay import topics
from relay.topics import CompactedTopic, Topics, UnknownTopic
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, shard, wait_for, write
from tests.relay.database.memory_broker import MemoryBroker

Own = Callable[..., Half]
WAITING = """
SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


@dataclass
class Metadata:
    """A broker that knows how many partitions a topic has now."""

    counts: dict[str, int] = field(default_factory=lambda: {"orders": 3})
    squeezed: frozenset[str] = frozenset()

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        return self.squeezed & frozenset(topics)

    def partitions(self, topic: str) -> int | None:
        return self.counts.get(topic)


def known(writer: Session) -> list[tuple[object, ...]]:
    return writer.execute("SELECT topic, partitions FROM outbox_topic").fetchall()


def test_a_count_is_written_down_before_it_is_used_and_outlives_its_owner(own: Own, writer: Session) -> None:
    broker, first = Metadata(), own()
    assert Topics(first.connection, broker).resolve(first.row.claim(), b"orders") == ("orders", 3)
    assert known(writer) == [("orders", 3)]
    broker.counts["orders"] = 6
    second = own()
    state, successor = second.row.claim(), Topics(second.connection, broker)
    successor.load(state)
    assert successor.resolve(state, b"orders") == ("orders", 3), "until its delta is done"
    assert Topics(second.connection, broker).resolve(state, b"orders") == ("orders", 3), (
        "what is written wins"
    )


def test_a_repeat_lands_where_the_first_copy_did_although_the_topic_grew(
    database: str, writer: Session, broker: MemoryBroker
) -> None:
    for key in range(20):
        write(writer, key=f"key-{key}")
    first = shard(database, broker)
    while not broker.log:
        first.run_once()
    first.let_go()
    broker.partition_count = 12
    second = shard(database, broker)
    drain(second)
    second.finish()
    assert len(broker.log) == 40
    assert [r.partition for r in broker.log[:20]] == [r.partition for r in broker.log[20:]]


def test_a_topic_the_broker_does_not_know_is_waited_for_in_order(half: Half) -> None:
    found, state = Topics(half.connection, Metadata()), half.row.claim()
    with pytest.raises(UnknownTopic, match="'missing' does not exist"):
        found.resolve(state, b"missing")


def test_a_compacted_topic_is_refused_unless_it_is_allowed(half: Half) -> None:
    broker, state = Metadata(squeezed=frozenset({"orders"})), half.row.claim()
    found = Topics(half.connection, broker, compacted=False)
    with pytest.raises(CompactedTopic, match="outbox-relay shards mode transactional"):
        found.resolve(state, b"orders")
    assert Topics(half.connection, broker).resolve(state, b"orders") == ("orders", 3)


def test_a_row_for_a_topic_in_which_relays_keep_their_progress_is_parked_and_none_arrives_there(
    database: str, writer: Session, broker: MemoryBroker
) -> None:
    """Somebody wrote it past `emit` and `outbox_emit`."""
    write(writer, 2)
    stray = (
        "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic) "
        "VALUES (gen_random_uuid(), 'order', 'k', 'order.placed.v1', '', 'outbox.progress.7.5')"
    )
    writer.execute(stray.encode())
    write(writer, 2)
    carrying = shard(database, broker)
    drain(carrying)
    carrying.finish()
    assert [found.topic for found in broker.log] == ["outbox.event.order"] * 4
    parked = writer.execute("SELECT topic, state, error FROM outbox_parked").fetchall()
    assert parked == [
        ("outbox.progress.7.5", "failed", "outbox.progress.* holds the relays' own records, no events")
    ]


def test_a_topic_that_becomes_compacted_is_refused_from_the_next_refresh_on(half: Half) -> None:
    broker, state = Metadata(), half.row.claim()
    found = Topics(half.connection, broker, compacted=False)
    found.resolve(state, b"orders")
    broker.squeezed = frozenset({"orders"})
    found.refresh(state)
    with pytest.raises(CompactedTopic):
        found.resolve(state, b"orders")
    broker.squeezed = frozenset()
    assert found.resolve(state, b"orders") == ("orders", 3)


def test_a_former_owner_writes_no_count(own: Own, writer: Session) -> None:
    former, owner = own(), own()
    state = former.row.claim()
    owner.row.claim()
    with pytest.raises(Fenced):
        Topics(former.connection, Metadata()).resolve(state, b"orders")
    assert known(writer) == []


def test_a_count_grows_between_deltas_only(half: Half, writer: Session) -> None:
    broker, state = Metadata(), half.row.claim()
    found = Topics(half.connection, broker)
    found.resolve(state, b"orders")
    broker.counts["orders"] = 6
    write(writer)
    state = half.row.plan(state, half.looker.look(state.done))
    with pytest.raises(Fenced):
        found.refresh(state)
    assert known(writer) == [("orders", 3)]
    state = half.row.confirm(state)
    found.refresh(state)
    assert found.resolve(state, b"orders") == ("orders", 6)
    assert known(writer) == [("orders", 6)]


def grow_while_claimed(half: Half, connect: Connect, watcher: Session) -> tuple[BaseException | None, object]:
    """A count is to grow while a successor's claim is under way."""
    broker, state = Metadata(), half.row.claim()
    found = Topics(half.connection, broker)
    found.resolve(state, b"orders")
    broker.counts["orders"] += 3
    successor = connect()
    successor.execute("UPDATE outbox_shard SET epoch = epoch + 1")
    with ThreadPoolExecutor(1) as pool:
        growing = pool.submit(found.refresh, state)
        wait_for(watcher, f"SELECT ({WAITING}) OR (SELECT partitions <> 3 FROM outbox_topic)")
        successor.commit()
        return growing.exception(), known(watcher)


def test_a_count_does_not_grow_under_a_successor(
    half: Half, connect: Connect, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure, counts = grow_while_claimed(half, connect, writer)
    assert isinstance(failure, Fenced)
    assert counts == [("orders", 3)]
    monkeypatch.setattr(topics, "GROW", topics.GROW.replace(" FOR UPDATE", ""))
    failure, counts = grow_while_claimed(half, connect, writer)
    assert counts == [("orders", 6)], "the successor believes 3, whoever repeats its delta 6"
