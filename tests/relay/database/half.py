"""The relay's database half, driven by hand: every step its own call."""

import time
from contextlib import closing
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from relay.config import RelayConfig
from relay.database import SERVER, Database
from relay.lease import Lease
from relay.look import Looker
from relay.planner import Planner
from relay.progress import Progress, ShardRow
from relay.reader import DeltaReader
from relay.row import ID, Row
from relay.shard import Shard
from tests.relay.database.memory_broker import MemoryBroker

Session = psycopg.Connection[TupleRow]

WRITE = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, slot)
SELECT gen_random_uuid(), 'order', %(key)s, 'order.placed.v1', %(payload)s, %(slot)s
FROM generate_series(1, %(count)s)
RETURNING id::text
"""


def write(
    session: Session, count: int = 1, *, key: str | None = "k", payload: bytes | None = b"{}", slot: int = 0
) -> list[str]:
    """Insert events in the session's transaction; returns their ids in position order."""
    values = {"key": key, "payload": payload, "slot": slot, "count": count}
    return [id_ for (id_,) in session.execute(WRITE, values).fetchall()]


def wait_for(session: Session, condition: str, *, within: float = 10.0) -> None:
    """Until the query says true; the session is in autocommit."""
    end = time.monotonic() + within
    while session.execute(condition.encode()).fetchone() != (True,):
        assert time.monotonic() < end, f"never true within {within} s: {condition}"


def ids(rows: list[Row] | None) -> list[str]:
    assert rows is not None, "too much for a look"
    return [row[ID].decode() for row in rows]


class Half:
    """One owner's connections and actors. To the database, closing it is the relay's death."""

    def __init__(
        self,
        url: str,
        number: int = 0,
        *,
        limit: int = 1_000,
        rows: int = 2_000,
        bytes_: int = 4_194_304,
        buckets: tuple[int, int] | None = None,
    ) -> None:
        database = Database(url)
        self.connection = database.connect("test")
        try:
            self.reading = database.connect("test reader")
        except BaseException:
            self.connection.close()
            raise
        self.row = ShardRow(self.connection, number)
        self.looker = Looker(self.connection, limit=limit, buckets=buckets)
        (server,) = self.connection.execute(f"SELECT {SERVER}").fetchone() or ()
        self._server, self._limit = server, limit
        self.planner = Planner(self.connection, server=server, limit=limit, buckets=buckets)
        self.reader = DeltaReader(self.reading, rows=rows, bytes_=bytes_)

    def chunks(self, state: Progress) -> list[list[Row]]:
        with closing(self.reader.chunks(state)) as chunks:
            return list(chunks)

    def planned(self, state: Progress) -> list[str]:
        """Ids of the planned delta above `low`, as the reader finds them."""
        return [id_ for chunk in self.chunks(state) for id_ in ids(chunk)]

    def planner_of(self, state: Progress) -> Planner:
        """For the shard that `state` is of."""
        return Planner(self.connection, server=self._server, limit=self._limit, buckets=state.buckets)

    def close(self) -> None:
        self.connection.close()
        self.reading.close()


class AlwaysHeld(Lease):
    """A lease that nobody takes away: which of two owners is right is the row's business, not the lease's."""

    @property
    def held(self) -> bool:
        return True


def shard(url: str, broker: MemoryBroker, number: int = 0, /, **settings: Any) -> Shard:
    """A whole shard against the broker in memory."""
    config = RelayConfig(database_url=url, kafka_bootstrap_servers="memory:0", **settings)
    status: dict[str, Any] = {"state": "starting", "alarm": None, "published": 0}
    return Shard(config, AlwaysHeld(number), broker, stopping=lambda: False, status=status)


def drain(carrying: Shard, *, rounds: int = 200) -> None:
    """Run until nothing new is found."""
    for _ in range(rounds):
        did = carrying.run_once()
        if did.published == 0 and did.rest < 1.0:
            return
    raise AssertionError("the shard finds no end")
