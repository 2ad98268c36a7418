"""What becomes of an offset that cannot be read from is a choice, and the offset's row says what was done."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions

from outbox import Reject
from outbox.consumer import Positions
from outbox.consumer.place.scout import Bounds, Scout
from outbox.errors import ConfigurationError
from outbox.testing.servers import KafkaServer
from relay.cli import main
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running
from tests.consumer.test_parking import Keyed
from tests.consumer.test_position import made_again
from tests.consumer.test_seek import wait_done

FAST = {"topic.metadata.refresh.interval.ms": 500}


def accept(stage: Stage, *more: str) -> str:
    done = CliRunner().invoke(
        main,
        [
            *("consumers", "accept", "--group", stage.group, "--topic", stage.topic),
            *("--database-url", stage.url, "--kafka-bootstrap-servers", stage.bootstrap, *more),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    return done.output


def delete_before(kafka: KafkaServer, stage: Stage, offset: int) -> None:
    """What retention does."""
    for future in kafka.admin.delete_records([TopicPartition(stage.topic, 0, offset)]).values():
        future.result(20)


def test_below_retention_goes_on_with_the_oldest_record_if_told_so(
    build: StageFactory, kafka: KafkaServer
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        wait_done(stage)
    stage.send(20)
    delete_before(kafka, stage, 15)
    with running(stage.recorder(positions=Positions(below="earliest"))):
        wait_done(stage)
    row, sent = stage.row(), stage.expected(0)
    assert (row.moved_from, row.moved_to) == (10, 15)
    assert "retention deleted 5 offsets" in row.moved_why
    assert stage.effects() == sent[:10] + sent[15:]


def test_a_stopped_partition_goes_on_where_a_seek_sends_it_without_a_restart(
    build: StageFactory, kafka: KafkaServer, seen: Witness
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        wait_done(stage)
    stage.send(20)
    delete_before(kafka, stage, 15)
    with running(stage.recorder()) as consumer:
        reason = seen.wait("consumer.stopped")["reason"]
        wanted = (
            f"consumers seek --group {stage.group} --topic {stage.topic} --partition 0 --to beginning --yes"
        )
        assert wanted in reason
        consumer.seek("beginning")
        wait_done(stage)
        assert consumer.health().ok
    assert len(stage.effects()) == 25


def test_beyond_the_end_goes_on_at_the_end_and_keeps_what_waits(build: StageFactory) -> None:
    keyed = Keyed(build(partitions=1), positions=Positions(above="latest"))
    stage = keyed.stage
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1", "b:1", "a:2")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 2)
    stage.sql("UPDATE consumer_offset SET next_offset = 50")
    stage.sql("UPDATE consumer_parked SET record_offset = record_offset + 20")
    with running(keyed.consumer):
        eventually(lambda: stage.row().moved_to == 3)
        keyed.put("a:3", "b:2")
        eventually(lambda: stage.offset() == 5)
        assert stage.effects() == ["b:1", "b:2"]
        keyed.bad.clear()
        (head, _), *_rest = keyed.waiting()
        assert head < 0
        keyed.release(head)
        eventually(lambda: keyed.counted() == 0)
    assert stage.effects() == ["b:1", "b:2", "a:1", "a:2", "a:3"]
    assert "beyond the end 3" in stage.row().moved_why


@pytest.mark.parametrize("how", ["policy", "accept"])
def test_a_topic_made_again_is_read_from_its_beginning_and_repeats_are_known(
    build: StageFactory, kafka: KafkaServer, seen: Witness, how: str
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    policy = Positions(recreated="beginning") if how == "policy" else Positions()
    with running(stage.recorder(FAST, positions=policy)) as consumer:
        wait_done(stage)
        made_again(stage, kafka, 3)
        if how == "accept":
            assert "consumers accept" in seen.wait("consumer.stopped")["reason"]
            assert "10 -> 0" in accept(stage)
            assert stage.offset() == 10
            accept(stage, "--yes")
        eventually(lambda: stage.offset() == 3)
        stage.repeat(0, 5)
        stage.send(1)
        eventually(lambda: stage.offset() == 10)
        assert consumer.health().ok
    assert stage.effects() == [*stage.expected(0)[:10], "new0", "new1", "new2", "0.11"]
    assert "made again" in stage.row().moved_why


def test_another_cluster_is_read_from_its_beginning_if_told_so(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        wait_done(stage)
    stage.sql("UPDATE consumer_offset SET cluster_id = 'another', next_offset = 77")
    stage.send(2)
    with running(stage.recorder(positions=Positions(cluster="beginning"))):
        wait_done(stage)
    assert stage.effects() == stage.expected(0)
    assert "was read from Kafka cluster another" in stage.row().moved_why


def test_a_topic_made_again_with_other_partitions_stops_whatever_the_policy(
    build: StageFactory, kafka: KafkaServer, seen: Witness
) -> None:
    stage = build(partitions=2)
    stage.send(10)
    consumer = stage.recorder(FAST, positions=Positions(recreated="beginning"))
    with running(consumer):
        wait_done(stage)
    made_again(stage, kafka, 3)
    with running(consumer):
        assert "made again" in seen.wait("consumer.stopped")["reason"]
        assert stage.offset(0) == 5
        assert "marks are forgotten" in accept(stage, "--yes")
        eventually(lambda: stage.offset() == 3)
    assert stage.effects(0)[-3:] == ["new0", "new1", "new2"]


def grow(kafka: KafkaServer, stage: Stage, to: int) -> None:
    for future in kafka.admin.create_partitions([NewPartitions(stage.topic, to)]).values():
        future.result(20)

    def known() -> bool:
        return len(stage._producer.list_topics(stage.topic).topics[stage.topic].partitions) == to

    eventually(known)
    for partition in range(stage.partitions, to):
        stage._sent[partition] = stage._put[partition] = 0
    stage.partitions = to


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_partitions_that_are_added_are_read_from_their_beginning_with_an_alarm(
    build: StageFactory, kafka: KafkaServer, seen: Witness, start: str
) -> None:
    stage = build(partitions=1)
    stage.send(4)
    with running(stage.recorder(start="earliest")):
        wait_done(stage)
    grow(kafka, stage, 3)
    stage.send(9)
    with running(stage.recorder(FAST, start=start)):
        wait_done(stage)
    assert stage.faults() == []
    facts = seen.wait("consumer.repartitioned")
    assert (facts["before"], facts["now"]) == (1, 3)
    assert stage.row(2).moved_why == (
        "start=earliest" if start == "earliest" else "it appeared after the group began"
    )


def test_partitions_that_are_added_can_wait_until_somebody_accepts_them(
    build: StageFactory, kafka: KafkaServer, seen: Witness
) -> None:
    stage = build(partitions=1)
    stage.send(4)
    policy = Positions(partitions="stop")
    with running(stage.recorder(positions=policy)):
        wait_done(stage)
    grow(kafka, stage, 2)
    stage.send(6)
    with running(stage.recorder(FAST, positions=policy)) as consumer:
        assert "keys moved" in seen.wait("consumer.stopped")["reason"]
        eventually(lambda: stage.offset(0) == stage.end(0))
        assert (stage.effects(1), len(consumer.health().stopped)) == ([], 1)
        accept(stage, "--yes")
        wait_done(stage)
        assert consumer.health().ok
    assert stage.faults() == []


def test_a_group_that_never_read_begins_at_a_time_or_waits_to_be_told(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=1)
    stage.send(6)
    with running(stage.recorder(start=datetime.now(UTC) - timedelta(hours=1), group="since")):
        eventually(lambda: stage.offset(group="since") == 6)
    with running(stage.recorder(start=datetime.now(UTC) + timedelta(hours=1), group="later")):
        eventually(lambda: stage.offset(group="later") == 6)
    assert (len(stage.effects(group="since")), stage.effects(group="later")) == (6, [])
    with running(stage.recorder(start="stop")) as consumer:
        assert "say where" in seen.wait("consumer.stopped")["reason"]
        assert stage.offset() == -1
        consumer.seek(4, partition=0)
        eventually(lambda: stage.offset() == 6)
    assert stage.effects() == stage.expected(0)[4:]


def test_a_partition_waits_to_be_told_also_when_another_one_was_told_before(
    build: StageFactory, seen: Witness
) -> None:
    stage = build(partitions=2)
    stage.send(8)
    stage.recorder(start="stop").seek(4, partition=0)
    with running(stage.recorder(start="stop")) as consumer:
        assert seen.wait("consumer.stopped")["partition"] == 1
        eventually(lambda: stage.offset(0) == 4)
        assert stage.effects(1) == []
        consumer.seek("end", partition=1)
        eventually(lambda: stage.offset(1) == 4)
        stage.send(8)
        eventually(lambda: (stage.offset(0), stage.offset(1)) == (8, 8))
    assert stage.effects(1) == stage.expected(1)[4:]


def test_policies_are_checked_at_birth(build: StageFactory) -> None:
    stage = build(partitions=1)
    with pytest.raises(ConfigurationError, match="below='newest' is none of 'stop', 'earliest'"):
        Positions(below="newest")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="time zone"):
        stage.consumer(start=datetime(2026, 5, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="Positions"):
        stage.consumer(positions="earliest")


@pytest.mark.parametrize("protocol", ["kip848", "eager"])
def test_a_policy_holds_under_every_protocol(build: StageFactory, kafka: KafkaServer, protocol: str) -> None:
    stage = build(partitions=1)
    stage.send(10)
    delete_before(kafka, stage, 5)
    stage.sql(
        "INSERT INTO consumer_offset (grp, topic, partition, next_offset) VALUES (:g, :t, 0, 2)",
        g=stage.group,
        t=stage.topic,
    )
    with running(stage.recorder(PROTOCOLS[protocol], positions=Positions(below="earliest"))):
        wait_done(stage)
    assert stage.effects() == stage.expected(0)[5:]


def read_and_cut_off(stage: Stage) -> None:
    """The record before the offset is of another leader than the one that was applied."""
    stage.send(10)
    with running(stage.recorder()):
        wait_done(stage)
    assert stage.row().leader_epoch is not None
    stage.sql("UPDATE consumer_offset SET leader_epoch = leader_epoch - 1")
    stage.send(5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_log_that_was_cut_off_and_has_grown_since_stops(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=1)
    read_and_cut_off(stage)
    with running(stage.recorder(PROTOCOLS[protocol])):
        assert "the log was truncated at offset 0" in seen.wait("consumer.stopped")["reason"]
    assert (stage.offset(), len(stage.effects())) == (10, 10)


def test_a_log_that_was_cut_off_is_read_from_there_if_told_so(build: StageFactory) -> None:
    stage = build(partitions=1)
    read_and_cut_off(stage)
    with running(stage.recorder(positions=Positions(truncated="fork"))):
        wait_done(stage)
    assert stage.effects() == stage.expected(0)
    assert "truncated at offset 0" in stage.row().moved_why


def test_the_record_before_the_offset_may_be_gone(build: StageFactory, kafka: KafkaServer) -> None:
    stage = build(partitions=1)
    stage.send(10)
    with running(stage.recorder()):
        wait_done(stage)
    stage.send(5)
    delete_before(kafka, stage, 10)
    with running(stage.recorder()):
        wait_done(stage)
    assert stage.effects() == stage.expected(0)


class Epochs(Scout):
    """A log of which only the leader epochs matter; None: no record is there (any more)."""

    def __init__(self, epochs: list[int | None], oldest: int = 0) -> None:
        self.epochs = epochs
        self.oldest = oldest

    def bounds(self, _topic: str, _partition: int) -> Bounds:
        return Bounds(self.oldest, len(self.epochs))

    def first(self, _topic: str, _partition: int, offset: int, end: int) -> Any:
        there = [n for n in range(offset, end) if self.epochs[n] is not None]
        epochs = self.epochs
        return (
            SimpleNamespace(offset=lambda: there[0], leader_epoch=lambda: epochs[there[0]]) if there else None
        )


@pytest.mark.parametrize(
    ("epochs", "oldest", "fork"),
    [
        ([0, 0, 0, 3, 3], 0, 3),
        ([0, 0, None, None, 3, 3], 0, 2),
        ([3, 3], 0, 0),
        ([None, None, None, 3, 3], 3, 3),
        ([0, 0, 0], 0, None),
    ],
)
def test_the_place_of_the_cut_is_found(epochs: list[int | None], oldest: int, fork: int | None) -> None:
    assert Epochs(epochs, oldest).fork("t", 0, 1, len(epochs)) == fork
