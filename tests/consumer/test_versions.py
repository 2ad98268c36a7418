"""Producers and consumers are deployed one after the other: no version in between is lost or misread."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Outbox, catalog
from outbox.consumer import Consumer, Record
from outbox.consumer.parking import wishes
from outbox.consumer.parking.wishes import Place
from relay.cli import main
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running
from tests.relay.process import RelayProcess


class Paid(Event, name="versions.paid", version=2, topic="unused", aggregate="payment", key="id"):
    id: str
    cents: int
    currency: str


@Paid.upcast(from_version=1)
def currency_was_euro(fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": fields["id"], "cents": fields["cents"], "currency": "EUR"}


@pytest.fixture
def stage(build: StageFactory) -> Stage:
    return build(partitions=1)


@pytest.fixture
def newer() -> Iterator[type[Event]]:
    """What a later deployment knows."""

    class PaidByWhom(Event, name="versions.paid", version=3, topic="unused", aggregate="payment", key="id"):
        id: str
        payer: str

    yield PaidByWhom
    del catalog._classes["versions.paid.v3"]


def storing(stage: Stage, event: type[Event] = Paid, **settings: Any) -> Consumer:
    consumer = stage.consumer(**settings)

    @consumer.on(event, topic=stage.topic)
    def store(session: Session, event: Event, record: Record) -> None:
        stage.store(session, record)
        assert type(event).__name__ in ("Paid", "PaidByWhom")

    return consumer


def put(stage: Stage, n: int, version: int, fields: str) -> None:
    stage.put(f'{{"id":"{n}",{fields}}}', key=str(n), type_=f"versions.paid.v{version}", seq=f"s/1/0:1.{n}")


def test_old_and_new_versions_reach_one_handler_as_the_new_event_in_order(stage: Stage) -> None:
    consumer = stage.consumer(batch_size=5)
    events: list[Paid] = []

    @consumer.on(Paid, topic=stage.topic)
    def store(session: Session, event: Paid, record: Record) -> None:
        stage.store(session, record)
        events.append(event)

    for n in range(20):
        put(stage, n, 1 + n % 2, '"cents":5' if n % 2 == 0 else '"cents":6,"currency":"SEK"')
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 20)
    assert events == [
        Paid(id=str(n), cents=5, currency="EUR") if n % 2 == 0 else Paid(id=str(n), cents=6, currency="SEK")
        for n in range(20)
    ]


def test_a_bulk_handler_gets_old_versions_as_the_new_event_too(stage: Stage) -> None:
    consumer = stage.consumer()
    events: list[Paid] = []

    @consumer.on(Paid, topic=stage.topic, batch=True)
    def store(_session: Session, several: list[Paid]) -> None:
        events.extend(several)

    for n in range(6):
        put(stage, n, 1 if n < 3 else 2, '"cents":5,"currency":"EUR"')
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 6)
    assert events == [Paid(id=str(n), cents=5, currency="EUR") for n in range(6)]


def test_a_payload_that_no_upcast_can_read_is_parked_and_the_others_go_on(
    stage: Stage, seen: Witness
) -> None:
    put(stage, 1, 1, '"cents":5')
    put(stage, 2, 1, '"euros":5')
    put(stage, 3, 2, '"cents":6,"currency":"SEK"')
    stage.flush()
    with running(storing(stage)):
        eventually(lambda: stage.offset() == 3)
    assert len(stage.effects()) == 2
    ((error,),) = stage.rows("SELECT error FROM consumer_parked")
    assert "the upcast of versions.paid.v1 failed with KeyError: 'cents'" in error


def test_a_newer_version_than_known_is_skipped_with_a_clear_word(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    put(stage, 1, 3, '"payer":"ann"')
    put(stage, 2, 2, '"cents":6,"currency":"SEK"')
    stage.flush()
    with caplog.at_level(logging.WARNING), running(storing(stage)):
        eventually(lambda: stage.offset() == 2)
    assert len(stage.effects()) == 1
    assert "type versions.paid.v3" in caplog.text
    assert "the newest version it knows is 2; deploy the consumers of a new version before" in caplog.text


def test_a_newer_version_than_known_stops_the_partition_by_choice_and_nothing_is_skipped(
    stage: Stage, seen: Witness, newer: type[Event]
) -> None:
    put(stage, 1, 3, '"payer":"ann"')
    put(stage, 2, 3, '"payer":"bob"')
    stage.flush()
    with running(storing(stage, unknown="stop")):
        assert "the newest version it knows is 2" in seen.wait("consumer.stopped")["reason"]
    assert stage.offset() == 0
    with running(storing(stage, newer, unknown="stop")):
        eventually(lambda: stage.offset() == 2)
    assert len(stage.effects()) == 2


def test_a_newer_version_than_known_is_parked_by_choice_and_applied_once_its_handler_is_deployed(
    stage: Stage, newer: type[Event]
) -> None:
    put(stage, 1, 3, '"payer":"ann"')
    put(stage, 2, 2, '"cents":6,"currency":"SEK"')
    stage.flush()
    with running(storing(stage, unknown="park")):
        eventually(lambda: stage.offset() == 2)
    assert len(stage.effects()) == 1
    with stage.engine.begin() as connection:
        place = Place(group=stage.group, topic=stage.topic, partition=0, offset=0)
        wishes.release(connection, place, who="a test")
    with running(storing(stage, newer, unknown="park")):
        eventually(lambda: len(stage.effects()) == 2)


class Refunded(Event, name="versions.refunded", version=1, topic="unused", aggregate="payment", key="id"):
    id: str


def test_a_new_handler_for_an_old_type_is_back_filled_by_a_replay_for_its_own_group(
    stage: Stage, tmp_path: Path
) -> None:
    outbox = Outbox(sessionmaker(stage.engine))
    with outbox.sessions.begin() as session:
        for n in range(12):
            event = Refunded(id=str(n)) if n % 3 == 0 else Paid(id=str(n), cents=1, currency="EUR")
            outbox.emit(session, event, topic=stage.topic)
    settings = {
        "OUTBOX_DATABASE_URL": stage.url,
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": stage.bootstrap,
        "OUTBOX_LEASE": "0.5",
        "OUTBOX_COMPACTED_TOPICS": "allow",
    }
    refunds = stage.consumer(group=f"{stage.group}.refunds", start="latest")

    @refunds.on(Refunded, topic=stage.topic)
    def book(session: Session, _event: Refunded, record: Record) -> None:
        stage.store(session, record, refunds.group)

    with RelayProcess(settings, tmp_path / "relay.log"), running(storing(stage)):
        eventually(lambda: len(stage.effects()) == 8)
        with running(refunds):
            eventually(lambda: stage.offset(group=refunds.group) >= 12)
            done = CliRunner().invoke(
                main,
                ["replay", "--for", refunds.group, "--topic", stage.topic, "--yes", "--wait"],
                env={"OUTBOX_DATABASE_URL": stage.url},
            )
            assert done.exit_code == 0, done.output
            eventually(lambda: len(stage.effects(group=refunds.group)) >= 4)
            eventually(lambda: stage.offset() == stage.offset(group=refunds.group) == 24)
    assert stage.effects(group=refunds.group) == [f'{{"id":"{n}"}}' for n in range(0, 12, 3)]
    assert len(stage.effects()) == 8
