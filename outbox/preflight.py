"""Refuse before commit what PostgreSQL or Kafka would refuse later: poison never enters the outbox."""

import re
from collections.abc import Mapping

from outbox.errors import EventRejected
from outbox.record import PROGRESS_TOPICS, REPLAY, RESERVED_HEADERS

MAX_RECORD_BYTES = 1_000_000
"""Key, value and headers of one record. Kafka's default limit for a batch (message.max.bytes) is 1,048,588
bytes; the rest is room for its framing and for the headers the relay adds."""

RELAY_HEADERS_BYTES = 256
"""What `id`, `type`, `outbox-seq` and `traceparent` take beside the caller's own headers."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def topic_fault(topic: object) -> str | None:
    """Why Kafka or the relay would refuse `topic`; None if not (org.apache.kafka.common.internals.Topic)."""
    if not isinstance(topic, str):
        return f"a topic's name is a str, not {type(topic).__name__}"
    if topic in {".", ".."}:
        return f"a topic cannot be named {topic!r}"
    if not _TOPIC.fullmatch(topic):
        return f"topic {topic!r} is not 1 to 249 of the characters A-Z a-z 0-9 . _ -"
    if topic.startswith(PROGRESS_TOPICS):
        return f"topic {topic!r}: {PROGRESS_TOPICS}* holds the relays' own records; choose another name"
    return None


def text_fault(value: object) -> str | None:
    """Why PostgreSQL could not keep `value` as text."""
    if not isinstance(value, str):
        return f"is a {type(value).__name__}, not a str"
    if "\x00" in value:
        return "holds a NUL character, which PostgreSQL text cannot keep"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which UTF-8 cannot express"
    return None


def headers_fault(headers: object) -> str | None:
    """Why these headers cannot travel beside the event."""
    if not isinstance(headers, Mapping):
        return f"headers are a mapping of names to values, not a {type(headers).__name__}"
    for name, value in headers.items():
        if not isinstance(name, str) or not name:
            return f"header name {name!r} is not a non-empty str"
        if name in RESERVED_HEADERS or name == REPLAY:
            return f"header {name!r} is written by the relay; choose another name"
        if fault := text_fault(name):
            return f"header name {name!r} {fault}"
        if fault := text_fault(value):
            return f"header {name!r} {fault}"
    return None


def is_traceparent(value: object) -> bool:
    """W3C Trace Context, version 00 or later. What is none is dropped: tracing never fails a transaction."""
    return isinstance(value, str) and _TRACEPARENT.fullmatch(value) is not None


def record_size(key: str | None, payload: bytes | None, headers: Mapping[str, str] | None) -> int:
    """Bytes of key, value and headers as Kafka will see them, the relay's own headers included."""
    size = RELAY_HEADERS_BYTES + (len(payload) if payload else 0)
    if key is not None:
        size += len(key.encode())
    if headers:
        size += sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    return size


def check(
    what: str,
    *,
    topic: str | None,
    key: str | None,
    payload: bytes | None,
    headers: Mapping[str, str] | None,
    max_record_bytes: int,
) -> None:
    """Pass only what both will take. Raises EventRejected saying which part of `what` is at fault."""
    fault = topic_fault(topic) if topic is not None else None
    if fault is None and key is not None and (fault := text_fault(key)):
        fault = f"the key {fault}"
    if fault is None and headers:
        fault = headers_fault(headers)
    if fault is None:
        size = record_size(key, payload, headers)
        if size <= max_record_bytes:
            return
        fault = (
            f"the record has {size:,} bytes (key, payload, headers) and the limit is {max_record_bytes:,}. "
            "Keep large data elsewhere and send a reference, or raise the topic's max.message.bytes and the "
            "Outbox's max_record_bytes together"
        )
    raise EventRejected(f"{what} was not recorded: {fault}")
