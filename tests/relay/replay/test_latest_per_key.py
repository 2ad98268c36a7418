"""For a compacted topic a replay sends each key's latest event only, and never one behind a newer one."""

import json

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from outbox import hooks
from outbox.testing.servers import KafkaServer
from relay import points, tenure
from relay.database import OutcomeUnknown
from relay.replay import replay
from relay.row import ID
from tests.relay.conftest import Connect, StartRelay
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.parking.conftest import Operate
from tests.relay.replay.test_replay import ENDED, again
from tests.relay.replay.test_windows import ended
from tests.relay.scene import Scene

ASK = """
INSERT INTO outbox_job (shard, groups, requested_by, latest_per_key, to_topic, until)
VALUES (0, '*', 'operator', true, %s, %s)
"""


@pytest.fixture
def session(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(replay, "WINDOW", 4)
    monkeypatch.setattr(tenure, "REPLAYS_EVERY", 0.0)
    monkeypatch.setattr(tenure, "JOBS_EVERY", 0.0)
    return connect(autocommit=True)


def replayed(database: str, broker: MemoryBroker, session: Session, *, to: str | None = None) -> list[str]:
    """What a replay of everything sends, once the first window was cut off and newer events were written."""
    carrying = shard(database, broker, chunk_rows=1)
    until = None if to is None else "now()"
    while carrying.run_once().published:
        pass
    before = len(broker.log)
    session.execute(ASK, [to, until])
    newer: list[str] = []

    def strike(point: str, facts: dict[str, object]) -> None:
        if point == points.REPLAYING and not newer:
            newer.extend(write(session, key="a"))
            raise OutcomeUnknown("cut off")

    unsubscribe = hooks.subscribe(strike)
    try:
        for _ in range(100):
            carrying.run_once()
            if ended(session):
                break
    finally:
        unsubscribe()
        carrying.let_go()
    assert ended(session)
    assert newer
    return [found.id for found in broker.log[before:] if found.id not in newer]


def test_of_each_key_the_latest_in_order_and_all_without_a_key(database: str, session: Session) -> None:
    write(session, 3, key="b")
    write(session, key="a")
    keyless = write(session, 2, key=None)
    write(session, key="a")
    (last_b,) = write(session, key="b")
    write(session, 3, key="a")
    (last_c,) = write(session, key="c")
    # Key a has a newer event by the time its window is planned, which was sent as it was written.
    assert replayed(database, MemoryBroker(), session) == [*keyless, last_b, last_c]


def test_what_was_discarded_is_no_successor(database: str, session: Session) -> None:
    (first, second) = write(session, 2, key="b")
    write(session, 5, key="a")
    broker = MemoryBroker(refuses=lambda row: row[ID].decode() == second)
    carrying = shard(database, broker)
    carrying.run_once()
    session.execute("UPDATE outbox_parked SET discarded_by = 'o', discard_reason = 'r'")
    session.execute("UPDATE outbox_hold SET wanted_at = now(), wanted_by = 'o'")
    for _ in range(20):
        carrying.run_once()
    carrying.let_go()
    assert session.execute("SELECT outcome FROM outbox_archive").fetchone() == ("discarded",)
    assert first in replayed(database, broker, session)


def test_to_another_topic_only_what_the_replay_holds_counts(database: str, session: Session) -> None:
    write(session, 3, key="a")
    (last,) = write(session, key="a")
    write(session, 2, key="b")
    (last_b,) = write(session, key="b")
    assert replayed(database, MemoryBroker(), session, to="elsewhere") == [last, last_b]


def test_a_compacted_topic_refuses_every_other_replay(
    scene: Scene, start: StartRelay, operate: Operate, kafka: KafkaServer
) -> None:
    scene.transactional()
    written = scene.write(60, keys=5)
    start()
    scene.wait_until_through()
    entry = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, scene.topic, incremental_configs=[entry])
    kafka.admin.incremental_alter_configs([resource])[resource].result(20)
    said = operate("replay", "--for", "*", "--yes", "--wait", "--json", code=1)
    (job,) = json.loads(said.stdout)["ended"]
    assert job["outcome"] == "failed"
    assert "--latest-per-key" in job["error"]
    operate("replay", "--for", "*", "--latest-per-key", "--yes")
    scene.wait(ENDED)
    last = {key: id_ for id_, key in scene.committed()}
    assert sorted(record.id for record in again(scene.arrived())) == sorted(last.values())
    assert set(last.values()) < set(written)
