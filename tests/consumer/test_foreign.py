"""What other producers send reaches the handler as the event it is: Debezium, CloudEvents, a console."""

import json
import subprocess
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

import pytest
from sqlalchemy.orm import Session

from outbox import Event
from outbox.consumer import Consumer, Record
from outbox.consumer.foreign import shapes as foreign
from outbox.consumer.record import Polled
from outbox.errors import ConfigurationError, UndecodableRecord
from outbox.testing.servers import jars
from tests.consumer import event_router
from tests.consumer.conftest import StageFactory
from tests.consumer.foreign import PlainProducer
from tests.consumer.stage import Stage, eventually, running


class RoutedOrder(Event, name="routed.order", version=1, topic="routed", aggregate="order", key="order"):
    """What the Event Router's records are."""

    order: str
    total: Decimal
    note: str


class ConsoleOrder(Event, name="console.order", version=1, topic="console", aggregate="order", key="order"):
    """What a person types into the console."""

    order: str


@dataclass
class Message:
    """A record as the functions under test see it."""

    content: bytes | None
    given: list[tuple[str, bytes | None]] = field(default_factory=list)

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self.given


def message(content: bytes | None, **headers: bytes) -> Polled:
    return cast(Polled, Message(content, [(name.replace("__", "-"), v) for name, v in headers.items()]))


CLOUD = b"application/cloudevents+json; charset=utf-8"


@pytest.mark.parametrize(
    ("content", "headers", "payload"),
    [
        (b'{"a": 1.10}', {}, b'{"a": 1.10}'),
        (b'"{\\"a\\": 1}"', {}, b'{"a": 1}'),
        (b'"eyJhIjogMX0="', {}, b'{"a": 1}'),
        (b'{"schema":{"type":"bytes","optional":true},"payload":"eyJhIjogMX0="}', {}, b'{"a": 1}'),
        (b'{"schema":{"type":"struct","fields":[]},"payload":{"a": 1e400}}', {}, b'{"a": 1e400}'),
        (b'{"schema":null,"payload":{"a":1}}', {}, b'{"a":1}'),
        (b'{"payload":"{\\"a\\":1}","eventType":"x"}', {}, b'{"a":1}'),
        (b'{"payload":{"a":1},"eventType":"x"}', {}, b'{"a":1}'),
        # Events of their own that look alike.
        (b'{"schema":"public","payload":3}', {}, b'{"schema":"public","payload":3}'),
        (
            b'{"schema":{"type":"struct"},"payload":{},"more":1}',
            {},
            b'{"schema":{"type":"struct"},"payload":{},"more":1}',
        ),
        (b'{"payload":1}', {}, b'{"payload":1}'),
        # What Connect's JSON converter makes of no payload.
        (b"null", {}, None),
        (b'{"schema":{"type":"bytes","optional":true},"payload":null}', {}, None),
        (b'{"payload":null,"eventType":"x"}', {}, None),
        (b'"null"', {}, b"null"),
        (b'"\xff', {}, b'"\xff'),
        (b"\x22\x03abc", {}, b"\x22\x03abc"),
        (b'{"schema":', {}, b'{"schema":'),
        (None, {}, None),
        # CloudEvents: binary mode is the payload alone, structured mode wraps it.
        (b'{"a":1}', {"ce_type": b"x"}, b'{"a":1}'),
        (b'{"type":"x","data":{"a":1.0}}', {"content__type": CLOUD}, b'{"a":1.0}'),
        (b'{"type":"x","data_base64":"eyJhIjogMX0="}', {"content__type": CLOUD}, b'{"a": 1}'),
        (b'{"datacontenttype":"text/xml","data":"<a/>"}', {"content__type": CLOUD}, b"<a/>"),
        (b'{"data":"text"}', {"content__type": CLOUD}, b'"text"'),
    ],
)
def test_the_payload_is_what_stands_inside(
    content: bytes | None, headers: dict[str, bytes], payload: bytes | None
) -> None:
    assert foreign.payload(message(content, **headers)) == payload


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"schema":{"type":"bytes"},"payload":"not base64!"}', {}),
        (b'{"data_base64":"?"}', {"content__type": CLOUD}),
        (b'{"type":"x"}', {"content__type": CLOUD}),
        (b"no json", {"content__type": CLOUD}),
    ],
)
def test_what_its_own_envelope_contradicts_is_undecodable(content: bytes, headers: dict[str, bytes]) -> None:
    with pytest.raises(UndecodableRecord):
        foreign.payload(message(content, **headers))


