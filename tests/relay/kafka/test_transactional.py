"""Mode transactional: a plain read_committed reader sees each event exactly once, in order, whatever dies."""

from signal import SIGCONT

import pytest
from confluent_kafka import Producer

from outbox.testing.servers import KafkaBroker
from tests.conftest import TopicFactory
from tests.relay.conftest import StartRelay
from tests.relay.kafka import foreign
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until

STEPS = [
    "relay.claimed 1 KILL",
    "relay.fencing 1 KILL",  # a change of mode: nothing is done yet
    "relay.fencing 2 KILL",  # the first take-over
    "relay.taken_over 1 KILL",
    "relay.planned 1 KILL",
    "relay.sending 2 KILL",
    "relay.settled 7 KILL",  # all records with the brokers, no commit asked for
    "relay.committing 7 KILL",  # nobody knows
    "relay.acknowledged 12 KILL",  # committed, not written down
]


@pytest.mark.parametrize("strike", STEPS)
def test_killed_at_any_step_each_event_is_seen_exactly_once(
    scene: Scene, start: StartRelay, strike: str
) -> None:
    scene.transactional()
    scene.write(550)
    scene.write(50, keys=0)
    assert start(strike=strike).wait() == -9
    scene.write(100)
    start()
    scene.wait_until_through()
    assert scene.value("SELECT mode FROM outbox_shard") == "transactional"
    assert scene.plain_complaints() == []


@pytest.mark.parametrize(
    "strike",
    [
        "relay.sending 7 KILL",  # several chunks with the brokers, the transaction goes on
        "relay.settled 1 KILL",
        "relay.committing 1 KILL",
        "relay.acknowledged 1 KILL",
    ],
)
def test_several_chunks_in_one_transaction_are_all_seen_once_or_not_at_all(
    scene: Scene, start: StartRelay, strike: str
) -> None:
    scene.transactional()
    with scene.session.transaction():
        scene.write(550)
        scene.write(50, keys=0)
    killed = start(strike=strike, transaction_time="5")
    assert killed.wait() == -9
    assert killed.count("relay.sending") > killed.count("relay.settled") + 1
    with scene.session.transaction():
        scene.write(300)
    successor = start(transaction_time="5")
    scene.wait_until_through()
    assert scene.plain_complaints() == []
    assert successor.stop() == 0


@pytest.mark.parametrize(
    ("step", "together"),
    [
        ("relay.taken_over 1 STOP", "0"),
        ("relay.settled 6 STOP", "0"),
        ("relay.committing 6 STOP", "0"),
        ("relay.sending 6 STOP", "0"),
        ("relay.sending 6 STOP", "5"),
    ],
)
def test_a_relay_that_overslept_its_lease_is_fenced_by_kafka_itself(
    scene: Scene, start: StartRelay, step: str, together: str
) -> None:
    scene.transactional()
    scene.write(1000)
    zombie = start(strike=step, instance="zombie", transaction_time=together)
    zombie.wait_frozen()
    start()
    scene.write(150)
    scene.wait_until_through()
    before = scene.shard()
    zombie.send(SIGCONT)
    scene.wait("SELECT state->>'state' = 'standby' FROM outbox_relay WHERE instance = 'zombie'")
    assert scene.shard() == before
    assert scene.plain_complaints() == []


def test_two_relays_that_both_believe_in_their_lease_take_turns_and_send_nothing_twice(
    scene: Scene, start: StartRelay
) -> None:
    scene.transactional()
    scene.write(1000)
    zombie = start(strike="relay.settled 6 STOP", sabotage="sleepwalks,impatient")
    zombie.wait_frozen()
    start(sabotage="sleepwalks,impatient").wait_for("relay.acknowledged", 3)
    zombie.send(SIGCONT)
    scene.write(500)
    scene.wait_until_through()
    assert scene.plain_complaints() == []


@pytest.mark.parametrize(("step", "together"), [("relay.settled 6 STOP", "0"), ("relay.sending 6 STOP", "5")])
def test_a_transaction_that_took_too_long_is_sent_again_as_if_it_had_never_been(
    scene: Scene, start: StartRelay, step: str, together: str
) -> None:
    scene.transactional()
    scene.write(600)
    relay = start(strike=step, lease="60", kafka__transaction_timeout_ms="1000", transaction_time=together)
    relay.wait_frozen()
    assert foreign.open_transactions(scene.bootstrap, scene.topic)
    until(
        lambda: not foreign.open_transactions(scene.bootstrap, scene.topic),
        20,
        lambda: "the broker has not ended the transaction",
    )
    relay.send(SIGCONT)
    scene.wait_until_through()
    assert scene.plain_complaints() == []
    assert relay.stop() == 0


