"""What a handler may know about the record that carried its event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from outbox.record import IDS, SEQ, TYPES, Seq

if TYPE_CHECKING:
    Polled = Message[bytes, bytes]
else:
    Polled = Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One Kafka record as it was read.

    key: the aggregate's id, None if the producer gave none. value: None is a tombstone.
    headers: by name; of repeated headers the first. timestamp: when the event occurred (UTC), None if
    unknown. event_id, type, seq: the headers of the same meaning, whatever the envelope calls them; None on
    records that have none.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]
    timestamp: datetime | None
    event_id: UUID | None
    type: str | None
    seq: Seq | None


def headers_of(message: Polled) -> Sequence[tuple[str, bytes | None]]:
    """All headers, in order."""
    headers: Any = message.headers()
    return headers or ()


def enveloped_type(message: Polled) -> bytes | None:
    """The type of a record that a relay wrote in another envelope than the outbox's own."""
    headers = dict(reversed(headers_of(message)))
    return next((found for name in TYPES if (found := headers.get(name))), None)


def record_of(message: Polled) -> Record:
    """`message` as a value. Raises UndecodableRecord for a malformed sequence header."""
    headers: dict[str, bytes | None] = {}
    for name, value in headers_of(message):
        headers.setdefault(name, value)
    kind, milliseconds = message.timestamp()
    type_ = next((headers[name] for name in TYPES if name in headers), None)
    id_ = next((headers[name] for name in IDS if name in headers), None)
    seq = headers.get(SEQ)
    return Record(
        topic=message.topic() or "",
        partition=_known(message.partition()),
        offset=_known(message.offset()),
        key=message.key(),
        value=message.value(),
        headers=headers,
        timestamp=None if kind == TIMESTAMP_NOT_AVAILABLE else _datetime(milliseconds),
        event_id=_uuid(id_),
        type=None if type_ is None else type_.decode("utf-8", "replace"),
        seq=None if seq is None else Seq.parse(seq),
    )


def _known(number: int | None) -> int:
    assert number is not None, "only a consumed record has a place"
    return number


def _datetime(milliseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _uuid(value: bytes | None) -> UUID | None:
    try:
        return None if value is None else UUID(value.decode("ascii"))
    except ValueError:
        return None
