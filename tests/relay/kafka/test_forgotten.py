"""A broker dies between a transaction's end and its markers, and its partitions have no leader meanwhile.

The coordinator takes such partitions for deleted and forgets them (KAFKA-20734): what was committed stays
hidden, what was aborted stays open, and the next transaction's end decides about either.
"""

from collections.abc import Iterator
from signal import SIGCONT, SIGKILL

import pytest
from confluent_kafka.cimpl import NewTopic

from outbox.testing.servers import KafkaServer, start_kafka
from tests.relay.conftest import StartRelay
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until

PROGRESS = (
    "SELECT 'outbox.progress.' || system_identifier || '.' || (SELECT oid FROM pg_database "
    "WHERE datname = current_database()) FROM pg_control_system()"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaServer]:
    """Of three brokers, the second of which dies; one that is dead is missed soon."""
    quick = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "400"}
    with start_kafka(brokers=3, settings=quick) as kafka:
        yield kafka


@pytest.fixture
def fragile(cluster: KafkaServer, scene: Scene) -> Iterator[Scene]:
    """The scene on that cluster; what `alone` names lies on the second broker only."""
    scene.bootstrap = scene.settings["OUTBOX_KAFKA_BOOTSTRAP_SERVERS"] = cluster.bootstrap
    yield scene
    if not cluster.brokers[1].running:
        cluster.brokers[1].start()


def lay(cluster: KafkaServer, scene: Scene, alone: str) -> list[str]:
    """Make the topics; those on the second broker alone."""
    there = {"events": [scene.topic], "progress": [scene.value(PROGRESS)]}
    fragile = there["events"] + there["progress"] if alone == "both" else there[alone]
    for (name,), partitions in ((there["events"], 3), (there["progress"], 1)):
        config = {"cleanup.policy": "compact"} if [name] == there["progress"] else {}
        config["min.insync.replicas"] = "1"
        replicas = [[2] if name in fragile else [1, 3]] * partitions
        topic = NewTopic(name, num_partitions=partitions, replica_assignment=replicas, config=config)
        cluster.admin.create_topics([topic])[name].result(30)
    return fragile


def leave_without_leader(cluster: KafkaServer, topics: list[str]) -> None:
    def leaderless() -> bool:
        found = [cluster.admin.list_topics(topic, timeout=10).topics[topic] for topic in topics]
        return all(place.leader == -1 for topic in found for place in topic.partitions.values())

    cluster.brokers[1].kill()
    until(leaderless, 30, lambda: f"{topics} still have leaders")


def in_the_midst(scene: Scene, start: StartRelay, sabotage: str | None = None) -> RelayProcess:
    """A relay that is frozen with a whole transaction at the brokers, uncommitted."""
    scene.transactional()
    scene.write(100)
    relay = start(lease="60", strike="relay.settled 4 STOP", sabotage=sabotage)
    scene.write(100)
    relay.wait_frozen()
    return relay


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("alone", ["events", "progress", "both"])
def test_what_is_committed_is_seen_once_though_its_markers_were_forgotten(
    cluster: KafkaServer, fragile: Scene, start: StartRelay, alone: str
) -> None:
    topics = lay(cluster, fragile, alone)
    relay = in_the_midst(fragile, start)
    leave_without_leader(cluster, topics)
    before = relay.count("relay.acknowledged")
    relay.send(SIGCONT)
    relay.wait_for("relay.acknowledged", before + 1)
    relay.send(SIGKILL)
    cluster.brokers[1].start()
    fragile.session.execute("UPDATE outbox_lease SET lease_until = now() - interval '1 second'")
    start(instance="successor")
    fragile.write(50)
    fragile.wait_until_through()
    assert fragile.plain_complaints() == []


def aborted_without_leader(
    cluster: KafkaServer, scene: Scene, start: StartRelay, sabotage: str | None
) -> None:
    """A successor aborts what its predecessor had begun, while the events' topic has no leader."""
    topics = lay(cluster, scene, "events")
    in_the_midst(scene, start).send(SIGKILL)
    leave_without_leader(cluster, topics)
    scene.session.execute("UPDATE outbox_lease SET lease_until = now() - interval '1 second'")
    successor = start(instance="successor", sabotage=sabotage)
    successor.wait_for("relay.taken_over")
    cluster.brokers[1].start()
    scene.write(50)
    scene.wait_until_through()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_was_aborted_is_seen_once_though_its_markers_were_forgotten(
    cluster: KafkaServer, fragile: Scene, start: StartRelay
) -> None:
    aborted_without_leader(cluster, fragile, start, None)
    assert fragile.plain_complaints() == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_whoever_trusts_the_brokers_shows_what_was_aborted(
    cluster: KafkaServer, fragile: Scene, start: StartRelay
) -> None:
    aborted_without_leader(cluster, fragile, start, "trusts_the_brokers")
    assert any("came again" in complaint for complaint in fragile.plain_complaints())


LEAVE = {
    "mode": (
        "UPDATE outbox_shard SET wanted_mode = 'sequenced'",
        "SELECT mode = 'sequenced' FROM outbox_shard",
    ),
    "generation": ("SELECT outbox_shards_set(2)", "SELECT min(generation) = 2 FROM outbox_shard"),
}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", LEAVE)
def test_a_shard_that_leaves_its_mode_or_generation_leaves_nothing_open_behind(
    cluster: KafkaServer, fragile: Scene, start: StartRelay, what: str
) -> None:
    """In mode sequenced nobody looks for transactions, and a later generation does not know what of an
    earlier one was committed: readers would stand before this one for ever, or never see it."""
    topics = lay(cluster, fragile, "events")
    relay = in_the_midst(fragile, start, sabotage="impatient")
    leave_without_leader(cluster, topics)
    relay.send(SIGCONT)
    fragile.wait_until_through()
    ask, done = LEAVE[what]
    fragile.session.execute(ask.encode())
    until(lambda: "has no leader" in relay.log, 30, lambda: relay.log[-3000:])
    cluster.brokers[1].start()
    fragile.wait(done)
    fragile.write(50)
    fragile.wait_until_through()
    assert fragile.plain_complaints() == []
