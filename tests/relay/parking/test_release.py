"""What was parked goes out once an operator says so: once, in its key's order, wherever the relay dies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from outbox.testing.servers import KafkaServer
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.parking.conftest import NOTHING_PARKED, Operate
from tests.relay.scene import Scene

BIG = 30_000
FIRST = "SELECT min(parked) FROM outbox_parked"
OUTCOMES = "SELECT id::text, outcome FROM outbox_archive ORDER BY delta, position"


def park_one(scene: Scene, start: StartRelay) -> tuple[str, list[str]]:
    """A refused event and two that wait behind it, while others go on; all written down."""
    with scene.session.transaction():
        scene.write(7)
        (poison,) = scene.write(1, pad=BIG)
        behind = scene.write(8)
    first = start()
    scene.wait_until_through()
    scene.wait("SELECT count(*) = 3 FROM outbox_parked")
    assert first.stop() == 0
    return poison, [behind[0], behind[7]]


def test_released_after_the_limit_was_raised_each_goes_out_once_and_in_order(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate
) -> None:
    poison, waiting = park_one(small, start)
    mend()
    number = small.value(FIRST)
    assert "nothing was done" in operate("parked", "release", number).output
    assert small.value("SELECT bool_and(wanted_at IS NULL) FROM outbox_hold")
    operate("parked", "release", number, "--yes")
    start()
    small.wait(NOTHING_PARKED)
    small.write(7)
    small.wait_until_through()
    assert small.complaints() == []
    assert small.session.execute(OUTCOMES).fetchall() == [(id_, "sent") for id_ in [poison, *waiting]]
    assert small.value("SELECT bool_and(settled_by LIKE '% as %') FROM outbox_archive")


@pytest.mark.parametrize(
    "strike",
    [
        "relay.release_planned 1 KILL",  # frozen, nothing sent
        "relay.releasing 2 KILL",  # the first may be in
        "relay.releasing 3 KILL",
        "relay.release_sent 1 KILL",  # all in, nothing written down
        "relay.released 1 KILL",
    ],
)
def test_killed_at_any_step_of_a_release_each_row_still_counts_once(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate, strike: str
) -> None:
    park_one(small, start)
    mend()
    operate("parked", "release", "--all", "--yes")
    assert start(strike=strike).wait() == -9
    start()
    small.wait(NOTHING_PARKED)
    small.write(7)
    small.wait_until_through()
    assert small.complaints() == []


def test_in_transactions_a_release_interrupted_between_two_rows_sends_the_first_once(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate
) -> None:
    small.transactional()
    park_one(small, start)
    mend()
    operate("parked", "release", "--all", "--yes")
    relay = start(sabotage="loses_the_broker_in_a_release,impatient")
    small.wait(NOTHING_PARKED)
    small.wait_until_through()
    assert small.plain_complaints() == []
    assert relay.count("relay.claimed") == 2, "only the progress topic knows what was committed"


@pytest.mark.parametrize(
    "strike",
    [
        "relay.release_planned 1 KILL",
        "relay.releasing 2 KILL",  # the first is committed, in the progress topic alone
        "relay.settled 2 KILL",  # its records are with the brokers, no commit asked for
        "relay.committing 2 KILL",  # nobody knows
        "relay.release_sent 1 KILL",
        "relay.released 1 KILL",
    ],
)
def test_in_transactions_killed_at_any_step_of_a_release_each_row_is_seen_once(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate, strike: str
) -> None:
    small.transactional()
    park_one(small, start)
    mend()
    operate("parked", "release", "--all", "--yes")
    assert start(strike=strike).wait() == -9
    start()
    small.wait(NOTHING_PARKED)
    small.write(7)
    small.wait_until_through()
    assert small.plain_complaints() == []


def test_killed_when_it_has_just_parked_the_successor_goes_on_behind_it(
    small: Scene, start: StartRelay
) -> None:
    small.write(7)
    (poison,) = small.write(1, pad=BIG)
    assert start(strike="relay.parked 1 KILL").wait() == -9
    behind = small.write(8)
    start()
    small.wait_until_through()
    parked = small.session.execute("SELECT id::text FROM outbox_parked ORDER BY parked").fetchall()
    assert parked == [(poison,), (behind[0],), (behind[7],)]


def test_refused_again_it_stays_in_front_and_nothing_behind_it_is_sent(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate
) -> None:
    poison, waiting = park_one(small, start)
    start()
    operate("parked", "release", "--all", "--yes")
    small.wait("SELECT attempts = 2 FROM outbox_parked WHERE state = 'failed'")
    shown = json.loads(operate("parked", "list", "--json", code=1).stdout)["parked"]
    assert [(key["id"], key["attempts"], key["events"]) for key in shown] == [(poison, 2, 3)]
    assert shown[0]["wanted_at"] is None
    assert "too large" in shown[0]["note"]
    mend()
    operate("parked", "release", "--all", "--yes")
    small.wait(NOTHING_PARKED)
    assert small.complaints() == []
    assert [id_ for id_, _ in small.session.execute(OUTCOMES).fetchall()] == [poison, *waiting]


def test_a_row_that_landed_unnoticed_is_not_sent_again(
    small: Scene, start: StartRelay, mend: Callable[[], None], operate: Operate
) -> None:
    """What a frozen predecessor had on its way arrives after the limit was raised."""
    poison, waiting = park_one(small, start)
    mend()
    for id_, seq, partition in small.session.execute(
        "SELECT id::text, numbers[1], partition FROM outbox_parked ORDER BY parked LIMIT 2"
    ).fetchall():
        late = Producer({"bootstrap.servers": small.bootstrap})
        late.produce(small.topic, b"late", b"k1", partition, headers={"id": id_, "outbox-seq": seq})
        assert late.flush(20) == 0
    operate("parked", "release", "--all", "--yes")
    start()
    small.wait(NOTHING_PARKED)
    small.wait_until_through()
    records = small.arrived()
    outcomes: dict[str, str] = dict(small.session.execute(OUTCOMES).fetchall())
    passed = {record.id for record in wire.effects(records)}
    assert {*passed} == {id_ for id_, _ in small.committed()}
    assert outcomes[waiting[1]] == "sent"
    for id_ in (poison, waiting[0]):
        expected = "landed" if sum(record.id == id_ for record in records) == 1 else "sent"
        assert outcomes[id_] == expected


def test_edited_it_goes_out_as_edited(
    small: Scene, start: StartRelay, operate: Operate, tmp_path: Path
) -> None:
    poison, _ = park_one(small, start)
    number = small.value(FIRST)
    mended = tmp_path / "mended.json"
    mended.write_bytes(b'{"n": 1, "cut": true}')
    edit = ("parked", "edit", number, "--payload", mended, "--headers", '{"why": "cut"}')
    assert "nothing was done" in operate(*edit).output
    operate(*edit, "--yes")
    operate("parked", "release", number, "--yes")
    start()
    small.wait(NOTHING_PARKED)
    (found,) = [record for record in small.arrived() if record.id == poison]
    assert found.value == b'{"n": 1, "cut": true}'
    assert ("why", b"cut") in found.headers
    assert small.complaints() == []
    assert small.value("SELECT edited_by IS NOT NULL FROM outbox_archive ORDER BY parked LIMIT 1")


def test_sent_to_another_topic_it_leaves_its_key_in_peace(
    small: Scene, start: StartRelay, operate: Operate, kafka: KafkaServer
) -> None:
    poison, waiting = park_one(small, start)
    other = kafka.create_topic(f"{small.topic}.large", 3)
    operate("parked", "edit", small.value(FIRST), "--topic", other, "--yes")
    operate("parked", "release", "--all", "--topic", small.topic, "--yes")
    start()
    small.wait(NOTHING_PARKED)
    assert [record.id for record in wire.read(small.bootstrap, other)] == [poison]
    records = small.arrived()
    assert poison not in {record.id for record in records}
    assert wire.complaints(records, [row for row in small.committed() if row[0] != poison]) == []
    assert {record.id for record in wire.effects(records)} >= {*waiting}
    kafka.delete_topic(other)


def test_discarded_with_a_reason_it_is_never_sent_and_what_waited_goes_out(
    small: Scene, start: StartRelay, operate: Operate
) -> None:
    poison, _ = park_one(small, start)
    start()
    operate("parked", "discard", small.value(FIRST), "--reason", "sent by hand", "--yes")
    small.wait(NOTHING_PARKED)
    records = small.arrived()
    assert poison not in {record.id for record in records}
    assert wire.complaints(records, [row for row in small.committed() if row[0] != poison]) == []
    kept = small.session.execute(
        "SELECT id::text, outcome, reason, payload IS NOT NULL FROM outbox_archive ORDER BY parked"
    ).fetchall()
    assert kept[0] == (poison, "discarded", "sent by hand", True)
    assert [outcome for _, outcome, _, _ in kept[1:]] == ["sent", "sent"]
    shown = operate("parked", "show", 1, code=1)
    assert "discarded" in shown.output
