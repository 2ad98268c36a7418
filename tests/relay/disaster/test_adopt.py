"""Another Kafka cluster: nothing is sent or read until `adopt`, and then nothing is lost or applied twice."""

import json
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

from outbox import hooks
from outbox.errors import GuardViolation
from outbox.testing.servers import KafkaServer, PostgresServer
from relay import points
from relay.cli import main
from relay.config import RelayConfig
from relay.database import OutcomeUnknown
from relay.disaster.adopt import Adoption
from relay.producers import Kafka
from relay.shard import Shard
from tests.relay import wire
from tests.relay.database.half import AlwaysHeld, drain
from tests.relay.scene import Scene

ROWS = "SELECT shard, generation, epoch, next FROM outbox_shard"
OFFSETS = (
    "SELECT grp, topic, partition, cluster_id, next_offset, sources::text "
    "FROM consumer_offset ORDER BY 1, 2, 3"
)


class Move:
    """One database, a topic of the same name in two clusters, and a consumer group's offsets."""

    def __init__(self, scene: Scene, old: KafkaServer, new: KafkaServer) -> None:
        self.scene, self.old, self.new = scene, old, new
        self.topic = f"orders.{uuid4().hex[:12]}"
        old.create_topic(self.topic, 3)

    def publish(self, cluster: KafkaServer) -> None:
        config = RelayConfig(database_url=self.scene.database, kafka_bootstrap_servers=cluster.bootstrap)
        relay = Shard(
            config,
            AlwaysHeld(0),
            Kafka(config.kafka_properties),
            stopping=lambda: False,
            status={"state": "starting", "alarm": None, "published": 0},
        )
        try:
            drain(relay)
            relay.finish()
        finally:
            relay.let_go()

    def write(self, count: int) -> list[str]:
        return self.scene.write(count, topic=self.topic)

    def read(self, *, partitions: int = 3) -> None:
        """What a group of ours would write down once it has read the old topic to its end."""
        ends: dict[int, list[wire.Arrived]] = {p: [] for p in range(partitions)}
        for record in wire.read(self.old.bootstrap, self.topic):
            ends[record.partition].append(record)
        cluster = self.scene.value("SELECT kafka_cluster_id FROM outbox_identity")
        for partition, records in ends.items():
            source, marks = "none", [0, 0]
            if records:
                source, _, place = records[-1].seq.partition("/")
                marks = [int(n) for n in place.rpartition(":")[2].split(".")]
            sources = {source: {"generation": 1, "shards": {"0": marks}}}
            self.scene.session.execute(
                "INSERT INTO consumer_offset (grp, topic, partition, cluster_id, topic_id, next_offset, "
                "sources) VALUES ('billing', %s, %s, %s, 'old-topic', %s, %s)",
                (self.topic, partition, cluster, len(records), json.dumps(sources)),
            )

    def mirror(self, *, but: int = 0) -> None:
        """Copy all but the last `but` records, as they are."""
        producer = Producer({"bootstrap.servers": self.new.bootstrap, "linger.ms": 0})
        records = wire.read(self.old.bootstrap, self.topic)
        for record in records[: len(records) - but]:
            producer.produce(
                self.topic, record.value, record.key, partition=record.partition, headers=list(record.headers)
            )
        assert producer.flush(20) == 0

    def adoption(self, **how: object) -> Adoption:
        new, old = ({"bootstrap.servers": c.bootstrap} for c in (self.new, self.old))
        return Adoption(self.scene.database, new, **{"old": old, **how})  # type: ignore[arg-type]


@pytest.fixture
def move(scene: Scene, kafka: KafkaServer, second_kafka: KafkaServer) -> Iterator[Move]:
    (broker,) = second_kafka.brokers
    if not broker.running:
        broker.start()
    move = Move(scene, kafka, second_kafka)
    yield move
    kafka.delete_topic(move.topic)


def test_empty_topics_with_other_partition_counts_go_on_under_a_new_generation(move: Move) -> None:
    before = move.write(30)
    move.publish(move.old)
    move.read()
    pending = move.write(10)
    with pytest.raises(GuardViolation, match="run: outbox-relay adopt"):
        move.publish(move.new)
    with pytest.raises(GuardViolation, match="does not exist in the new cluster"):
        move.adoption().run()
    move.new.create_topic(move.topic, 5)
    expected = move.adoption().run(dry_run=True)
    assert move.scene.shard()[1] == 1, "a dry run changes nothing"
    done = move.adoption().run()
    assert (done.changed, done.shards, done.groups) == (True, 1, ("billing",))
    assert (expected.cluster, expected.before, expected.topics) == (done.cluster, done.before, done.topics)
    move.publish(move.new)
    arrived = wire.read(move.new.bootstrap, move.topic)
    assert sorted(r.id for r in arrived) == sorted(pending)
    assert {r.seq.split("/")[1] for r in arrived} == {"2"}, "no mark of the old cluster hides it"
    assert wire.complaints(wire.read(move.old.bootstrap, move.topic) + arrived, move.scene.committed()) == []
    rows = move.scene.session.execute(OFFSETS).fetchall()
    assert {(row[3], row[4]) for row in rows} == {(done.cluster, 0)}
    assert all("generation" in row[5] for row in rows), "the marks stay"
    assert not move.adoption().run().changed, "run twice it does nothing"
    assert len(before) == 30


