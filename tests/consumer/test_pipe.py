"""Results and offsets are one Kafka transaction: each result is seen once and in order, whoever dies."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from outbox import ConfigurationError, Event, Reject, Retry, Tombstone
from outbox.consumer import Out, Pipe, Record
from outbox.consumer.pipe import committed
from outbox.consumer.pipe.outflow import is_member
from outbox.consumer.watermark import Marks
from outbox.testing.servers import KafkaServer, start_kafka
from tests.conftest import TopicFactory
from tests.consumer import pipes
from tests.consumer.conftest import StageFactory
from tests.consumer.pipes import Piped
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually
from tests.consumer.test_position import made_again
from tests.nursery import Child
from tests.relay import wire


@pytest.fixture
def piped(build: StageFactory, topic: TopicFactory) -> Piped:
    return Piped(build(partitions=2), topic("results", partitions=2))


@contextmanager
def at_work(pipe: Pipe, threads: int = 1) -> Iterator[Pipe]:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            pipe.run(threads)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pipe
    finally:
        pipe.stop()
        thread.join(60)
        assert not thread.is_alive(), "the pipe does not stop"
    if failures:
        raise failures[0]


@contextmanager
def ended(*processes: Child) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(20)


def reading(pipe: Pipe) -> int:
    """How many partitions its members read."""
    return sum(p.next_offset is not None for m in pipe.health().members for p in m.partitions)


def test_each_result_once_and_in_order_across_restarts_and_relay_repeats(piped: Piped) -> None:
    for _ in range(2):
        piped.stage.send(40)
        with at_work(piped.handing_on(), threads=2):
            eventually(piped.all_there)
        piped.stage.repeat(0, 15)  # a relay that died unconfirmed: the marks beside the offset know
    piped.stage.send(10)
    with at_work(piped.handing_on()) as pipe:
        eventually(piped.all_there)
        assert pipe.health().members[0].trouble == ()
    assert piped.faults() == []


@pytest.mark.parametrize("point", ["pipe.sent", "pipe.offsets_sent", "pipe.committed"])
def test_killed_at_any_step_and_started_again_under_its_name(piped: Piped, point: str) -> None:
    piped.stage.send(60)
    orders: dict[str, Any] = {"instance": "one", "kafka": {"group.instance.id": "one"}}
    killed = piped.process(**orders, at=point, count=4, do="kill")
    with ended(killed):
        assert killed.wait(60) == -signal.SIGKILL
        again = piped.process(**orders)
        with ended(again):
            piped.stage.send(20)
            eventually(piped.all_there)
    assert piped.faults() == []


def test_killed_without_a_name_its_transaction_ends_by_time_and_another_goes_on(piped: Piped) -> None:
    piped.stage.send(60)
    killed = piped.process(at="pipe.offsets_sent", count=3, do="kill", kafka=SHORT, timeout=3)
    with ended(killed):
        assert killed.wait(60) == -signal.SIGKILL
        with at_work(piped.handing_on(kafka=SHORT)):
            piped.stage.send(20)
            eventually(piped.all_there)
    assert piped.faults() == []


@pytest.mark.parametrize("point", ["pipe.sent", "pipe.offsets_sent"])
def test_a_sleeper_that_wakes_up_after_others_took_its_partitions_changes_nothing(
    piped: Piped, point: str
) -> None:
    piped.stage.send(60)
    sleeper = piped.process(at=point, count=3, do="freeze", kafka=SHORT, timeout=4)
    with ended(sleeper):
        eventually(lambda: sleeper.frozen)
        with at_work(piped.handing_on(kafka=SHORT)) as pipe:
            piped.stage.send(20)
            eventually(piped.all_there)
            sleeper.send_signal(signal.SIGCONT)
            piped.stage.send(20)
            eventually(piped.all_there)
            eventually(lambda: reading(pipe) == 1, what="the sleeper has a place in the group again")
            piped.stage.send(20)
            eventually(piped.all_there)
    assert piped.faults() == []


def test_offsets_committed_apart_from_the_results_are_caught(piped: Piped) -> None:
    piped.stage.send(60)
    orders: dict[str, Any] = {
        "instance": "one",
        "kafka": {"group.instance.id": "one"},
        "break": "offsets_apart",
    }
    killed = piped.process(**orders, at="pipe.committed", count=3, do="kill")
    with ended(killed):
        assert killed.wait(60) == -signal.SIGKILL
        again = piped.process(**orders)
        with ended(again):
            eventually(piped.all_there)
            piped.stage.send(2)
            eventually(piped.all_there)
    assert any("doubled" in fault for fault in piped.faults())


def concluded(seen: Witness) -> int:
    """Transactions that ended either way."""
    return len(seen.all("pipe.committed")) + len(seen.all("pipe.lost"))


def expelled_while_a_handler_ran(piped: Piped, seen: Witness) -> None:
    """The first member's handler takes longer than max.poll.interval.ms and goes on as if nothing was."""
    piped.stage.send(20)
    slow, go_on = piped.pipe(kafka=SHORT), threading.Event()

    @slow.on(topic=piped.stage.topic)
    def hand_on(out: Out, value: bytes, record: Record) -> None:
        if value == b"0.3":
            go_on.wait(60)
        out.send(piped.to, record.key, value, {"from": str(record.partition)})

    with at_work(slow):
        try:
            eventually(lambda: seen.all("pipe.claimed"))
            with at_work(piped.handing_on(kafka=SHORT)):
                eventually(lambda: piped.results().get(0) == piped.stage.expected(0))
                before = concluded(seen)
                go_on.set()
                eventually(lambda: concluded(seen) > before)
        finally:
            go_on.set()
        eventually(piped.all_there)


