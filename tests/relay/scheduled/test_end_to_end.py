"""A scheduled event reaches Kafka when it is due, once, in its key's order, whoever is killed meanwhile."""

from datetime import UTC, datetime
from uuid import UUID

from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until
from tests.relay.scheduled.scheduling import cancel, left, schedule


def test_events_arrive_when_they_are_due_and_in_the_order_of_their_times(
    scene: Scene, start: StartRelay
) -> None:
    late = [schedule(scene.session, 2 + n / 100, key=f"k{n % 3}", topic=scene.topic) for n in range(30)]
    early = [schedule(scene.session, 1 + n / 100, key=f"k{n % 3}", topic=scene.topic) for n in range(30)]
    gone = late.pop(7)
    never = schedule(scene.session, 86_400, topic=scene.topic)
    start()
    start()
    assert cancel(scene.session, gone)
    due = {
        str(id_): moment
        for id_, moment in scene.session.execute("SELECT id, due FROM outbox_scheduled").fetchall()
    }
    until(lambda: left(scene.session) == 1, 20, lambda: "not all moved")
    scene.wait_until_through()
    records = scene.arrived()
    assert scene.complaints() == []
    assert sorted(UUID(record.id) for record in wire.effects(records)) == sorted([*early, *late])
    assert never not in {UUID(record.id) for record in records}
    for key in (b"k0", b"k1", b"k2"):
        line = [due[record.id] for record in wire.effects(records) if record.key == key]
        assert line == sorted(line)
    for record in records:
        meant = due[record.id].timestamp() * 1000
        assert abs(record.time - meant) <= 1, "it bears the moment it was meant for"
    assert max(due[record.id] for record in records) <= datetime.now(UTC)


def test_a_relay_killed_right_after_it_moved_leaves_the_rest_to_its_successor(
    scene: Scene, start: StartRelay
) -> None:
    ids = [schedule(scene.session, -60 + n / 10, key=f"k{n % 3}", topic=scene.topic) for n in range(450)]
    assert start(strike="relay.moved 1 KILL").wait() == -9
    assert left(scene.session) == 250
    assert start(strike="relay.moved 2 KILL").wait() == -9
    start()
    until(lambda: left(scene.session) == 0, 20, lambda: "not all moved")
    scene.wait_until_through()
    assert scene.complaints() == []
    assert [UUID(id_) for id_, _ in scene.committed()] == ids