def test_a_mirrored_topic_is_adopted_only_once_it_is_whole(move: Move) -> None:
    move.write(30)
    move.publish(move.old)
    move.read()
    move.new.create_topic(move.topic, 3)
    move.mirror(but=1)
    with pytest.raises(GuardViolation, match="does not end with the old one's last record"):
        move.adoption(mirrored=True).run()
    with pytest.raises(GuardViolation, match="holds records in partition"):
        move.adoption().run()
    last = wire.read(move.old.bootstrap, move.topic)[-1]
    producer = Producer({"bootstrap.servers": move.new.bootstrap})
    producer.produce(move.topic, last.value, last.key, partition=last.partition, headers=list(last.headers))
    assert producer.flush(20) == 0
    assert move.adoption(mirrored=True).run().changed
    after = move.write(10)
    move.publish(move.new)
    arrived = wire.read(move.new.bootstrap, move.topic)
    assert [r.id for r in wire.effects(arrived) if r.id in after]
    assert wire.complaints(arrived, move.scene.committed()) == []


def test_an_open_plan_and_a_group_that_has_not_read_everything_are_refused(move: Move) -> None:
    move.write(30)
    move.publish(move.old)
    move.read()
    move.new.create_topic(move.topic, 3)
    move.scene.session.execute("UPDATE consumer_offset SET next_offset = 0 WHERE partition = 1")
    with pytest.raises(GuardViolation, match="group billing has read"):
        move.adoption().run()
    with pytest.raises(GuardViolation, match="--consumers-drained"):
        move.adoption(old=None).run()
    move.scene.session.execute(
        "UPDATE outbox_shard SET next = done, next_floor = done_floor, next_xid = done_xid"
    )
    with pytest.raises(GuardViolation, match="has a planned delta"):
        move.adoption(old=None, drained=True).run()
    move.scene.session.execute("UPDATE outbox_shard SET next = NULL, next_floor = NULL, next_xid = NULL")
    move.scene.session.execute("INSERT INTO outbox_job (shard, groups, requested_by) VALUES (0, '*', 'me')")
    with pytest.raises(GuardViolation, match="a replay is under way"):
        move.adoption(old=None, drained=True).run()
    move.scene.session.execute("DELETE FROM outbox_job")
    move.scene.session.execute("INSERT INTO outbox_relay (instance) VALUES ('r1')")
    with pytest.raises(GuardViolation, match="relay r1 is alive"):
        move.adoption(old=None, drained=True).run()
    move.scene.session.execute("UPDATE outbox_relay SET stopped_at = clock_timestamp()")
    assert move.adoption(old=None, drained=True).run().changed


def test_the_same_generation_under_other_partitions_would_lose_events(move: Move) -> None:
    """Naive: correct the cluster's id by hand. A key's new partition has marks of other keys' events."""
    move.write(30)
    move.publish(move.old)
    old = wire.read(move.old.bootstrap, move.topic)
    move.scene.session.execute("UPDATE outbox_identity SET kafka_cluster_id = NULL")
    move.scene.session.execute("UPDATE outbox_shard SET delta = delta - 86400000, generation = 1")
    move.write(10)
    move.new.create_topic(move.topic, 5)
    move.scene.session.execute("UPDATE outbox_shard SET delta = delta + 1")
    move.publish(move.new)
    new = wire.read(move.new.bootstrap, move.topic)
    assert {r.seq.split("/")[1] for r in new} == {"1"}
    marked = {r.partition: r.seq for r in old}
    assert any(r.partition in marked for r in new), "its number is compared with another cluster's"


def test_an_adoption_that_dies_at_any_step_has_done_nothing(move: Move, postgres: PostgresServer) -> None:
    move.write(5)
    move.publish(move.old)
    move.read()
    move.new.create_topic(move.topic, 3)
    session = move.scene.session
    before = [session.execute(query.encode()).fetchall() for query in (ROWS, OFFSETS)]
    for step in ("identity", "topics", "generation", "offsets"):

        def terminate(point: str, facts: dict[str, object], step: str = step) -> None:
            if point == points.ADOPTING and facts["step"] == step:
                session.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND state = 'idle in transaction'"
                )

        unsubscribe = hooks.subscribe(terminate)
        try:
            with pytest.raises((OutcomeUnknown, psycopg.OperationalError)):
                move.adoption().run()
        finally:
            unsubscribe()
        assert [session.execute(query.encode()).fetchall() for query in (ROWS, OFFSETS)] == before, step
    assert move.adoption().run().changed


def test_both_commands_answer_in_json_and_change_nothing_without_yes(move: Move) -> None:
    move.write(5)
    move.publish(move.old)
    move.new.create_topic(move.topic, 3)
    url = ["--database-url", move.scene.database]
    adopt = ["adopt", *url, "--kafka-bootstrap-servers", move.new.bootstrap, "--from", move.old.bootstrap]

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    assert call(*adopt, "--json").exit_code == 2
    assert json.loads(call(*adopt, "--empty", "--json").stdout)["changed"] is False
    assert "--yes" in call(*adopt, "--empty", "--dry-run").stdout
    answer = json.loads(call(*adopt, "--empty", "--yes", "--json").stdout)
    assert (answer["changed"], answer["shards"]) == (True, 1)
    assert "nothing to do" in call(*adopt, "--empty", "--yes").stdout
    assert "nothing to do" in call("rebase", *url).stdout
    answer = json.loads(call("rebase", *url, "--identity-only", "--yes", "--json").stdout)
    assert (answer["changed"], answer["kind"], answer["pending"]) == (True, "same", 0)
    assert call("rebase", *url, "--yes", "--dry-run").exit_code == 2
    assert call("rebase", *url, "--pending-since", "yesterday").exit_code == 2
