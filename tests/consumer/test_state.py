"""A State holds each key's newest event, through compaction, repeats, restarts and another topic's name."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from outbox import ConfigurationError, Event, Outbox, Tombstone, UndecodableRecord
from outbox.consumer import State
from outbox.testing.servers import KafkaServer, start_kafka
from tests.consumer.stage import Witness, eventually
from tests.relay import wire
from tests.relay.process import RelayProcess
from tests.relay.scene import THROUGH

MINUTE = timedelta(minutes=1)


class Named(Event, name="state.named", version=2, topic="unused", aggregate="customer", key="id"):
    id: str
    name: str


@Named.upcast(from_version=1)
def it_was_called_title(fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": fields["id"], "name": fields["title"]}


@pytest.fixture(scope="module")
def cleaning() -> Iterator[KafkaServer]:
    """A broker of one's own whose cleaner never rests."""
    with start_kafka(settings={"KAFKA_LOG_CLEANER_BACKOFF_MS": "100"}) as server:
        yield server


class Topic:
    """A compacted topic and what is written to it."""

    def __init__(self, kafka: KafkaServer, partitions: int = 3) -> None:
        self.kafka = kafka
        self.name = f"names.{uuid4().hex[:12]}"
        self.create(partitions)
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 1})
        self.sent = 0

    def create(self, partitions: int) -> None:
        self.kafka.create_topic(
            self.name,
            partitions,
            cleanup_policy="compact",
            segment_ms="100",
            min_cleanable_dirty_ratio="0.0",
            segment_bytes="1048576",
        )

    def put(
        self,
        key: str,
        name: str | None,
        *,
        partition: int = 0,
        seq: str | None = None,
        type_: str = "state.named.v2",
        typed_by: str = "type",
        replay: str | None = None,
        value: str | None = None,
    ) -> None:
        self.sent += 1
        headers: list[tuple[str, str | bytes | None]] = [
            (typed_by, type_.encode()),
            ("outbox-seq", (seq or f"s/1/0:1.{self.sent}").encode()),
        ]
        if replay is not None:
            headers.append(("outbox-replay", replay.encode()))
        if value is None and name is not None:
            value = Named(id=key, name=name).model_dump_json()
        self._producer.produce(self.name, value, key, partition=partition, headers=headers)

    def know_again(self) -> None:
        """A producer asks for a topic's partitions every five minutes."""
        self._producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "linger.ms": 1})

    def flush(self) -> None:
        assert self._producer.flush(20) == 0

    def state(self, **settings: Any) -> State[Named]:
        settings.setdefault("check", timedelta(milliseconds=200))
        kafka = {"bootstrap.servers": self.kafka.bootstrap, "fetch.wait.max.ms": 10}
        return State(Named, kafka=kafka, topic=self.name, **settings)


@pytest.fixture
def topic(cleaning: KafkaServer) -> Topic:
    return Topic(cleaning)


def names(state: State[Named]) -> dict[str, str]:
    return {key: event.name for key, event in state.items()}


def comes(state: State[Named], expected: dict[str, str]) -> None:
    eventually(lambda: names(state) == expected, what=f"{expected}; there is {names(state)}")


def test_it_is_ready_with_the_newest_values_then_follows_and_tombstones_delete(topic: Topic) -> None:
    for n in range(30):
        topic.put(f"k{n % 3}", f"n{n}", partition=n % 3)
    topic.put("k0", None)
    topic.flush()
    changes: list[tuple[str, str | None]] = []
    state = topic.state(on_change=lambda key, event: changes.append((key, event and event.name)))
    assert len(state) == 0
    with state:
        assert state.wait_ready(MINUTE)
        assert names(state) == {"k1": "n28", "k2": "n29"}
        assert state.lag == 0
        assert changes == []
        topic.put("k1", "later", partition=1, typed_by="ce_type")  # a relay's other envelope
        topic.put("k2", None, partition=2)
        topic.flush()
        comes(state, {"k1": "later"})
        assert "k2" not in state
        assert state.get("k2") is None
        eventually(lambda: sorted(changes) == [("k1", "later"), ("k2", None)])
        assert (state.health().trouble, state.health().topics) == ((), (topic.name,))
    assert not state.ready


