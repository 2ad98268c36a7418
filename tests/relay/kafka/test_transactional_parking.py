"""Mode transactional with a refused row: killed at any step, each event is sent once or parked once."""

import pytest

from tests.conftest import TopicFactory
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

HELD = "SELECT id::text FROM outbox_parked ORDER BY parked"


@pytest.mark.parametrize(
    ("strike", "together"),
    [
        (None, "0"),
        ("relay.committing 5 KILL", "0"),
        ("relay.acknowledged 4 KILL", "0"),
        ("relay.parked 2 KILL", "0"),
        (None, "5"),
        ("relay.committing 5 KILL", "5"),
        ("relay.parked 2 KILL", "5"),
    ],
)
def test_each_event_is_sent_once_or_parked_once(
    scene: Scene, start: StartRelay, topic: TopicFactory, strike: str | None, together: str
) -> None:
    scene.topic = topic("small", 2, max_message_bytes="20000")
    scene.transactional()
    (first,) = scene.write(1, pad=30_000)  # key k1
    with scene.session.transaction():
        ids = scene.write(400)
        (second,) = scene.write(1, keys=1, pad=30_000)  # key k0
        ids += scene.write(1)  # a key of its own chunk: k1, held
        ids += scene.write(300)
    settings = {"transaction_time": together}
    if strike is not None:
        assert start(strike=strike, **settings).wait() == -9
    start(**settings)
    scene.wait_until_through()
    parked = [id_ for (id_,) in scene.session.execute(HELD).fetchall()]
    assert {first, second} <= {*parked}
    assert len(parked) == len({*parked}), "parked once"
    records = scene.arrived()
    committed = scene.committed()
    assert {record.id for record in records} == {id_ for id_, _ in committed} - {*parked}
    sent = {record.id for record in records}
    assert wire.plain_complaints(records, [row for row in committed if row[0] in sent]) == []
    keys = dict(committed)
    held = {keys[id_] for id_ in parked}
    assert all(keys[id_] in held for id_ in parked)
    assert not any(keys[id_] == keys[first] for id_ in sent), "its key waits"


def test_a_chunk_in_front_of_a_refused_row_is_in_before_the_row_is_set_aside(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    scene.topic = topic("small", 2, max_message_bytes="20000")
    scene.transactional()
    with scene.session.transaction():
        before = scene.write(50)
        (poison,) = scene.write(1, keys=0, pad=30_000)  # alone in its chunk
    assert start(strike="relay.parked 1 KILL").wait() == -9
    start()
    scene.wait_until_through()
    records = scene.arrived()
    assert {record.id for record in records} == {*before}
    assert wire.plain_complaints(records, [row for row in scene.committed() if row[0] != poison]) == []


def test_a_refused_row_early_in_a_backlog_of_small_chunks_is_set_aside_alone(
    scene: Scene, start: StartRelay, topic: TopicFactory
) -> None:
    """Its transaction has taken in many later chunks by the time the broker says no."""
    scene.topic = topic("small", 3, max_message_bytes="20000")
    scene.transactional()
    with scene.session.transaction():
        scene.write(30)
        (poison,) = scene.write(1, keys=0, pad=30_000)
        scene.write(3_000, keys=50)
        (last,) = scene.write(1, keys=0, pad=30_000)
        scene.write(20)
    relay = start(transaction_time="5", transaction_rows="20")
    scene.wait_until_through()
    parked = {id_ for (id_,) in scene.session.execute(HELD).fetchall()}
    assert parked == {poison, last}
    committed = [row for row in scene.committed() if row[0] not in parked]
    assert wire.plain_complaints(scene.arrived(), committed) == []
    assert relay.count("relay.claimed") < 20, "each claim halves what is in doubt, or better"
