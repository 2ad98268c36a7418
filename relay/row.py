"""One outbox row on its way to the broker: a tuple of bytes, fetched in the form in which it is sent."""

from typing import Final

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.string import ByteaBinaryLoader

from relay.database import Connection

Row = tuple[int, int, bytes, bytes | None, bytes | None, bytes, bytes, bytes | None, bytes | None]
"""position, occurred_at (ms), topic, key, payload, id, type, headers (JSON text), traceparent."""

POSITION: Final = 0
MS: Final = 1
TOPIC: Final = 2
KEY: Final = 3
PAYLOAD: Final = 4
ID: Final = 5
TYPE: Final = 6
HEADERS: Final = 7

COLUMNS = """position,
    CASE WHEN isfinite(occurred_at)
         THEN greatest((date_part('epoch', occurred_at) * 1000)::bigint, 1) ELSE 1 END AS ms,
    coalesce(topic, 'outbox.event.' || aggregatetype) AS topic, aggregateid AS key, payload,
    id::text AS id, type, headers::text AS headers, traceparent"""

# Kafka knows no time before 1970 and librdkafka takes 0 for "now", which would differ in a repeat.

NAMES = "position, ms, topic, key, payload, id, type, headers, traceparent"


def cursor(connection: Connection) -> Cursor[TupleRow]:
    """A cursor whose text columns arrive as bytes: nothing is decoded only to be encoded again."""
    opened = connection.cursor(binary=True)
    opened.adapters.register_loader("text", ByteaBinaryLoader)
    return opened


def describe(row: Row) -> str:
    """How an operator finds this row again."""
    key = row[KEY]
    return (
        f"event {row[ID].decode()} (type {row[TYPE].decode()}, topic {row[TOPIC].decode()}, "
        f"key {key.decode() if key is not None else None}, position {row[POSITION]})"
    )