@pytest.mark.parametrize(
    ("content", "headers", "type_", "event_id"),
    [
        (b"{}", {"id": b"1", "type": b"t"}, b"t", b"1"),
        (b"{}", {"id": b"1", "eventType": b"t"}, b"t", b"1"),
        (b"{}", {"id": b'"1"', "eventType": b'{"schema":{"type":"string"},"payload":"t"}'}, b"t", b"1"),
        (b"{}", {"ce_id": b"1", "ce_source": b"/s", "ce_type": b"t"}, b"t", b"/s 1"),
        (b'{"id":"1","source":"/s","type":"t"}', {"content__type": CLOUD}, b"t", b"/s 1"),
        (b'{"payload":{},"eventType":"t"}', {"id": b"1"}, b"t", b"1"),
        (b'{"id":"1","type":"t"}', {}, None, None),
        (b"[" * 100_000, {"content__type": CLOUD}, None, None),
        (None, {}, None, None),
    ],
)
def test_type_and_id_are_found_where_their_producer_puts_them(
    content: bytes | None, headers: dict[str, bytes], type_: bytes | None, event_id: bytes | None
) -> None:
    one = message(content, **headers)
    assert (foreign.type_of(one), foreign.event_id(one)) == (type_, event_id)


def collecting(stage: Stage, event: type[Event], **options: Any) -> tuple[Consumer, dict[int, Any]]:
    """A consumer that remembers events and where they came from, by offset."""
    consumer = stage.consumer()
    got: dict[int, Any] = {}

    @consumer.on(event, topic=stage.topic, **options)
    def keep(session: Session, given: Any, record: Record) -> None:
        got[record.offset] = (given, record)

    return consumer, got


KEPT = event_router.kept()


def test_records_of_a_real_event_router_are_the_events_they_carry(build: StageFactory) -> None:
    """Every shape, in a partition each: under our name of the event, under theirs, and without a payload,
    once each though they come twice."""
    stage = build(partitions=len(KEPT))
    producer = PlainProducer(stage)
    for partition, records in enumerate(KEPT.values()):
        for record in records * 2:
            producer.put(
                event_router.decoded(record["value"]),
                headers=[(name, event_router.decoded(value)) for name, value in record["headers"]],
                key=(event_router.decoded(record["key"]) or b"").decode(),
                partition=partition,
            )
    producer.flush()
    consumer = stage.consumer()
    got: dict[str, list[Any]] = {shape: [] for shape in KEPT}

    def keep(session: Session, event: Event | None, record: Record) -> None:
        got[[*KEPT][record.partition]].append(event)

    options: dict[str, Any] = {"topic": stage.topic, "dedupe": "event_id", "tombstones": True}
    consumer.on(ConsoleOrder, wire_type="order.placed.v1", **options)(keep)
    consumer.on(RoutedOrder, wire_type="OrderPlaced", **options)(keep)
    with running(consumer):
        eventually(lambda: all(stage.offset(partition) == 6 for partition in range(len(KEPT))))
    # As Pydantic reads a JSON number of so many digits.
    routed = RoutedOrder(order="4711", total=Decimal(12345678901234568), note='für "Ann" – ✓')
    assert got == {shape: [ConsoleOrder(order="4711"), routed, None] for shape in KEPT}


@pytest.mark.parametrize("shape", KEPT)
def test_what_a_real_event_router_wrapped_keeps_its_digits(shape: str) -> None:
    """Where Debezium expands the JSON, it has made a double of the number itself."""
    digits = b"1.2345678901234568E16" if "expanded" in shape else b"12345678901234567.89"
    for record in KEPT[shape][:2]:
        assert digits in (foreign.payload(message(event_router.decoded(record["value"]))) or b"")


def test_a_json_null_of_connect_is_a_tombstone(build: StageFactory) -> None:
    """Whoever does not ask for tombstones does not get it, and it is no poison."""
    stage = build(partitions=1)
    producer = PlainProducer(stage)
    for value in ("null", '{"payload":null,"eventType":"x"}', '{"order": "null"}'):
        producer.put(value, headers=[("eventType", "x")])
    producer.flush()
    consumer, got = collecting(stage, ConsoleOrder, wire_type="x")
    with running(consumer):
        eventually(lambda: stage.offset() == 3)
    assert [event for event, _ in got.values()] == [ConsoleOrder(order="null")]
    assert stage.rows("SELECT state FROM consumer_parked") == []


