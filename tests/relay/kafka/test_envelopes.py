"""Whatever envelope its relay gives it, an event is understood, and applied once though it comes twice."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, emit
from outbox.consumer import Consumer, Record
from relay.envelope import EnvelopeName, envelope
from relay.row import Row
from tests.consumer import event_router
from tests.consumer.stage import eventually, running
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

MOMENT = 1_700_000_000_007


class Enveloped(Event, name="enveloped", version=2, topic="enveloped", aggregate="letter", key="to"):
    """What travels in each of them."""

    to: str
    text: str


def again(bootstrap: str, records: Sequence[wire.Arrived]) -> int:
    """What a relay does that slept: all once more, byte for byte. Returns where the partition ends then."""
    ends: list[int] = []
    producer = Producer({"bootstrap.servers": bootstrap})
    for record in records:
        producer.produce(
            record.topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=lambda _, message: ends.append((message.offset() or 0) + 1),
            headers=list(record.headers),
        )
    assert producer.flush(30) == 0
    return max(ends)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("outbox", "sequenced"),
        ("cloudevents", "sequenced"),
        ("debezium", "sequenced"),
        ("cloudevents", "transactional"),
    ],
)
def test_an_event_is_applied_once_in_every_envelope(
    scene: Scene, start: StartRelay, engine: Engine, name: str, mode: str
) -> None:
    if mode == "transactional":
        scene.transactional()
    with Session(engine) as session, session.begin():
        for n in range(3):
            emit(session, Enveloped(to="Ann", text=f"{n}"), topic=scene.topic, headers={"tenant": "north"})
    start(envelope=name)
    scene.wait_until_through()
    end = again(scene.bootstrap, scene.arrived())
    got: list[tuple[Event, Record]] = []
    consumer = Consumer(
        group=scene.topic, sessions=sessionmaker(engine), kafka={"bootstrap.servers": scene.bootstrap}
    )

    @consumer.on(Enveloped, topic=scene.topic)
    def keep(session: Session, event: Enveloped, record: Record) -> None:
        got.append((event, record))

    with running(consumer):
        eventually(lambda: scene.value("SELECT max(next_offset) FROM consumer_offset") == end)
    assert [event for event, _ in got] == [Enveloped(to="Ann", text=f"{n}") for n in range(3)]
    for (_, record), (id_, _) in zip(got, scene.committed(), strict=True):
        assert (record.event_id, record.type) == (UUID(id_), "enveloped.v2")
        assert record.headers["tenant"] == b"north"
        assert record.seq is not None


def test_the_debezium_envelope_is_what_a_real_event_router_sends_of_the_same_rows(
    scene: Scene, start: StartRelay
) -> None:
    """But for `outbox-seq`, which it has, and `__debezium.context.*`, which name a connector, it has not."""
    scene.session.execute(event_router.TABLE.encode())
    scene.session.execute(event_router.ROWS.encode())
    scene.session.execute(
        "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic) "
        "SELECT id, aggregatetype, aggregateid, type, payload, %s FROM outbox_event ORDER BY position",
        [scene.topic],
    )
    scene.session.execute("DELETE FROM outbox_event WHERE topic IS NULL")
    start(envelope="debezium")
    scene.wait_until_through()
    ours = [
        (record.key, record.value, [(n, v) for n, v in record.headers if n != "outbox-seq"])
        for record in scene.arrived()
    ]
    decoded = event_router.decoded
    real = [
        (
            decoded(record["key"]),
            decoded(record["value"]),
            [(n, decoded(v)) for n, v in record["headers"] if not n.startswith("__debezium.")],
        )
        for record in event_router.kept()["our table"]
    ]
    assert ours == real


def row(**given: Any) -> Row:
    """One row, but for what is `given`."""
    fields: dict[str, Any] = {
        "position": 9,
        "ms": MOMENT,
        "topic": b"t",
        "key": b"k",
        "payload": b"{}",
        "id": b"1",
        "type": b"x.v1",
        "headers": None,
        "traceparent": None,
    }
    return tuple({**fields, **given}.values())


def written(name: EnvelopeName, row: Row) -> dict[str, Any]:
    found = envelope(name, "/shop")(row, b"s/1/0:7.")
    assert len(found) == len(dict(found)), "a header twice"
    return dict(found)


@pytest.mark.parametrize("name", ["outbox", "cloudevents", "debezium"])
def test_every_envelope_has_the_place_and_the_trace_and_no_header_twice(name: EnvelopeName) -> None:
    own = (
        b'{"id": "i", "type": "t", "outbox-seq": "s", "traceparent": "p", "eventType": "e", "ce_id": "c", '
        b'"ce_source": "c", "ce_type": "c", "ce_time": "c", "ce_specversion": "c", "ce_subject": "4711", '
        b'"ce_traceparent": "c", "content-type": "c"}'
    )
    found = written(name, row(headers=own, traceparent=TRACE))
    assert (found["outbox-seq"], found["traceparent"]) == (b"s/1/0:7.9", TRACE)
    assert (found["content-type"], found["ce_subject"]) == (b"c", b"4711")


def test_the_cloudevents_envelope_is_the_kafka_bindings_binary_mode() -> None:
    assert written("cloudevents", row()) == {
        "ce_specversion": "1.0",
        "ce_id": b"1",
        "ce_source": b"/shop",
        "ce_type": b"x.v1",
        "ce_time": b"2023-11-14T22:13:20.007Z",
        "outbox-seq": b"s/1/0:7.9",
        "content-type": "application/json",
    }
    assert "content-type" not in written("cloudevents", row(payload=None))
    assert written("cloudevents", row(headers=b'{"content-type": "avro/binary"}'))["content-type"] == (
        b"avro/binary"
    )
    assert written("cloudevents", row(traceparent=TRACE))["ce_traceparent"] == TRACE
    assert "ce_time" not in written("cloudevents", row(ms=10**17)), "a year that RFC 3339 cannot write"
