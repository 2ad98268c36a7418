"""A crash of PostgreSQL loses what was not flushed and hands its transaction ids out again: nothing we sent,
or believe to have sent, may depend on that. Each test has a server of its own, with fsync on."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from outbox.errors import Fenced
from outbox.storage import ddl
from outbox.testing.servers import PostgresServer, start_postgres
from relay import planner, progress
from relay.progress import Progress
from relay.snapshot import Snapshot
from tests.conftest import create_engine
from tests.relay.database.half import Half, Session, drain, ids, shard, write
from tests.relay.database.memory_broker import MemoryBroker

SETTINGS: dict[str, str | int | float | bool] = {"fsync": True, "max_connections": 20}


@dataclass
class Machine:
    """A server that crashes on demand, with whatever its walwriter had not written gone for certain."""

    server: PostgresServer
    url: str
    opened: ExitStack

    def half(self) -> Half:
        return self.opened.enter_context(closing(Half(self.url)))

    @contextmanager
    def session(self) -> Iterator[Session]:
        with psycopg.connect(self.url, autocommit=True) as session:
            yield session

    def stop_background_flushes(self) -> None:
        """From now on only a commit that waits for the disk gets there."""
        with self.session() as session:
            for kind in ("walwriter", "background writer", "checkpointer"):
                found = session.execute(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = %s", (kind,)
                ).fetchone()
                assert found is not None
                os.kill(found[0], signal.SIGSTOP)

    def crash(self) -> None:
        self.server.kill()
        self.server.start()

    def burn_transactions(self, count: int) -> None:
        """Transactions that are rolled back: their ids are used, and nothing about them is flushed."""
        with psycopg.connect(self.url) as session:
            for _ in range(count):
                session.execute("SELECT pg_current_xact_id()")
                session.rollback()

    def write_unflushed(self, count: int) -> list[str]:
        """Events whose commit is acknowledged but not flushed."""
        with self.session() as session:
            session.execute("SET synchronous_commit = off")
            return write(session, count)

    def existing(self) -> set[str]:
        with self.session() as session:
            return {id_ for (id_,) in session.execute("SELECT id::text FROM outbox_event")}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with start_postgres(SETTINGS, own=True) as server:
        url = server.database("crashing")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        with ExitStack() as opened:
            yield Machine(server, url, opened)


def test_an_event_under_a_transaction_id_that_was_handed_out_again_is_not_lost(machine: Machine) -> None:
    """Behind a pooler the relay's connection survives the crash, and so does what it remembers."""
    half = machine.half()
    state = half.row.claim()
    with machine.session() as session:
        write(session)
    state = half.row.confirm(half.row.plan(state, half.looker.look(state.done)))
    machine.stop_background_flushes()
    machine.burn_transactions(100)
    remembered = half.looker.look(state.done)
    assert remembered.empty
    half.close()
    machine.crash()
    with machine.session() as session:
        written = write(session, 20)
        [(reused,)] = session.execute(
            "SELECT DISTINCT xid::text::bigint FROM outbox_event WHERE id = %s", written[:1]
        )
    assert reused < remembered.snapshot.xmax, "or the test shows nothing"
    machine.burn_transactions(200)
    after = machine.half()
    assert ids(after.looker.look(state.done).rows) == written, "`done` was a flushed `next`"
    assert ids(after.looker.look(remembered.snapshot).rows) == [], "kept in memory, it would hide 20 of 20"


def lose_a_plan(machine: Machine) -> tuple[list[str], Progress]:
    """Look, plan, crash before anything else; returns what would have been sent by then."""
    with machine.session() as session:
        session.execute("ALTER DATABASE crashing SET synchronous_commit = off")
        session.execute("ALTER ROLE postgres SET synchronous_commit = off")
    half = machine.half()
    half.connection.execute("SET synchronous_commit = off")
    state = half.row.claim()
    machine.stop_background_flushes()
    written = machine.write_unflushed(10)
    _, planned = half.planner.look(state, sent=False)
    assert planned is not None
    half.close()
    machine.crash()
    return written, planned


def test_what_is_planned_survives_although_nobody_else_waits_for_the_disk(machine: Machine) -> None:
    written, planned = lose_a_plan(machine)
    assert machine.existing() == set(written), "the plan's flush covers the commits that it saw"
    half = machine.half()
    state = half.row.claim()
    assert (state.delta, state.next, half.planned(state)) == (planned.delta, planned.next, written)


def test_a_plan_that_does_not_wait_for_the_disk_would_publish_ghosts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = planner.LOOK_AND_PLAN.replace(progress.FLUSHED, "true")
    assert naive != planner.LOOK_AND_PLAN
    monkeypatch.setattr(planner, "LOOK_AND_PLAN", naive)
    written, _ = lose_a_plan(machine)
    assert not machine.existing() & set(written), "sent, and never committed"


def look_crash_plan(machine: Machine) -> tuple[Snapshot, list[str], Half, Progress]:
    """A look before the crash; new events under its transaction ids; its plan over a swapped backend."""
    before = machine.half()
    state = before.row.claim()
    machine.stop_background_flushes()
    machine.burn_transactions(100)
    machine.write_unflushed(3)
    look = before.looker.look(state.done)
    before.close()
    machine.crash()
    with machine.session() as session:
        written = write(session, 5)
    machine.burn_transactions(200)
    after = machine.half()
    return look.snapshot, written, after, after.row.plan(state, look)


def test_a_look_of_before_the_crash_is_not_planned(machine: Machine) -> None:
    with pytest.raises(Fenced, match="nothing was changed"):
        look_crash_plan(machine)
    broker = MemoryBroker()
    carrying = shard(machine.url, broker)
    drain(carrying)
    carrying.let_go()
    assert set(broker.ids()) == machine.existing()


def test_a_look_of_before_the_crash_planned_after_it_would_hide_new_events(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAN", progress.PLAN.replace(progress._UNBROKEN, "true"))
    snapshot, written, after, planned = look_crash_plan(machine)
    assert planned.next == snapshot
    state = after.row.confirm(planned)
    assert not set(ids(after.looker.look(state.done).rows)) & set(written), (
        "the look's own rows were sent instead"
    )


def test_a_confirm_lost_in_the_crash_repeats_the_delta_under_its_number(machine: Machine) -> None:
    broker = MemoryBroker()
    carrying = shard(machine.url, broker)
    with machine.session() as session:
        written = write(session, 5)
    while not broker.log:
        carrying.run_once()
    machine.stop_background_flushes()
    carrying.finish()
    machine.crash()
    resumed = shard(machine.url, broker)
    drain(resumed)
    resumed.finish()
    assert [r.id for r in broker.log] == written * 2
    assert broker.ids() == written
