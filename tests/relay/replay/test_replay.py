"""Published events go out again for an operator: each once, in order, for whom it was meant."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from outbox.testing.servers import KafkaServer
from relay.database import Database
from relay.ring import Ring
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.parking.conftest import Operate
from tests.relay.scene import Scene

ENDED = "SELECT bool_and(ended_at IS NOT NULL) FROM outbox_job"


def again(records: list[wire.Arrived]) -> list[wire.Arrived]:
    """What a replay sent and a consumer with marks lets through."""
    return [r for r in wire.effects(records) if any(name == "outbox-replay" for name, _ in r.headers)]


def in_order(found: list[wire.Arrived], expected: list[str]) -> bool:
    """Each expected event once, and every partition in their order."""
    place = {id_: n for n, id_ in enumerate(expected)}
    partitions: dict[int, list[int]] = {}
    for arrived in found:
        partitions.setdefault(arrived.partition, []).append(place[arrived.id])
    return sorted(r.id for r in found) == sorted(expected) and all(
        places == sorted(places) for places in partitions.values()
    )


@pytest.fixture
def written(scene: Scene) -> list[str]:
    return scene.write(120) + scene.write(10, keys=0)


def test_the_whole_ring_for_one_group_while_live_events_go_on(
    scene: Scene, start: StartRelay, operate: Operate, written: list[str]
) -> None:
    start()
    scene.wait_until_through()
    before = {record.id: record for record in scene.arrived()}
    counted = json.loads(operate("replay", "--for", "billing", "--json").stdout)
    assert counted["events"] == 130
    assert counted["jobs"] == []
    said = operate("replay", "--for", "billing", "--yes", "--json").stdout
    (job,) = json.loads(said)["jobs"]
    scene.wait("SELECT upto IS NOT NULL FROM outbox_job")
    live = scene.write(20)
    scene.wait(ENDED)
    scene.wait_until_through()
    records = scene.arrived()
    replayed = again(records)
    assert in_order(replayed, written)
    for record in replayed:
        first = before[record.id]
        assert (record.key, record.value, record.time) == (first.key, first.value, first.time)
        assert record.partition == first.partition
        assert dict(record.headers)["outbox-replay"] == f"{job};groups=billing".encode()
    assert sorted(r.id for r in wire.effects(records) if r.id in {*live}) == sorted(live)
    listed = json.loads(operate("replay", "--list", "--json").stdout)["replays"]
    assert [(r["outcome"], r["sent"]) for r in listed] == [("done", 130)]


@pytest.mark.parametrize(
    "strike",
    [
        "relay.replay_planned 1 KILL",
        "relay.replaying 2 KILL",
        "relay.replayed 1 KILL",
    ],
)
def test_killed_at_any_step_each_event_is_applied_once_more(
    scene: Scene, start: StartRelay, operate: Operate, written: list[str], strike: str
) -> None:
    first = start()
    scene.wait_until_through()
    assert first.stop() == 0
    operate("replay", "--for", "*", "--yes")
    assert start(strike=strike, sabotage="small_windows").wait() == -9
    start(sabotage="small_windows")
    scene.wait(ENDED, within=40)
    assert in_order(again(scene.arrived()), written)


@pytest.mark.parametrize(
    "strike",
    ["relay.replaying 2 KILL", "relay.settled 2 KILL", "relay.committing 2 KILL", "relay.replayed 1 KILL"],
)
def test_in_transactions_killed_at_any_step_each_event_is_seen_once_more(
    scene: Scene, start: StartRelay, operate: Operate, written: list[str], strike: str
) -> None:
    scene.transactional()
    first = start()
    scene.wait_until_through()
    assert first.stop() == 0
    operate("replay", "--for", "billing", "--yes")
    assert start(strike=strike, sabotage="small_windows").wait() == -9
    start(sabotage="small_windows")
    scene.wait(ENDED)
    scene.wait_until_through()
    records = scene.arrived()
    repeated = [record for record in records if dict(record.headers).get("outbox-replay")]
    assert in_order(repeated, written), "seen by a plain reader, without marks"
    assert wire.repeats([record for record in records if record not in repeated]) == 0


def test_a_part_of_it_to_another_topic(
    scene: Scene, start: StartRelay, operate: Operate, written: list[str], kafka: KafkaServer
) -> None:
    start()
    scene.wait_until_through()
    other = kafka.create_topic(f"{scene.topic}.again", 2)
    since = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S%z")
    assert (
        "older events are gone"
        in operate("replay", "--aggregate", "k1", "--to", other, "--since", since).output
    )
    operate("replay", "--topic", scene.topic, "--aggregate", "k1", "--to", other, "--yes")
    scene.wait(ENDED)
    expected = [id_ for id_, key in scene.committed() if key == "k1"]
    assert [record.id for record in wire.read(scene.bootstrap, other)] == expected
    assert again(scene.arrived()) == []
    kafka.delete_topic(other)


def test_the_same_topic_demands_to_know_for_whom(operate: Operate) -> None:
    assert "--for" in operate("replay", "--yes", code=2).output


def test_what_is_parked_or_discarded_is_left_out(
    scene: Scene, start: StartRelay, operate: Operate, written: list[str]
) -> None:
    start()
    scene.wait_until_through()
    scene.session.execute("INSERT INTO outbox_hold (shard, topic) VALUES (0, 't')")
    scene.session.execute(
        """INSERT INTO outbox_parked (hold, state, id, aggregatetype, type, topic, occurred_at, position,
                                      delta, sent_topic, numbers, starts)
           SELECT 1, 'failed', id, aggregatetype, type, topic, occurred_at, position,
                  1, topic, '{s/1/0:1.1}', '{0}'
           FROM outbox_event ORDER BY position LIMIT 1"""
    )
    operate("replay", "--for", "*", "--yes")
    scene.wait(ENDED)
    assert in_order(again(scene.arrived()), written[1:])


def test_no_leaf_is_truncated_while_a_replay_has_not_ended(
    scene: Scene, start: StartRelay, operate: Operate
) -> None:
    scene.session.execute(
        """INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, topic, slot)
           SELECT gen_random_uuid(), 'order', 'k', 'order.placed.v1', %s,
                  mod(date_part('epoch', clock_timestamp())::bigint / 600 + 4, 8)""",
        [scene.topic],
    )
    relay = start()
    scene.wait_until_through()
    assert relay.stop() == 0
    operate("replay", "--for", "*", "--yes")
    ring = Ring(Database(scene.database), retention=timedelta(0))
    assert ring.run_once() == []
    operate("replay", "--cancel", 1)
    scene.session.execute("UPDATE outbox_job SET ended_at = now()")
    assert len(ring.run_once()) == 1
    ring.connection.close()


def test_canceled_it_ends_and_says_so(scene: Scene, start: StartRelay, operate: Operate) -> None:
    scene.write(10)
    relay = start()
    scene.wait_until_through()
    assert relay.stop() == 0
    operate("replay", "--for", "*", "--yes")
    operate("replay", "--cancel", 1)
    start()
    scene.wait(ENDED)
    assert scene.value("SELECT outcome FROM outbox_job") == "canceled"
    assert again(scene.arrived()) == []
    operate("replay", "--cancel", 1, code=3)
