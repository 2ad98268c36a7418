"""What stands around the payload on the wire: few headers, because they cost a third of the speed."""

from collections.abc import Mapping

from pydantic_core import from_json, to_json

from outbox import record
from relay.row import Row

Headers = list[tuple[str, str | bytes | None]]


def headers(row: Row, stream: bytes) -> Headers:
    """`id`, `type`, `outbox-seq`, the trace when there is one, and the caller's own."""
    position, _, _, _, _, id_, type_, own, traceparent = row
    found: Headers = [
        (record.ID, id_),
        (record.TYPE, type_),
        (record.SEQ, stream + b"%d" % position),
    ]
    if traceparent is not None:
        found.append((record.TRACEPARENT, traceparent))
    if own is not None:
        found += _own(from_json(own))
    return found


def _own(given: object) -> Headers:
    """Headers as the writer stored them; what is not a text travels as its JSON form."""
    if not isinstance(given, Mapping):
        return []
    return [
        (str(name), _value(value)) for name, value in given.items() if name not in record.RESERVED_HEADERS
    ]


def _value(value: object) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    return to_json(value)