def test_nothing_is_sent_while_a_transaction_hides_what_is_committed(scene: Scene, start: StartRelay) -> None:
    scene.transactional()
    scene.write(100)
    first = start()
    scene.wait_until_through()
    assert first.stop() == 0
    other = Producer({"bootstrap.servers": scene.bootstrap, "transactional.id": scene.topic})
    other.init_transactions(30)
    progress = scene.value(
        "SELECT 'outbox.progress.' || system_identifier || '.' || (SELECT oid FROM pg_database "
        "WHERE datname = current_database()) FROM pg_control_system()"
    )
    other.begin_transaction()
    other.produce(progress, b"{}", b"key", partition=0)
    assert other.flush(30) == 0
    scene.write(50)
    start(instance="second")
    scene.wait(
        "SELECT state->>'alarm' LIKE 'a transaction stands open%' FROM outbox_relay WHERE instance = 'second'"
    )
    assert len(scene.arrived()) == 100, scene.status("second")
    other.abort_transaction(30)
    scene.wait_until_through()
    assert scene.plain_complaints() == []


def test_a_broker_that_is_killed_and_comes_back_changes_nothing(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    scene.transactional()
    relay = start(sabotage="impatient")
    for point in ("relay.settled", "relay.committing"):
        scene.write(500)
        relay.wait_for(point, relay.count(point) + 3)
        broker.kill()
        scene.write(100)
        broker.start()
        scene.wait_until_through(60)
    assert relay.stop() == 0
    assert scene.plain_complaints() == []


def test_plain_readers_of_other_makes_see_the_same(scene: Scene, start: StartRelay) -> None:
    scene.transactional()
    scene.write(600)
    for point in ("committing", "settled", "committing"):
        assert start(strike=f"relay.{point} 2 KILL", lease="0.3").wait() == -9
    start(lease="0.3")
    scene.wait_until_through()
    assert scene.plain_complaints() == []
    seen = [(record.partition, record.offset, record.id) for record in scene.arrived()]
    assert foreign.java(scene.bootstrap, scene.topic, len(seen)) == seen
    assert foreign.aiokafka(scene.bootstrap, scene.topic) == seen


# What the tests find out


def frozen_in_its_take_over(scene: Scene, start: StartRelay, sabotage: str) -> RelayProcess:
    """Claimed and about to fence, while another relay goes on; then awake again."""
    scene.transactional()
    first = start()
    scene.write(100)
    scene.wait_until_through()
    assert first.stop() == 0
    zombie = start(strike="relay.fencing 1 STOP", sabotage=sabotage)
    zombie.wait_frozen()
    scene.write(300)
    second = start(strike="relay.acknowledged 3 STOP")
    second.wait_frozen()
    zombie.send(SIGCONT)
    return zombie


def test_the_row_is_read_behind_the_progress_topic(scene: Scene, start: StartRelay) -> None:
    zombie = frozen_in_its_take_over(scene, start, "sleepwalks,stops_when_fenced")
    zombie.wait_for("relay.fenced")
    assert zombie.wait() == 0


def test_a_row_read_before_the_progress_topic_seems_to_contradict_it(scene: Scene, start: StartRelay) -> None:
    zombie = frozen_in_its_take_over(scene, start, "sleepwalks,believes_its_claim")
    assert zombie.wait() == 3
    assert "was never planned here" in zombie.log


def test_a_mode_from_configuration_repeats_or_hides_what_is_committed(
    scene: Scene, start: StartRelay
) -> None:
    scene.transactional()
    scene.write(600)
    assert start(strike="relay.acknowledged 6 KILL", sabotage="leaves_without_a_word").wait() == -9
    start(sabotage="thinks_it_is_sequenced")
    scene.wait_until_through()
    # Again what was committed; or nothing at all, behind the transaction that nobody has ended.
    assert scene.plain_complaints() != []


def test_a_change_without_a_first_record_stops_the_shard(scene: Scene, start: StartRelay) -> None:
    scene.write(100)
    scene.transactional()
    relay = start(sabotage="records_nothing")
    assert relay.wait(60) == 3
    assert "holds no record of it" in relay.log


@pytest.mark.parametrize("mode", ["sequenced", "transactional"])
def test_on_a_compacted_topic_a_zombies_late_record_stays_in_mode_sequenced_only(
    scene: Scene, start: StartRelay, topic: TopicFactory, mode: str
) -> None:
    """A record that it had in hand when it froze lands behind its key's newest one."""
    scene.topic = topic("squeezed", 1, cleanup_policy="compact")
    if mode == "transactional":
        scene.transactional()
    scene.write(300, keys=1)
    # Without notes in between it sends on to the end of its delta before it learns that it is fenced.
    sabotage = "sleepwalks,stops_when_fenced,leaves_without_a_word"
    zombie = start(strike="relay.sending 6 STOP", sabotage=sabotage, compacted_topics="allow")
    zombie.wait_frozen()
    scene.write(50, keys=1)
    successor = start(compacted_topics="allow")
    scene.wait_until_through()
    taken = zombie.count("relay.taken_over")
    zombie.send(SIGCONT)
    if mode == "sequenced":
        zombie.wait_for("relay.fenced")
    else:
        zombie.wait_for("relay.taken_over", taken + 1)
    successor.close()
    newest = scene.arrived()[-1].id == scene.committed()[-1][0]
    assert newest == (mode == "transactional")
