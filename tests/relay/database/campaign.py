"""Writers, two relays and a saboteur on one crashing server, and the verdict from the tables afterwards."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from outbox import hooks
from outbox.testing.servers import PostgresServer
from relay.shard import Shard
from tests.relay.database.half import Session, drain, shard
from tests.relay.database.memory_broker import MemoryBroker

KEYS = 12
TABLE = "CREATE TABLE ledger (key text PRIMARY KEY, n bigint NOT NULL DEFAULT 0)"
FILL = "INSERT INTO ledger (key) SELECT 'key-' || k FROM generate_series(1, %(keys)s) k"
COUNT = "UPDATE ledger SET n = n + 1 WHERE key = %(key)s RETURNING n"
EMIT = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, slot)
VALUES (gen_random_uuid(), 'ledger', %(key)s, 'counted.v1', %(n)s, %(slot)s)
"""
"""The number, counted under the row's lock, tells in which order the transactions took effect."""

SABOTAGE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (application_name ~ '^outbox-relay') = %(relay)s
ORDER BY random() LIMIT 1
"""


class Killed(BaseException):
    """A relay dies at the step it has just reached."""


@dataclass
class Campaign:
    server: PostgresServer
    url: str
    seed: int
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    relays: int = 2
    death: float = 1 / 40
    kills: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)

    def run(self, *, seconds: float, crashes: int, kills: int = 0) -> None:
        """For so many seconds; on a busy machine longer, until so many relays were killed."""
        with psycopg.connect(self.url, autocommit=True) as session:
            session.execute(TABLE)
            session.execute(FILL, {"keys": KEYS})
        work: list[Callable[[random.Random], None]] = [
            *[self._write] * 4,
            *[self._relay] * self.relays,
            self._sabotage,
        ]
        threads = [
            threading.Thread(target=self._guarded, args=(job, random.Random(self.seed * 100 + n)))
            for n, job in enumerate(work)
        ]
        with self._deaths(random.Random(self.seed)):
            for thread in threads:
                thread.start()
            for _ in range(crashes):
                self.stopping.wait(seconds / (crashes + 1))
                self.server.kill()
                self.server.start()
            self.stopping.wait(seconds / (crashes + 1))
            patience = time.monotonic() + 60
            while self.kills < kills and time.monotonic() < patience and not self.stopping.wait(0.1):
                pass
            self.stopping.set()
            for thread in threads:
                thread.join(60)
        assert not self.failures, self.failures
        self._settle()

    def _guarded(self, job: Callable[[random.Random], None], choose: random.Random) -> None:
        try:
            job(choose)
        except BaseException as failure:
            self.failures.append(failure)
            self.stopping.set()
            raise

    @contextmanager
    def _deaths(self, choose: random.Random) -> Iterator[None]:
        """A relay dies at any of its steps, one in forty unless told otherwise."""

        def observe(point: str, _facts: dict[str, Any]) -> None:
            if point.startswith("relay.") and choose.random() < self.death:
                self.kills += 1
                raise Killed

        forget = hooks.subscribe(observe)
        try:
            yield
        finally:
            forget()

    # -- the ones who write

    def _write(self, choose: random.Random) -> None:
        name = f"w{choose.randrange(10**9)}"
        while not self.stopping.is_set():
            with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as session:
                session.execute("SET lock_timeout = '500ms'")
                with suppress(psycopg.errors.UndefinedObject):
                    session.execute(f"COMMIT PREPARED '{name}'".encode())
                while not self.stopping.is_set():
                    with suppress(psycopg.errors.LockNotAvailable):
                        self._transaction(session, choose, name)
                    if session.info.transaction_status:
                        session.execute("ROLLBACK")

    def _transaction(self, session: Session, choose: random.Random, name: str) -> None:
        session.execute(f"SET synchronous_commit = {choose.choice(['on', 'off'])}".encode())
        session.execute("BEGIN")
        for key in sorted(choose.sample(range(1, KEYS + 1), choose.choice([1, 1, 2, 3]))):
            self._count(session, choose, f"key-{key}")
            if choose.random() < 0.2:
                session.execute("SAVEPOINT part")
                self._count(session, choose, f"key-{key}")
                session.execute(choose.choice([b"ROLLBACK TO part", b"RELEASE part"]))
        if choose.random() < 0.03:
            self.stopping.wait(0.3)
        end = choose.random()
        if end < 0.15:
            session.execute("ROLLBACK")
        elif end < 0.25:
            session.execute(f"PREPARE TRANSACTION '{name}'".encode())
            session.execute(f"COMMIT PREPARED '{name}'".encode())
        else:
            session.execute("COMMIT")

    def _count(self, session: Session, choose: random.Random, key: str) -> None:
        [(n,)] = session.execute(COUNT, {"key": key})
        for _ in range(choose.choice([1, 1, 1, 5])):
            session.execute(EMIT, {"key": key, "n": str(n).encode(), "slot": choose.randrange(8)})

    # -- the ones who publish, and the one who disturbs

    def _relay(self, choose: random.Random) -> None:
        while not self.stopping.is_set():
            carrying = self._shard(choose)
            try:
                while not self.stopping.is_set():
                    did = carrying.run_once()
                    self.stopping.wait(min(did.rest, 0.05))
            except Killed:
                pass
            finally:
                carrying.let_go()

    def _shard(self, choose: random.Random) -> Shard:
        rows = choose.choice([3, 20, 1_000])
        return shard(
            self.url, self.broker, look_rows=rows, chunk_rows=rows, chunk_bytes=choose.choice([20, 10**6])
        )

    def _sabotage(self, choose: random.Random) -> None:
        while not self.stopping.wait(0.4):
            with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as session:
                session.execute(SABOTAGE, {"relay": choose.random() < 0.7})

    def _settle(self) -> None:
        """Everybody has stopped: end what hangs, publish the rest."""
        with psycopg.connect(self.url, autocommit=True) as session:
            for (name,) in session.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                session.execute(f"COMMIT PREPARED '{name}'".encode())
        last = shard(self.url, self.broker)
        drain(last, rounds=2_000)
        last.finish()

    def verdict(self) -> dict[str, int]:
        """By the tables on one side, by a reader with marks on the other."""
        with closing(psycopg.connect(self.url)) as session:
            committed = {
                id_: (key, int(n))
                for id_, key, n in session.execute(
                    "SELECT id::text, aggregateid, convert_from(payload, 'UTF8') FROM outbox_event"
                )
            }
        applied = self.broker.ids()
        latest: dict[str, int] = {}
        inversions = 0
        for id_ in applied:
            key, n = committed.get(id_, ("", 0))
            inversions += n < latest.get(key, 0)
            latest[key] = max(n, latest.get(key, 0))
        return {
            "lost": len(committed.keys() - set(applied)),
            "ghosts": len(set(applied) - committed.keys()),
            "doubles": len(applied) - len(set(applied)),
            "inversions": inversions,
            "committed": len(committed),
            "repeats": len(self.broker.log) - len(applied),
        }
