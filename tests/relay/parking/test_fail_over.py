"""A release that a fail-over interrupts loses no row, whatever the failed server made of it afterwards."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import relay.tenure
from outbox import hooks
from relay import points
from relay.database import OutcomeUnknown
from relay.parking.release import Release
from relay.row import PAYLOAD
from relay.shard import Shard
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker

RELEASE = "UPDATE outbox_hold SET wanted_at = clock_timestamp(), wanted_by = 'operator'"
TO_TOPIC = "UPDATE outbox_parked SET topic = 'elsewhere'"
OUTCOMES = "SELECT id::text, outcome FROM outbox_archive ORDER BY position"

ANOTHER_TIMELINE = "UPDATE outbox_shard SET timeline = 99"
"""The shard's source began on a server of another timeline than this one's."""


def carry_until(writer: Session, carrying: Shard, condition: str) -> None:
    for _ in range(50):
        carrying.run_once()
        if writer.execute(condition.encode()).fetchone() == (True,):
            return carrying.finish()
    raise AssertionError(f"never true: {condition}")


@pytest.fixture
def parked(
    database: str, writer: Session, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Ids of an event that was refused and of one behind it; one of another key went through."""
    monkeypatch.setattr(relay.tenure, "JOBS_EVERY", 0.0)
    broker.partition_count = 1
    broker.refuses = lambda row: row[PAYLOAD] == b"poison"
    ids = write(writer, payload=b"poison") + write(writer)
    write(writer, key="other")
    carry_until(writer, shard(database, broker), "SELECT count(*) = 2 FROM outbox_parked")
    return ids


@pytest.fixture
def interrupted(database: str, writer: Session, broker: MemoryBroker) -> Callable[[str], None]:
    """A release that gets as far as a point, and then its server is gone."""

    def release_until(last: str) -> None:
        def strike(point: str, _: object) -> None:
            if point == last:
                raise OutcomeUnknown("the server is gone")

        writer.execute(RELEASE)
        unsubscribe = hooks.subscribe(strike)
        carrying = shard(database, broker)
        assert any(carrying.run_once().rest == 1.0 for _ in range(3)), "it is cut off"
        unsubscribe()

    return release_until


def went_on(broker: MemoryBroker, writer: Session) -> None:
    """The failed server settled what it could, left the refused rows, and sent a later delta."""
    last = broker.log[-1]
    found = writer.execute("SELECT delta FROM outbox_shard").fetchone()
    assert found is not None
    assert found[0] > last.seq.delta
    broker.log.append(replace(last, id="later", seq=replace(last.seq, delta=found[0] + 5, position=900)))


def promoted(database: str, writer: Session, broker: MemoryBroker) -> list[str]:
    """Ids that take effect once another server carries on."""
    broker.refuses = lambda _: False
    writer.execute(ANOTHER_TIMELINE)
    carry_until(writer, shard(database, broker), "SELECT NOT EXISTS (SELECT FROM outbox_hold)")
    return broker.ids()


def test_what_the_failed_server_left_unsent_is_sent_under_the_new_source(
    database: str,
    writer: Session,
    broker: MemoryBroker,
    parked: list[str],
    interrupted: Callable[[str], None],
) -> None:
    interrupted(points.RELEASE_PLANNED)
    went_on(broker, writer)
    assert promoted(database, writer, broker)[1:] == ["later", *parked]
    assert writer.execute(OUTCOMES).fetchall() == [(id_, "sent") for id_ in parked]


@pytest.mark.parametrize("change", [None, TO_TOPIC])
def test_what_the_failed_server_sent_is_found_and_not_sent_again(
    database: str,
    writer: Session,
    broker: MemoryBroker,
    parked: list[str],
    interrupted: Callable[[str], None],
    change: str | None,
) -> None:
    if change is not None:
        writer.execute(change.encode())
    broker.refuses = lambda _: False
    interrupted(points.RELEASE_SENT)
    assert promoted(database, writer, broker)[1:] == parked
    assert writer.execute(OUTCOMES).fetchall() == [(id_, "landed") for id_ in parked]


def test_to_go_on_with_the_planned_release_would_lose_what_consumers_have_passed(
    database: str,
    writer: Session,
    broker: MemoryBroker,
    parked: list[str],
    interrupted: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Release, "put_off", Release.carry)
    interrupted(points.RELEASE_PLANNED)
    went_on(broker, writer)
    assert not {*parked} & {*promoted(database, writer, broker)}
    assert writer.execute(OUTCOMES).fetchall() == [(id_, "sent") for id_ in parked], "and nobody would know"