def test_no_repeat_and_no_replay_overwrites_a_newer_value(topic: Topic) -> None:
    topic.put("k", "old", seq="s/1/0:1.1")
    topic.put("k", "new", seq="s/1/0:1.2")
    topic.put("gone", "was", seq="s/1/0:1.3")
    topic.put("gone", None, seq="s/1/0:1.4")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        topic.put("k", "old", seq="s/1/0:1.1")
        topic.put("gone", "was", seq="s/1/0:1.3")
        topic.put("k", "old", seq="s/1/0:2.1", replay="1;groups=*")
        topic.put("other", "end", seq="s/1/0:3.1")
        topic.flush()
        comes(state, {"k": "new", "other": "end"})
        assert state.health().repeats == 3


def test_old_versions_are_upcast_and_newer_ones_skipped_with_a_clear_word(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    topic.put("k", "", type_="state.named.v1", value='{"id":"k","title":"Ann"}')
    topic.put("k", "", type_="state.named.v3", value='{"id":"k"}')
    topic.put("k", "", type_="state.other.v1", value="{}")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        assert state["k"] == Named(id="k", name="Ann")
        assert state.health().skipped == 2
    assert "the newest version it knows is 2; deploy the consumers" in caplog.text


def test_what_cannot_be_read_is_skipped_and_counted_or_ends_the_reading_by_choice(topic: Topic) -> None:
    topic.put("k", "good")
    topic.put("k", "", value="{")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        assert names(state) == {"k": "good"}
        health = state.health()
        assert health.skipped == 1
        assert "at offset 1" in health.trouble[0]
    with topic.state(undecodable="stop") as state, pytest.raises(UndecodableRecord, match="at offset 1"):
        state.wait_ready(MINUTE)
    assert not state.ready
    with topic.state(unknown="stop") as state:
        topic.put("k", "", type_="state.other.v1", value="{}")
        topic.flush()
        eventually(lambda: not state.ready and state.health().trouble)
        with pytest.raises(ConfigurationError, match=r"type state\.other\.v1 .* is not of this State"):
            state.wait_ready(MINUTE)


def test_a_new_state_reads_the_same_from_what_compaction_left(topic: Topic) -> None:
    for n in range(300):
        topic.put(f"k{n % 10}", f"n{n}" if n < 299 else None)
    topic.flush()
    # After a crash the whole stretch follows again; the cleaner keeps only the last copies.
    for n in range(250, 300):
        topic.put(f"k{n % 10}", f"n{n}" if n < 299 else None, seq=f"s/1/0:1.{n + 1}")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        before = names(state)

        def compacted() -> bool:
            topic.put("filler", "x")  # rolls the segment, which then can be cleaned
            topic.flush()
            return len(wire.read(topic.kafka.bootstrap, topic.name)) < 60

        eventually(compacted, within=60, what="the cleaner")
        with topic.state() as fresh:
            fresh.wait_ready(MINUTE)
            assert before == {f"k{n}": f"n{290 + n}" for n in range(9)}
            assert {k: v for k, v in names(fresh).items() if k != "filler"} == before


def test_a_topic_made_again_is_read_from_its_beginning_and_the_old_table_serves_until_then(
    topic: Topic, cleaning: KafkaServer
) -> None:
    for n in range(20):
        topic.put(f"k{n}", "old")
    topic.flush()
    changes: dict[str, str | None] = {}
    with topic.state(on_change=lambda key, event: changes.update({key: event and event.name})) as state:
        state.wait_ready(MINUTE)
        cleaning.delete_topic(topic.name)
        topic.create(3)
        eventually(lambda: state.health().trouble or len(state) < 20)
        for n in range(10, 40):
            topic.put(f"k{n}", "new")
        topic.flush()
        comes(state, {f"k{n}": "new" for n in range(10, 40)})
        assert changes == {f"k{n}": "new" if n >= 10 else None for n in range(40)}


def test_partitions_added_while_it_runs_are_read(topic: Topic, cleaning: KafkaServer) -> None:
    from confluent_kafka.admin import NewPartitions

    topic.put("k", "here")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        cleaning.admin.create_partitions([NewPartitions(topic.name, 5)])[topic.name].result(20)
        eventually(lambda: len(cleaning.admin.list_topics(topic.name).topics[topic.name].partitions) == 5)

        topic.know_again()
        topic.put("k", "there", partition=4)
        topic.flush()
        comes(state, {"k": "there"})


def test_snapshots_are_whole_while_it_is_written(topic: Topic) -> None:
    with topic.state() as state:
        state.wait_ready(MINUTE)
        over = threading.Event()
        failures: list[BaseException] = []

        def look() -> None:
            try:
                while not over.is_set():
                    assert all(event.name for event in state.values())
                    assert sum(1 for _ in state) <= 500
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range(4000):
            topic.put(f"k{n % 500}", None if n % 7 == 0 and n < 3500 else f"n{n}")
        topic.flush()
        eventually(lambda: state.get("k499") == Named(id="k499", name="n3999"))
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert names(state) == {f"k{n}": f"n{3500 + n}" for n in range(500)}


def test_a_broker_killed_under_it_loses_nothing_and_it_says_so_meanwhile(
    topic: Topic, cleaning: KafkaServer
) -> None:
    for n in range(50):
        topic.put(f"k{n}", "before")
    topic.flush()
    with topic.state() as state:
        state.wait_ready(MINUTE)
        (broker,) = cleaning.brokers
        broker.kill()
        eventually(lambda: state.health().trouble)
        assert len(state) == 50
        broker.start()
        for n in range(25):
            topic.put(f"k{n}", "after")
        topic.flush()
        comes(state, {f"k{n}": "after" if n < 25 else "before" for n in range(50)})
        eventually(lambda: state.health().trouble == ())


def test_it_starts_before_the_brokers_and_before_the_topic(cleaning: KafkaServer, seen: Witness) -> None:
    topic = Topic(cleaning, 1)
    cleaning.delete_topic(topic.name)
    with topic.state() as state:
        eventually(lambda: any("do not know" in text for text in state.health().trouble))
        assert not state.wait_ready(timedelta(milliseconds=1))
        topic.create(1)
        topic.put("k", "v")
        topic.flush()
        assert state.wait_ready(MINUTE)
        comes(state, {"k": "v"})


def test_only_committed_records_of_a_transactional_relay_count(
    topic: Topic, engine: Engine, database: str, tmp_path: Path
) -> None:
    outbox = Outbox(sessionmaker(engine))
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox_shard SET wanted_mode = 'transactional'"))
    settings = {
        "OUTBOX_DATABASE_URL": database,
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": topic.kafka.bootstrap,
        "OUTBOX_LEASE": "0.5",
        "OUTBOX_TRANSACTION_ROWS": "5",
    }
    through = text(THROUGH)

    def write(name: str) -> None:
        with outbox.sessions.begin() as session:
            for n in range(20):
                outbox.emit(session, Named(id=f"k{n}", name=name), topic=topic.name)
            outbox.emit(session, Tombstone(Named, key="k0"), topic=topic.name)

    with topic.state() as state:
        write("one")
        # It dies with a transaction open: what is in it must never be seen.
        killed = RelayProcess(settings, tmp_path / "killed.log", strike="relay.settled 1 KILL")
        with killed:
            killed.wait(60)
        write("two")
        with RelayProcess(settings, tmp_path / "relay.log"), engine.connect() as connection:
            eventually(lambda: connection.execute(through).scalar_one())
            connection.rollback()
        comes(state, {f"k{n}": "two" for n in range(1, 20)})
        with topic.state() as fresh:
            fresh.wait_ready(MINUTE)
            assert names(fresh) == names(state)
            eventually(lambda: fresh.lag == 0, what="the end behind the last control record")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda kafka: State(kafka=kafka), "State\\(CustomerChanged"),
        (lambda kafka: State(Named, kafka=kafka, unknown="park"), "parks nothing"),  # type: ignore[arg-type]
        (lambda kafka: State(Named, kafka=kafka, undecodable="park"), "parks nothing"),  # type: ignore[arg-type]
        (lambda kafka: State(Named, kafka=kafka, check=timedelta(0)), "positive"),
        (lambda kafka: State(Named, kafka={}), "names no server"),
        (lambda kafka: State(Event, kafka=kafka), "no name on the wire"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[dict[str, Any]], object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make({"bootstrap.servers": "127.0.0.1:1"})
