"""A standby is waited out, a promoted one is carried on under a new source, and a commit whose replication
was cancelled is not believed."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from outbox.storage import ddl
from outbox.testing.servers import PostgresServer, start_postgres
from outbox.testing.servers.postgres import OwnPostgres
from relay import guards, look
from relay.database import Connection, Database, OutcomeUnknown
from relay.look import Looker
from relay.snapshot import Snapshot
from tests.conftest import create_engine
from tests.relay.database.half import Half, Session, drain, shard, wait_for, write
from tests.relay.database.memory_broker import MemoryBroker

CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@dataclass
class Pair:
    """One server that can go back to being a standby, which saves the second."""

    server: OwnPostgres
    url: str

    def session(self) -> Session:
        return psycopg.connect(self.url, autocommit=True)

    def become_standby(self) -> None:
        self.server.stop()
        signal = Path(self.server.log_file).parent / "data" / "standby.signal"
        signal.touch()
        signal.chmod(0o666)
        self.server.start()

    def promote(self) -> None:
        with psycopg.connect(self.server.url, autocommit=True) as session:
            session.execute("SELECT pg_promote()")
            wait_for(session, "SELECT NOT pg_is_in_recovery()")


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with start_postgres({"max_connections": 30}, own=True) as server:
        assert isinstance(server, OwnPostgres)
        yield server


@pytest.fixture
def pair(server: OwnPostgres) -> Pair:
    name = f"pair_{uuid4().hex[:12]}"
    url = server.database(name)
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    return Pair(server, url)


def test_a_relay_waits_while_its_server_is_a_standby_and_goes_on_when_promoted(pair: Pair) -> None:
    broker = MemoryBroker()
    with pair.session() as session:
        written = write(session, 3)
    pair.become_standby()
    with pytest.raises(OutcomeUnknown, match="waiting for the primary"):
        Database(pair.url).connect("test")
    carrying = shard(pair.url, broker)
    did = carrying.run_once()
    assert (did.published, broker.log) == (0, [])
    pair.promote()
    drain(carrying)
    carrying.finish()
    assert broker.ids() == written


def test_a_look_on_a_standby_tells_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a pooler the same connection may lead to another server from one statement to the next."""
    pair.become_standby()
    with Connection.connect(pair.url, autocommit=True) as connection:
        looker = Looker(connection, limit=10)
        with pytest.raises(OutcomeUnknown, match="on a standby"):
            looker.look(Snapshot("1:1:"))
        monkeypatch.setattr(look, "LOOK", look.LOOK.replace(" AND NOT pg_is_in_recovery()", ""))
        assert looker.look(Snapshot("1:1:")).snapshot.running == frozenset(), "no transaction seems to run"
    pair.promote()


def test_of_several_hosts_the_primary_is_taken(pair: Pair, postgres: PostgresServer) -> None:
    standby, primary = urlsplit(pair.server.url), urlsplit(postgres.url)
    pair.become_standby()
    both = (
        f"postgresql://postgres@{standby.hostname}:{standby.port},{primary.hostname}:{primary.port}/postgres"
    )
    with Database(both).connect("test") as connection:
        assert connection.info.port == primary.port
    pair.promote()


def test_after_a_fail_over_the_plan_is_finished_under_its_number_and_then_a_new_source_begins(
    pair: Pair,
) -> None:
    broker = MemoryBroker()
    with pair.session() as session:
        planned_ids = write(session, 3)
    with closing(Half(pair.url)) as half:
        guards.examine(half.connection, "memory")
        planned = half.row.plan(half.row.claim(), half.looker.look(Snapshot("1:1:")))
    pair.become_standby()
    pair.promote()
    with pair.session() as session:
        new_ids = write(session, 2)
    carrying = shard(pair.url, broker)
    drain(carrying)
    assert broker.ids() == planned_ids + new_ids
    sources = [found.seq.source for found in broker.log]
    assert sources[:3] == [planned.source] * 3
    assert [found.seq.delta for found in broker.log[:3]] == [planned.delta] * 3
    assert planned.source not in sources[3:]
    assert len(set(sources[3:])) == 1
    carrying.finish()
    with pair.session() as session:
        again = write(session)
    successor = shard(pair.url, broker)
    drain(successor)
    successor.finish()
    assert (broker.log[-1].id, broker.log[-1].seq.source) == (again[0], sources[-1]), (
        "one new source is enough"
    )


def cancelled_wait(pair: Pair, broker: MemoryBroker) -> tuple[list[str], list[str]]:
    """A plan whose wait for the standby is cancelled: what was written, and what was sent before a claim."""
    carrying = shard(pair.url, broker)
    drain(carrying)
    with pair.session() as session:
        written = write(session, 3)
        pair.server.reload({"synchronous_standby_names": "nosuch"})
        working = threading.Thread(target=carrying.run_once)
        working.start()
        wait_for(session, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        end = time.monotonic() + 10
        while working.is_alive() and time.monotonic() < end:
            session.execute(CANCEL)
            working.join(0.05)
        assert not working.is_alive()
        sent = [found.id for found in broker.log]
        pair.server.reload({"synchronous_standby_names": ""})
        drain(carrying)
    carrying.finish()
    return written, sent


@pytest.mark.parametrize("messages", ["notice", "error"])
def test_a_cancelled_wait_for_the_standby_is_an_unknown_outcome(pair: Pair, messages: str) -> None:
    with pair.session() as session:
        name = session.info.dbname
        session.execute(f"ALTER DATABASE {name} SET client_min_messages = {messages}".encode())
    broker = MemoryBroker()
    written, sent = cancelled_wait(pair, broker)
    assert sent == [], "nothing is sent before the row itself was asked"
    assert broker.ids() == written
    assert len(broker.log) == len(written), "and nothing twice, under any number"


def test_believing_a_cancelled_wait_would_send_what_the_standby_lacks(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "remember", lambda _self, _diagnostic: None)
    written, sent = cancelled_wait(pair, MemoryBroker())
    assert sent == written
