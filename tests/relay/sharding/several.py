"""Several shards of one database, before any relay runs or while none of them is at work."""

import psycopg
from psycopg.rows import TupleRow

from relay.database import plain_url

SPLIT = """
WITH old AS (DELETE FROM outbox_shard RETURNING *)
INSERT INTO outbox_shard (shard, source, generation, lo, hi, done, done_floor, done_xid, timeline)
SELECT n, source, generation, n * 256 / {shards}, (n + 1) * 256 / {shards} - 1, done, done_floor, done_xid,
       timeline
FROM old, generate_series(0, {shards} - 1) n
"""

LEASES = "INSERT INTO outbox_lease (shard) SELECT n FROM generate_series(1, {shards} - 1) n"


def split(url: str, shards: int) -> None:
    """As if the database had been made with so many shards."""
    with psycopg.connect(plain_url(url), autocommit=True) as session, session.transaction():
        session.execute(SPLIT.format(shards=shards).encode())
        session.execute(LEASES.format(shards=shards).encode())


KEY_OF = """
SELECT 'k' || n FROM generate_series(1, 1000) n, outbox_shard s
WHERE s.shard = %s AND hashtextextended('k' || n, 0) & 255 BETWEEN s.lo AND s.hi LIMIT 1
"""


def key_of(session: psycopg.Connection[TupleRow], shard: int) -> str:
    """A key of this shard's."""
    row = session.execute(KEY_OF, [shard]).fetchone()
    assert row is not None
    return str(row[0])