def test_records_without_a_type_are_the_topics_only_event(build: StageFactory) -> None:
    stage = build(partitions=1)
    producer = PlainProducer(stage)
    producer.put('{"order": "1"}')
    producer.put('{"order": "2"}', headers=[("type", "console.order.v1")])
    producer.put('{"order": "3"}', headers=[("type", "something.else")])
    producer.put("no order")
    producer.flush()
    consumer, got = collecting(stage, ConsoleOrder, default=True)
    with running(consumer):
        eventually(lambda: stage.offset() == 4)
    assert [event.order for event, _ in got.values()] == ["1", "2"]
    assert stage.rows("SELECT record_offset, state FROM consumer_parked") == [(3, "failed")]


def test_what_the_java_console_producer_sends_is_understood(build: StageFactory) -> None:
    """No header, no key: as the topic's only event, and as bytes for a handler of the whole topic."""
    stage = build(partitions=1)
    command = [
        *(jars.java(), "-cp", f"{jars.resolve()[0].parent}/*", "org.apache.kafka.tools.ConsoleProducer"),
        *("--bootstrap-server", stage.bootstrap, "--topic", stage.topic),
    ]
    lines = '{"order": "4711"}\n{"order": "für Ann"}\n'
    subprocess.run(command, input=lines, text=True, check=True, timeout=120, capture_output=True)
    consumer, got = collecting(stage, ConsoleOrder, default=True)
    values: list[bytes] = []
    other = stage.consumer(group="bytes")

    @other.on(topic=stage.topic)
    def keep(session: Session, value: bytes) -> None:
        values.append(value)

    with running(consumer), running(other):
        eventually(lambda: stage.offset() == 2 and stage.offset(group="bytes") == 2)
    assert [event.order for event, _ in got.values()] == ["4711", "für Ann"]
    assert [(record.key, record.type, record.event_id) for _, record in got.values()] == [
        (None, None, None)
    ] * 2
    assert values == [line.encode() for line in lines.splitlines()]


def test_cloud_events_of_both_modes_reach_the_handler_once(build: StageFactory) -> None:
    stage = build(partitions=1)
    producer = PlainProducer(stage)
    binary = [
        ("ce_specversion", "1.0"),
        ("ce_type", "com.shop.order"),
        ("ce_id", "1"),
        ("ce_source", "/shop"),
    ]
    structured = {"specversion": "1.0", "type": "com.shop.order", "id": "2", "source": "/shop"}
    kind = "application/cloudevents+json; charset=UTF-8"
    for _ in range(2):
        producer.put('{"order": "binary"}', headers=[*binary, ("content-type", "application/json")])
        producer.put(
            json.dumps({**structured, "data": {"order": "structured"}}), headers=[("content-type", kind)]
        )
    producer.flush()
    consumer, got = collecting(stage, ConsoleOrder, wire_type="com.shop.order", dedupe="event_id")
    with running(consumer):
        eventually(lambda: stage.offset() == 4)
    assert [event.order for event, _ in got.values()] == ["binary", "structured"]


def test_a_parked_foreign_record_runs_as_the_event_it_is(build: StageFactory) -> None:
    stage = build(partitions=1)
    producer = PlainProducer(stage)
    value = '{"schema":{"type":"string","optional":false},"payload":"{\\"order\\": \\"1\\"}"}'
    producer.put(value, headers=[("id", "1"), ("eventType", "OrderPlaced")], key="k")
    producer.flush()
    with running(collecting(stage, RoutedOrder, wire_type="OrderPlaced")[0]):  # the wrong class: it is parked
        eventually(lambda: stage.rows("SELECT state FROM consumer_parked") == [("failed",)])
    stage.sql("UPDATE consumer_parked SET wish = 'release'")
    consumer, got = collecting(stage, ConsoleOrder, wire_type="OrderPlaced")
    with running(consumer):
        eventually(lambda: stage.rows("SELECT state FROM consumer_parked") == [])
    assert [event.order for event, _ in got.values()] == ["1"]


@pytest.mark.parametrize("options", [{"default": True}, {"wire_type": "x"}])
def test_a_name_or_default_belongs_to_one_event(stage: Stage, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="register it with that event alone"):
        stage.consumer().on(RoutedOrder, ConsoleOrder, topic=stage.topic, **options)(lambda s, e: None)
