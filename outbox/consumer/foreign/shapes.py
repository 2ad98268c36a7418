"""Understand a record that no outbox's relay wrote: its type, its id and its payload, whoever produced it.

- Debezium's Event Router, whatever its converters: headers `id` and `type` or `eventType`; the payload as it
  is, as a JSON text in a JSON string, or inside Kafka Connect's `{"schema": …, "payload": …}`.
- CloudEvents 1.0: binary (headers `ce_type`, `ce_id`, `ce_source`) and structured (content type
  `application/cloudevents+json`).

A payload is cut out of what surrounds it, never parsed and written anew: its numbers keep their digits.
"""

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from outbox.consumer.record import Polled, headers_of
from outbox.errors import UndecodableRecord
from outbox.record import CE_SOURCE, CONTENT_TYPE, IDS, TYPES

NULL = b"null"

STRUCTURED = "application/cloudevents+json"

CONNECT_TYPES = frozenset(
    (
        "struct",
        "string",
        "bytes",
        "map",
        "array",
        "boolean",
        "int8",
        "int16",
        "int32",
        "int64",
        "float",
        "double",
    )
)

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


def type_of(message: Polled) -> bytes | None:
    """What kind of event it is, in its producer's words; None if it does not say."""
    headers = _headers(message)
    for name in TYPES:
        if found := headers.get(name):
            return _plain(found)
    if _is_structured(headers):
        return _member(_members(message.value()), "type")
    inside = _envelope(_unconnected(message.value())[0])
    return None if inside is None else inside[1]


def event_id(message: Polled) -> bytes | None:
    """What tells it from all other events of its producer, its repeats excepted; None if it has none.

    The id of a CloudEvent is unique within its source only, so both belong to it.
    """
    headers = _headers(message)
    plain, of_cloud = IDS
    if found := headers.get(plain):
        return _plain(found)
    if found := headers.get(of_cloud):
        return b" ".join(filter(None, (headers.get(CE_SOURCE), found)))
    if not _is_structured(headers):
        return None
    event = _members(message.value())
    found = _member(event, "id")
    return b" ".join(filter(None, (_member(event, "source"), found))) if found else None


def payload(message: Polled) -> bytes | None:
    """The event itself, without what its producer put round it; None for a tombstone, which Connect's JSON
    converter writes as a JSON null. Raises UndecodableRecord."""
    value = message.value()
    if value is None:
        return None
    if _is_structured(_headers(message)):
        return _data(_members(value))
    inner, schema = _unconnected(value)
    inside = _envelope(inner)
    if inside is not None:
        inner, schema = inside[0], None
    return None if inner == NULL else _text(inner, schema)


def is_null(message: Polled) -> bool:
    """Is it a tombstone? Raises UndecodableRecord."""
    value = message.value()
    return value is None or (NULL in value and payload(message) is None)


def _headers(message: Polled) -> dict[str, bytes]:
    """By name, of repeated ones the first."""
    found: dict[str, bytes] = {}
    for name, value in headers_of(message):
        if value is not None:
            found.setdefault(name, value)
    return found


def _is_structured(headers: Mapping[str, bytes]) -> bool:
    found = headers.get(CONTENT_TYPE, b"").decode("latin-1")
    return found.partition(";")[0].strip().lower() == STRUCTURED


def _plain(header: bytes) -> bytes:
    """A header as text; Connect's JsonConverter writes texts as JSON."""
    if header[:1] not in b'"{':
        return header
    inner, _ = _unconnected(header)
    text = _string(inner)
    return header if text is None else text.encode()


def _unconnected(value: bytes | None) -> tuple[bytes, Any]:
    """What stands inside `{"schema": …, "payload": …}`, and the schema; anything else as it is."""
    if value is None or not value.startswith(b'{"schema"'):
        return value or b"", None
    found = _members(value)
    if found.keys() != {"schema", "payload"}:
        return value, None
    schema = json.loads(found["schema"])
    if schema is not None and not (isinstance(schema, dict) and schema.get("type") in CONNECT_TYPES):
        return value, None
    return found["payload"], schema


def _envelope(value: bytes) -> tuple[bytes, bytes] | None:
    """Payload and type, where the Event Router puts the type beside the payload."""
    found = _members(value) if b'"payload"' in value else {}
    for name in ("eventType", "type"):
        if "payload" in found and (type_ := _member(found, name)) is not None:
            return found["payload"], type_
    return None


def _text(inner: bytes, schema: Any) -> bytes:
    """A payload that travels in a JSON string is the text of that string, or bytes in base64."""
    text = _string(inner)
    if text is None:
        return inner
    binary = isinstance(schema, dict) and schema.get("type") == "bytes"
    if binary or (schema is None and not _is_json(text)):
        try:
            return b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            if binary:
                raise UndecodableRecord("the payload is not base64, though its schema says bytes") from None
    return text.encode()


def _data(event: Mapping[str, bytes]) -> bytes:
    """The data of a CloudEvent in its JSON form."""
    if (encoded := _member(event, "data_base64")) is not None:
        try:
            return b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise UndecodableRecord(f"data_base64 of a CloudEvent is not base64: {error}") from error
    if "data" not in event:
        raise UndecodableRecord("a structured CloudEvent has no data")
    content = (_member(event, "datacontenttype") or b"application/json").lower()
    text = _string(event["data"])
    return event["data"] if text is None or b"json" in content else text.encode()


def _members(value: bytes | None) -> dict[str, bytes]:
    """The members of a JSON object, each value as it is written; empty for what is no JSON object."""
    if value is None or value[:1] != b"{":
        return {}
    found: dict[str, bytes] = {}
    try:
        text = value.decode()
        at = 1
        while True:
            at = _space(text, at)
            if text[at] == "}":
                return found
            name, at = _DECODER.raw_decode(text, at)
            at = _space(text, at)
            if text[at] != ":":
                return {}
            start = _space(text, at + 1)
            _, end = _DECODER.raw_decode(text, start)
            found[name] = text[start:end].encode()
            at = _space(text, end)
            if text[at] == ",":
                at += 1
    except (ValueError, IndexError, RecursionError):
        return {}


def _space(text: str, at: int) -> int:
    """Where the white space at `at` ends."""
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _member(found: Mapping[str, bytes], name: str) -> bytes | None:
    """The text of one member that is a JSON string."""
    text = _string(found[name]) if name in found else None
    return None if text is None else text.encode("utf-8", "replace")


def _string(value: bytes) -> str | None:
    """The text of a JSON string; None for anything else."""
    if value[:1] != b'"':
        return None
    try:
        text = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
