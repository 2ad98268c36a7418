"""One database on one server, and the ways in which it is copied to another."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg

from outbox.testing.servers.postgres import OwnPostgres
from tests.relay.database.half import Session, drain, shard, write
from tests.relay.database.memory_broker import MemoryBroker

ROWS = "SELECT id::text, xid::text, position, slot, payload FROM outbox_event ORDER BY position, id"
SHARDS = "SELECT * FROM outbox_shard ORDER BY shard"
IDENTITY = "SELECT * FROM outbox_identity"


@dataclass
class Here:
    """A database where it is now."""

    server: OwnPostgres
    url: str

    @property
    def name(self) -> str:
        return urlsplit(self.url).path[1:]

    @contextmanager
    def session(self, *, autocommit: bool = True) -> Iterator[Session]:
        with psycopg.connect(self.url, autocommit=autocommit) as session:
            yield session

    def write(self, count: int = 1, key: str = "k") -> list[str]:
        """One transaction's events."""
        with self.session() as session:
            return write(session, count, key=key)

    def write_in_a_savepoint(self, count: int = 1) -> list[str]:
        with self.session(autocommit=False) as session, session.transaction(), session.transaction():
            session.execute("SELECT pg_current_xact_id()")
            with session.transaction():
                return write(session, count)

    def publish(self, broker: MemoryBroker) -> None:
        """A relay's life from its start until nothing is left to send."""
        carrying = shard(self.url, broker)
        try:
            drain(carrying)
            carrying.finish()
        finally:
            carrying.let_go()

    def content(self) -> list[list[tuple[object, ...]]]:
        """Everything a rebase may change."""
        with self.session() as session:
            return [session.execute(query.encode()).fetchall() for query in (ROWS, SHARDS, IDENTITY)]

    def counter(self) -> int:
        with self.session() as session:
            row = session.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    def count_up_to(self, counter: int) -> None:
        """Use up transaction ids until the server is past `counter`."""
        with self.session() as session:
            session.execute("CREATE TEMPORARY TABLE used (n int)")
            missing = max(counter - self.counter(), 0) + 1
            session.execute(
                f"DO $$ BEGIN FOR n IN 1..{missing} LOOP BEGIN INSERT INTO used VALUES (n); "
                "EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$".encode()
            )


def dump_and_restore(here: Here, to: OwnPostgres, *options: str) -> Here:
    """pg_dump, then psql into a database of the same name elsewhere."""
    name = f"copy_{uuid4().hex[:12]}"
    url = to.database(name)
    dump = here.server.run("pg_dump", "-d", here.url, *options)
    path = to.data.parent / f"{name}.sql"
    path.write_text(dump)
    path.chmod(0o644)
    to.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", str(path))
    return Here(to, url)
