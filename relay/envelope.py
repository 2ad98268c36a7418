"""What stands around the payload on the wire: few headers, because they cost a third of the speed.

Each envelope has `outbox-seq`, without which no repeat could be told from news.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Literal

from pydantic_core import from_json, to_json

from outbox import record
from relay.row import Row

EnvelopeName = Literal["outbox", "cloudevents", "debezium"]

Headers = list[tuple[str, str | bytes | None]]

Envelope = Callable[[Row, bytes], Headers]
"""The headers of one row; the bytes are the constant part of `outbox-seq`."""

SPECVERSION = ("ce_specversion", "1.0")

OF_CLOUD = frozenset(
    {record.SEQ, record.TRACEPARENT, SPECVERSION[0], "ce_time", "ce_traceparent"}
    | {record.CE_ID, record.CE_SOURCE, record.CE_TYPE}
)
OF_ROUTER = frozenset({record.ID, record.EVENT_TYPE, record.SEQ, record.TRACEPARENT})
"""Headers that the envelope itself writes, so that a writer's own of that name is dropped."""


def envelope(name: EnvelopeName, source: str) -> Envelope:
    """The one of that name. source: of the CloudEvents."""
    if name == "cloudevents":
        return partial(_cloud_event, source.encode())
    return _routed if name == "debezium" else headers


def headers(
    row: Row, stream: bytes, type_as: str = record.TYPE, taken: frozenset[str] = record.RESERVED_HEADERS
) -> Headers:
    """`id`, the type, `outbox-seq`, the trace when there is one, and the caller's own but those `taken`."""
    position, _, _, _, _, id_, type_, own, traceparent = row
    found: Headers = [
        (record.ID, id_),
        (type_as, type_),
        (record.SEQ, stream + b"%d" % position),
    ]
    if traceparent is not None:
        found.append((record.TRACEPARENT, traceparent))
    if own is not None:
        found += _own(from_json(own), taken)
    return found


_routed = partial(headers, type_as=record.EVENT_TYPE, taken=OF_ROUTER)
"""As Debezium's Event Router with `type:header:eventType`, as its documentation sets it up."""


def _cloud_event(source: bytes, row: Row, stream: bytes) -> Headers:
    """CloudEvents 1.0, Kafka binding, binary mode; the trace twice: the record's and, as the Distributed
    Tracing extension, the event's.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
    """
    position, ms, _, _, payload, id_, type_, own, traceparent = row
    found: Headers = [
        SPECVERSION,
        (record.CE_ID, id_),
        (record.CE_SOURCE, source),
        (record.CE_TYPE, type_),
        (record.SEQ, stream + b"%d" % position),
    ]
    if (moment := _rfc3339(ms)) is not None:
        found.append(("ce_time", moment))
    if traceparent is not None:
        found += [(record.TRACEPARENT, traceparent), ("ce_traceparent", traceparent)]
    given: Headers = []
    if own is not None:
        given = _own(from_json(own), OF_CLOUD)
    if payload is not None and not any(name == record.CONTENT_TYPE for name, _ in given):
        found.append((record.CONTENT_TYPE, record.JSON))
    found += given
    return found


def _rfc3339(ms: int) -> bytes | None:
    """None for a year that RFC 3339 cannot write; the attribute is optional."""
    second = _second(ms // 1000)
    return None if second is None else b"%b.%03dZ" % (second, ms % 1000)


@lru_cache(maxsize=64)
def _second(since_1970: int) -> bytes | None:
    """Events of one second share its text, which takes 5 µs to write."""
    try:
        return datetime.fromtimestamp(since_1970, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    except (ValueError, OverflowError, OSError):
        return None


def _own(given: object, reserved: frozenset[str]) -> Headers:
    """Headers as the writer stored them; what is not a text travels as its JSON form."""
    if not isinstance(given, Mapping):
        return []
    return [(str(name), _value(value)) for name, value in given.items() if name not in reserved]


def _value(value: object) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    return to_json(value)
