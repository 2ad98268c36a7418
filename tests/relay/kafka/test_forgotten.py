"""A broker dies between a transaction's end and its markers, and its partitions have no leader meanwhile.

The coordinator takes such partitions for deleted and forgets them (KAFKA-20734): what was committed stays
hidden, what was aborted stays open, and the next transaction's end decides about either.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from signal import SIGCONT, SIGKILL
from typing import Protocol
from uuid import uuid4

import pytest
from confluent_kafka.cimpl import NewTopic

from outbox.testing.servers import KafkaServer, PostgresServer, start_kafka
from outbox.testing.servers.kafka import Partition
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


class Lay(Protocol):
    """Lays a scene out on that cluster; what `alone` names lies on the second broker only."""

    def __call__(self, alone: str) -> Scene: ...


@pytest.fixture
def lay(cluster: KafkaServer, postgres: PostgresServer, template: str) -> Iterator[Lay]:
    """Several scenes, each in a database of its own, share one death of the broker."""
    with ExitStack() as over:

        def one(alone: str) -> Scene:
            name = f"outbox_{uuid4().hex[:12]}"
            url = postgres.database(name, template=template)
            over.callback(postgres.drop, name)
            scene = over.enter_context(Scene(url, cluster.bootstrap, f"events.{uuid4().hex[:12]}"))
            for topic, partitions in {scene.topic: 3, scene.value(PROGRESS): 1}.items():
                what = "events" if topic == scene.topic else "progress"
                replicas = [[2] if alone in (what, "both") else [1, 3]] * partitions
                config = {"cleanup.policy": "compact"} if what == "progress" else {}
                config["min.insync.replicas"] = "1"
                new = NewTopic(topic, num_partitions=partitions, replica_assignment=replicas, config=config)
                cluster.admin.create_topics([new])[topic].result(30)
            return scene

        yield one
    if not cluster.brokers[1].running:
        cluster.brokers[1].start()


def leave_without_leader(cluster: KafkaServer, *scenes: Scene) -> None:
    """What lies on the second broker alone."""
    topics = [topic for scene in scenes for topic in (scene.topic, scene.value(PROGRESS))]

    def places(topic: str) -> Iterable[Partition]:
        return cluster.admin.list_topics(topic, timeout=10).topics[topic].partitions.values()

    fragile = [topic for topic in topics if all(place.replicas == [2] for place in places(topic))]
    assert len(fragile) >= len(scenes)
    cluster.brokers[1].kill()
    until(
        lambda: all(place.leader == -1 for topic in fragile for place in places(topic)),
        30,
        lambda: f"{fragile} still have leaders",
    )


def in_the_midst(scene: Scene, start: StartRelay, sabotage: str | None = None) -> RelayProcess:
    """A relay that is frozen with a whole transaction at the brokers, uncommitted."""
    scene.transactional()
    scene.write(100)
    relay = start(**at(scene, lease="60"), strike="relay.settled 4 STOP", sabotage=sabotage)
    scene.write(100)
    relay.wait_frozen()
    return relay


def at(scene: Scene, **changes: str) -> dict[str, str]:
    """The scene as settings of `start`."""
    return {name.removeprefix("OUTBOX_").lower(): value for name, value in scene.settings.items()} | changes


def successor(scene: Scene, start: StartRelay, sabotage: str | None = None) -> RelayProcess:
    scene.session.execute("UPDATE outbox_lease SET lease_until = now() - interval '1 second'")
    return start(**at(scene, instance="successor"), sabotage=sabotage)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_is_committed_is_seen_once_though_its_markers_were_forgotten(
    cluster: KafkaServer, lay: Lay, start: StartRelay
) -> None:
    """Of the events, of the record of progress, of both."""
    scenes = {alone: lay(alone) for alone in ("events", "progress", "both")}
    relays = [in_the_midst(scene, start) for scene in scenes.values()]
    leave_without_leader(cluster, *scenes.values())
    before = [relay.count("relay.acknowledged") for relay in relays]
    for relay in relays:
        relay.send(SIGCONT)
    for relay, count in zip(relays, before, strict=True):
        relay.wait_for("relay.acknowledged", count + 1)
        relay.send(SIGKILL)
    cluster.brokers[1].start()
    for scene in scenes.values():
        successor(scene, start)
        scene.write(50)
    for alone, scene in scenes.items():
        scene.wait_until_through()
        assert scene.plain_complaints() == [], alone


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_was_aborted_is_seen_once_and_whoever_trusts_the_brokers_shows_it(
    cluster: KafkaServer, lay: Lay, start: StartRelay
) -> None:
    """A successor aborts what its predecessor had begun, while the events' topic has no leader."""
    ours, naive = scenes = lay("events"), lay("events")
    for scene in scenes:
        in_the_midst(scene, start).send(SIGKILL)
    leave_without_leader(cluster, *scenes)
    successors = [successor(ours, start), successor(naive, start, "trusts_the_brokers")]
    for relay in successors:
        relay.wait_for("relay.taken_over")
    cluster.brokers[1].start()
    for scene in scenes:
        scene.write(50)
    for scene in scenes:
        scene.wait_until_through()
    assert ours.plain_complaints() == []
    assert any("came again" in complaint for complaint in naive.plain_complaints())


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
    cluster: KafkaServer, lay: Lay, start: StartRelay, what: str
) -> None:
    """In mode sequenced nobody looks for transactions, and a later generation does not know what of an
    earlier one was committed: readers would stand before this one for ever, or never see it."""
    scene = lay("events")
    relay = in_the_midst(scene, start, sabotage="impatient")
    leave_without_leader(cluster, scene)
    relay.send(SIGCONT)
    scene.wait_until_through()
    ask, done = LEAVE[what]
    scene.session.execute(ask.encode())
    until(lambda: "has no leader" in relay.log, 30, lambda: relay.log[-3000:])
    cluster.brokers[1].start()
    scene.wait(done)
    scene.write(50)
    scene.wait_until_through()
    assert scene.plain_complaints() == []