def test_a_member_expelled_while_its_handler_ran_commits_nothing(piped: Piped, seen: Witness) -> None:
    expelled_while_a_handler_ran(piped, seen)
    assert piped.faults() == []


def test_offsets_sent_without_membership_are_caught(
    piped: Piped, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes.without_membership(monkeypatch)
    expelled_while_a_handler_ran(piped, seen)
    assert any("doubled" in fault for fault in piped.faults())


def test_whoever_was_expelled_must_not_send_what_its_client_says_of_its_membership() -> None:
    assert is_member(b"CGMDv2:\x05\0\0\0group\0member\0\x01")
    assert not is_member(b"CGMDv2:\xff\xff\xff\xffgroup\0\0\x01")
    assert not is_member(b"CGMDv2:\x05\0\0\0group\0\0\x01")
    assert not is_member(b"CGMDv2:\0\0\0\0group\0member\0\x01")
    with pytest.raises(ConfigurationError, match="confluent-kafka"):
        is_member(b"CGMDv3:")


@pytest.mark.parametrize("protocol", ["eager", "cooperative", "kip848"])
def test_members_that_come_and_go_double_and_lose_nothing(piped: Piped, protocol: str) -> None:
    kafka = PROTOCOLS[protocol]
    with at_work(piped.handing_on(kafka=kafka)):
        for _ in range(2):
            piped.stage.send(100)
            with at_work(piped.handing_on(kafka=kafka)) as second:
                piped.stage.send(100)
                eventually(lambda second=second: reading(second) == 1)  # type: ignore[misc]
                piped.stage.send(100)
        eventually(piped.all_there)
    assert piped.faults() == []


class Forgetful(Producer):
    """Loses the answer to some commits: of those that happened, and of those that did not."""

    commits = 0

    def commit_transaction(self, *arguments: Any) -> None:
        Forgetful.commits += 1
        if Forgetful.commits % 3 == 1:
            super().commit_transaction(*arguments)
        if Forgetful.commits % 3 == 2:
            return super().commit_transaction(*arguments)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def test_a_commit_whose_answer_was_lost_is_looked_up_and_never_guessed(piped: Piped, seen: Witness) -> None:
    pipe = piped.handing_on()
    object.__setattr__(pipe._setup, "new_producer", Forgetful)
    with at_work(pipe):
        for _ in range(2):
            piped.stage.send(40)
            eventually(piped.all_there)
    assert len(seen.all("pipe.lost")) >= 2
    assert piped.faults() == []


def test_a_poison_record_stops_its_partition_and_nothing_is_skipped(piped: Piped, seen: Witness) -> None:
    piped.stage.send(20)
    pipe = piped.pipe(attempts=2)
    tries: list[int] = []

    @pipe.on(topic=piped.stage.topic)
    def hand_on(out: Out, value: bytes, record: Record) -> None:
        out.send(piped.to, record.key, value, {"from": str(record.partition)})
        if value == b"0.5":
            tries.append(1)
            raise ValueError("cannot")

    with at_work(pipe):
        assert "offset 4 failed: ValueError: cannot" in seen.wait("consumer.stopped")["reason"]
        eventually(lambda: piped.results().get(1) == piped.stage.expected(1))
    assert piped.results()[0] == [f"0.{n}" for n in range(1, 5)]
    assert len(tries) == 3  # once within its batch, twice alone


def test_a_poison_record_goes_to_the_dead_letters_and_the_others_go_on(
    piped: Piped, topic: TopicFactory
) -> None:
    dead = topic("dead", partitions=1)
    piped.stage.send(20)
    pipe = piped.pipe(dead_letter=dead, attempts=1)

    @pipe.on(topic=piped.stage.topic)
    def hand_on(out: Out, value: bytes, record: Record) -> None:
        if value == b"0.5":
            raise Reject("not wanted")
        if value == b"1.7":
            value = b"x" * 2_000_000  # refused by the client: larger than message.max.bytes
        out.send(piped.to, record.key, value, {"from": str(record.partition)})

    with at_work(pipe):
        eventually(lambda: sum(map(len, piped.results().values())) == 18)
        eventually(lambda: len(wire.read(piped.stage.bootstrap, dead)) == 2)
    for partition, bad in ((0, "0.5"), (1, "1.7")):
        assert piped.results()[partition] == [v for v in piped.stage.expected(partition) if v != bad]
    letters = {r.value: dict(r.headers) for r in wire.read(piped.stage.bootstrap, dead)}
    assert b"not wanted" in (letters[b"0.5"]["dead-letter-reason"] or b"")
    assert letters[b"0.5"]["dead-letter-origin"] == f"{piped.stage.topic}[0]@4".encode()
    assert letters[b"0.5"]["type"] == b"thing.done.v1"
    assert "outbox-seq" not in letters[b"0.5"]
    assert b"1.7" in letters


def test_retry_waits_in_place_and_keeps_the_order(piped: Piped) -> None:
    piped.stage.send(20)
    pipe = piped.pipe()
    left = {b"0.3": 2, b"0.8": 1}

    @pipe.on(topic=piped.stage.topic)
    def hand_on(out: Out, value: bytes, record: Record) -> None:
        if left.get(value, 0) > 0:
            left[value] -= 1
            raise Retry("not yet", after=timedelta(milliseconds=50))
        out.send(piped.to, record.key, value, {"from": str(record.partition)})

    with at_work(pipe):
        eventually(piped.all_there)
    assert piped.faults() == []


class Counted(Event, name="pipe.counted", version=2, topic="unused", aggregate="count", key="id"):
    id: str
    n: int


@Counted.upcast(from_version=1)
def it_was_called_count(fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": fields["id"], "n": fields["count"]}


def test_events_in_events_out_with_versions_and_tombstones(piped: Piped) -> None:
    piped.stage.put('{"id":"a","count":1}', type_="pipe.counted.v1", key="a")
    piped.stage.put('{"id":"a","n":2}', type_="pipe.counted.v2", key="a")
    piped.stage.put(None, type_="pipe.counted.v2", key="a")
    piped.stage.flush()
    pipe = piped.pipe()

    @pipe.on(Counted, topic=piped.stage.topic, tombstones=True)
    def double(out: Out, event: Counted | None, record: Record) -> None:
        if event is None:
            out.emit(Tombstone(Counted, key=(record.key or b"").decode()), topic=piped.to)
        else:
            out.emit(Counted(id=event.id, n=2 * event.n), topic=piped.to, headers={"note": "x"})

    with at_work(pipe):
        eventually(lambda: len(wire.read(piped.stage.bootstrap, piped.to)) == 3)
    records = wire.read(piped.stage.bootstrap, piped.to)
    assert [r.value for r in records] == [b'{"id":"a","n":2}', b'{"id":"a","n":4}', None]
    assert {r.key for r in records} == {b"a"}
    assert dict(records[0].headers)["type"] == b"pipe.counted.v2"
    assert dict(records[0].headers)["note"] == b"x"
    assert len({dict(r.headers)["id"] for r in records}) == 3


def test_a_group_that_begins_at_the_end_writes_that_down_before_anything_comes(piped: Piped) -> None:
    piped.stage.send(10)
    with at_work(piped.handing_on(start="latest")) as pipe:
        eventually(lambda: reading(pipe) == 2)
        group = piped.stage.group
        eventually(lambda: stored(piped.stage, group) == {0: 5, 1: 5})
    piped.stage.send(4)
    with at_work(piped.handing_on(start="latest")):
        eventually(lambda: sum(map(len, piped.results().values())) == 4)
    assert piped.results() == {0: ["0.6", "0.7"], 1: ["1.6", "1.7"]}


@pytest.mark.parametrize("start", ["latest", "earliest"])
def test_a_topic_made_again_while_the_pipe_runs_stops_it_and_nothing_is_skipped_or_read_without_marks(
    build: StageFactory, topic: TopicFactory, kafka: KafkaServer, seen: Witness, start: str
) -> None:
    """With the topic Kafka deletes its committed offsets: the group would begin anew, without a word."""
    piped = Piped(build(partitions=1), topic("results", partitions=1))
    quickly = {"topic.metadata.refresh.interval.ms": 1000}
    with at_work(piped.handing_on(start=start, kafka=quickly)) as pipe:
        eventually(lambda: reading(pipe) == 1)
        piped.stage.send(5)
        eventually(piped.all_there)
        if start == "latest":
            made_again(piped.stage, kafka, 20)
        else:
            # Missed for a while: the group has taken the partition back before there is another one.
            kafka.delete_topic(piped.stage.topic)
            eventually(lambda: reading(pipe) == 0, within=40)
            made_again(piped.stage, kafka, 20)
        assert "made again" in seen.wait("consumer.stopped", within=40)["reason"]
        assert not pipe.health().ok
    assert piped.faults() == []


def stored(stage: Stage, group: str) -> dict[int, int]:
    from confluent_kafka import Consumer, TopicPartition

    reader = Consumer({"bootstrap.servers": stage.bootstrap, "group.id": group})
    try:
        places = [TopicPartition(stage.topic, n) for n in range(stage.partitions)]
        return {p.partition: p.offset for p in reader.committed(places, timeout=10)}
    finally:
        reader.close()


@pytest.fixture
def own_kafka() -> Iterator[KafkaServer]:
    """A broker that may be restarted."""
    with start_kafka(own=True) as server:
        yield server


def test_a_broker_restarted_under_load_doubles_and_loses_nothing(
    own_kafka: KafkaServer, engine: Any, database: str
) -> None:
    stage = Stage(engine, database, own_kafka.bootstrap, own_kafka.create_topic("piped.from", 2), 2)
    piped = Piped(stage, own_kafka.create_topic("piped.to", 2))
    stage.send(100)
    with at_work(piped.handing_on(batch_size=5), threads=2):
        eventually(piped.results)
        (broker,) = own_kafka.brokers
        broker.stop()
        broker.start()
        stage.send(100)
        eventually(piped.all_there)
    assert piped.faults() == []


def test_what_is_kept_beside_an_offset_comes_back_and_strangers_words_say_nothing() -> None:
    marks = Marks()
    marks.admit_encoded(b"s/1/0:7.9")
    assert committed.read(committed.stamp("topic-id", marks)) == ("topic-id", marks)
    for text in (None, "", "checkpoint", "[]", '{"topic":"x"}', '{"topic":1,"marks":{"s":1}}'):
        assert committed.read(text) == (None, Marks())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group": ""}, "needs a group"),
        ({"batch_size": 0}, "batch_size"),
        ({"start": "now"}, "start"),
        ({"unknown": "park"}, "unknown"),
        ({"dead_letter": "no/topic"}, "dead_letter"),
        ({"transaction_timeout": timedelta(milliseconds=5)}, "below a second"),
        ({"producer": {"transactional.id": "x"}}, "made of the group"),
        ({"producer": {"no.such": "x"}}, "no.such"),
        ({"kafka": {"isolation.level": "read_uncommitted", "bootstrap.servers": "h:1"}}, "aborted"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], says: str) -> None:
    make: Callable[..., Pipe] = Pipe
    with pytest.raises(ConfigurationError, match="by name"):
        Pipe(group="g", kafka={"bootstrap.servers": "127.0.0.1:1"}).on(topic="^orders")
    with pytest.raises(ConfigurationError, match=says):
        make(**{"group": "g", "kafka": {"bootstrap.servers": "127.0.0.1:1"}, **settings})


def test_a_pipe_tells_its_lag_what_is_stuck_and_what_its_client_says(piped: Piped, seen: Witness) -> None:
    piped.stage.send(6)
    gate = threading.Event()
    pipe = piped.pipe(kafka={"statistics.interval.ms": 100}, stuck_after=timedelta(seconds=0.5))

    @pipe.on(topic=piped.stage.topic)
    def hand_on(out: Out, value: bytes, record: Record) -> None:
        gate.wait(60)
        out.send(piped.to, record.key, value, {"from": str(record.partition)})

    with at_work(pipe):
        try:
            stuck = eventually(lambda: pipe.health().stuck)
            assert "polled records are not stored yet" in stuck[0].reason
            assert not pipe.health().ok
        finally:
            gate.set()
        eventually(lambda: pipe.health().ok and pipe.health().members[0].client.brokers_up)
        (member,) = pipe.health().members
        eventually(lambda: [p.lag for m in pipe.health().members for p in m.partitions] == [0, 0])
        assert {p.applied for p in pipe.health().members[0].partitions} == {3}
        assert seen.all("consumer.statistics")
        assert member.trouble == ()
    assert piped.faults() == []
