"""A database restored elsewhere has other transaction ids: nothing is sent until `rebase` has numbered anew
what is pending, and then nothing is lost, repeated or out of order."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from outbox import hooks
from outbox.errors import GuardViolation, SchemaError
from outbox.testing.servers.postgres import OwnPostgres
from relay import guards, points, ring
from relay.database import Database, OutcomeUnknown
from relay.disaster import rebase
from relay.disaster.rebase import Rebase
from relay.look import Looker
from relay.ring import Ring
from relay.snapshot import Snapshot
from tests.relay.database.half import drain, shard, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.disaster.conftest import Install
from tests.relay.disaster.copies import Here, dump_and_restore

STEPS = ["shards", "locked", "aside", "emptied", "refilled", "numbered", "settled"]


def published_then_pending(here: Here, broker: MemoryBroker) -> list[str]:
    """A database that lived: 61 published events, then ten that wait, of transactions that overlapped."""
    written = [id_ for _ in range(61) for id_ in here.write()]
    here.publish(broker)
    with here.session(autocommit=False) as late, here.session(autocommit=False) as early:
        first, second = write(late, 2), write(early, 3)
        early.commit()
        third = write(late, 5)
        late.commit()
    return written + first + second + third


@pytest.mark.parametrize("counter", ["behind", "ahead"])
def test_what_was_pending_and_what_was_written_here_is_sent_once_in_order(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker, counter: str
) -> None:
    source = install(old)
    if counter == "behind":
        source.count_up_to(install(new).counter() + 500)
    written = published_then_pending(source, broker)
    if counter == "ahead":
        install(new).count_up_to(source.counter() + 500)
    copy = dump_and_restore(source, new)
    here = [id_ for _ in range(20) for id_ in copy.write()]
    with pytest.raises(GuardViolation, match="run: outbox-relay rebase"):
        copy.publish(broker)
    assert len(broker.log) == 61
    done = Rebase(copy.url).run()
    assert (done.kind, done.pending, done.written_here, done.kept) == ("copied", 30, 20, 61)
    after = copy.write(3)
    copy.publish(broker)
    assert [found.id for found in broker.log] == written + here + after
    sources = [found.seq.source for found in broker.log]
    assert len(set(sources[:61])) == len(set(sources[61:])) == 1
    assert sources[-1] not in sources[:61], "no number of the old side can hide a new event"
    assert Rebase(copy.url).run().kind == "same", "run twice it does nothing"


def test_a_copy_with_its_old_snapshots_would_lose_the_new_rows_and_with_none_repeat_the_old_ones(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """What one does without thinking: correct the identity by hand, and perhaps begin from nothing."""
    source = install(old)
    source.count_up_to(install(new).counter() + 500)
    written = published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    here = [id_ for _ in range(20) for id_ in copy.write()]
    with copy.session() as session:
        session.execute("DELETE FROM outbox_identity")
        [(done,)] = session.execute("SELECT coalesce(next, done)::text FROM outbox_shard").fetchall()
    copy.count_up_to(Snapshot(done).xmax + 100)
    with Database(copy.url).connect("test") as connection:
        found = Looker(connection, limit=1_000).look(Snapshot(done)).rows
        assert found is not None
        seen = {row[5].decode() for row in found}
        assert not seen & set(here), "20 of 20 lost: their transaction ids lie below the old snapshot"
        found = Looker(connection, limit=1_000).look(Snapshot("1:1:")).rows
        assert found is not None
        seen = {row[5].decode() for row in found}
        assert len(seen & set(written[:61])) == 61, "61 of 61 again"


def test_the_old_relays_ring_does_not_truncate_what_was_written_here(
    old: OwnPostgres,
    new: OwnPostgres,
    install: Install,
    broker: MemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A relay that only fails and is started again still turns the ring: an old snapshot covers new rows."""
    source = install(old)
    source.count_up_to(install(new).counter() + 500)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    with copy.session() as session:
        session.execute("TRUNCATE outbox_event")
        turn = "(date_part('epoch', clock_timestamp())::bigint / 600 - 3) % 8"
        [(quiet,)] = session.execute(f"SELECT {turn}".encode()).fetchall()
        write(session, 20, slot=quiet)
        assert turn_the_ring(copy) == []
        monkeypatch.setattr("relay.ring.NEEDED", _without_guard())
        assert turn_the_ring(copy) == [f"outbox_event_{quiet}"], "20 of 20 lost"


def turn_the_ring(here: Here) -> list[str]:
    turning = Ring(Database(here.url), retention=timedelta(0))
    try:
        return turning.run_once()
    finally:
        turning.connection.close()


def _without_guard() -> str:
    return ring.NEEDED.replace(guards.FOREIGN_COUNTER, "false")


def test_a_rebase_that_dies_at_any_step_has_done_nothing_and_can_be_run_again(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    written = published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    before = copy.content()
    for step in STEPS:
        with dying_at(step, copy), pytest.raises(OutcomeUnknown):
            Rebase(copy.url).run()
        assert copy.content() == before, step
    assert Rebase(copy.url).run().pending == 10
    copy.publish(broker)
    assert [found.id for found in broker.log] == written


@contextmanager
def dying_at(step: str, here: Here) -> Iterator[None]:
    """The rebase's backend is terminated when it reaches `step`."""

    def terminate(point: str, facts: dict[str, object]) -> None:
        if point == points.REBASING and facts["step"] == step:
            with psycopg.connect(here.server.url, autocommit=True) as session:
                session.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                    (here.name,),
                )

    unsubscribe = hooks.subscribe(terminate)
    try:
        yield
    finally:
        unsubscribe()


def test_a_dry_run_says_the_same_and_changes_nothing(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    copy.write(2)
    before = copy.content()
    expected = Rebase(copy.url).survey()
    assert copy.content() == before
    done = Rebase(copy.url).run()
    assert (expected.pending, expected.written_here, expected.kept) == (12, 2, 61)
    assert (done.pending, done.written_here, done.kept) == (12, 2, 61)


def test_rows_of_which_it_cannot_be_told_are_asked_about(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """Restored row by row, or written here inside a savepoint: both were put down by a transaction of one."""
    source = install(old)
    written = published_then_pending(source, broker)
    install(new).count_up_to(source.counter() + 500)
    copy = dump_and_restore(source, new, "--inserts")
    with copy.session() as session:
        session.execute(
            "UPDATE outbox_shard SET done = '999999:999999:', next = NULL, next_floor = NULL, next_xid = NULL"
        )
        [(since,)] = session.execute("SELECT clock_timestamp()::text").fetchall()
    here = copy.write_in_a_savepoint(3)
    with pytest.raises(GuardViolation, match="--pending-since"):
        Rebase(copy.url).run()
    assert Rebase(copy.url, pending_since="infinity").survey().pending == 0, "three events would be lost"
    assert Rebase(copy.url, pending_since="2001-01-01").survey().pending == len(written) + 3
    assert Rebase(copy.url, pending_since=since).run().pending == 3
    copy.publish(broker)
    assert [found.id for found in broker.log] == written[:61] + here


def test_events_in_savepoints_of_a_plain_restore_need_no_question(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """A restore puts rows of many transactions down at once, before the outbox's own state."""
    source = install(old)
    source.write_in_a_savepoint(3)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    assert Rebase(copy.url).run().pending == 10


def test_a_database_that_never_had_a_relay_is_noticed_too(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """Nothing was numbered yet, but the ids are another counter's: a look would find them for ever."""
    source = install(old)
    source.count_up_to(install(new).counter() + 500)
    written = source.write(3)
    copy = dump_and_restore(source, new)
    with pytest.raises(GuardViolation, match="has not begun"):
        copy.publish(broker)
    assert Rebase(copy.url).run().pending == 3
    copy.publish(broker)
    assert [found.id for found in broker.log] == written


def test_the_original_database_needs_nothing(
    old: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    here = install(old)
    published_then_pending(here, broker)
    before = here.content()
    assert not Rebase(here.url).run().changed
    assert here.content() == before


def test_a_living_relay_and_an_open_writer_are_not_run_over(
    old: OwnPostgres,
    new: OwnPostgres,
    install: Install,
    broker: MemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = install(old)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    monkeypatch.setattr(rebase, "WAIT_FOR_WRITERS", "50ms")
    with copy.session(autocommit=False) as writer:
        write(writer)
        with pytest.raises(GuardViolation, match="stop the services"):
            Rebase(copy.url).run()
    with copy.session() as session:
        session.execute("INSERT INTO outbox_relay (instance) VALUES ('r1')")
        with pytest.raises(GuardViolation, match="relay r1 is alive"):
            Rebase(copy.url).run()
        session.execute("UPDATE outbox_relay SET stopped_at = clock_timestamp()")
    assert Rebase(copy.url).run().changed


def test_only_the_owner_may(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    with copy.session() as session:
        session.execute("DROP ROLE IF EXISTS visitor")
        session.execute("CREATE ROLE visitor LOGIN")
        session.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO visitor")
    with pytest.raises(SchemaError, match="run it as postgres"):
        Rebase(copy.url.replace("postgres@", "visitor@")).run()


def test_many_shards_go_on_from_one_snapshot(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    published_then_pending(source, broker)
    with source.session() as session:
        session.execute("UPDATE outbox_shard SET hi = 127")
        session.execute(
            "INSERT INTO outbox_shard (shard, source, generation, lo, hi, done, done_floor, done_xid) "
            "SELECT 1, source, 3, 128, 255, done, done_floor, done_xid FROM outbox_shard"
        )
        session.execute("INSERT INTO outbox_lease (shard) VALUES (1)")
        for n in range(20):
            write(session, key=f"k{n}")
    copy = dump_and_restore(source, new)
    assert Rebase(copy.url).run().pending == 30
    with copy.session() as session:
        rows = session.execute(
            "SELECT count(*), count(DISTINCT done::text), count(DISTINCT source), max(generation) "
            "FROM outbox_shard"
        ).fetchone()
        pending = session.execute(
            "SELECT count(*) FROM outbox_event e, outbox_shard s "
            "WHERE s.shard = 0 AND NOT pg_visible_in_snapshot(e.xid, s.done)"
        ).fetchone()
    assert (rows, pending) == ((2, 1, 1, 1), (30,))


def test_what_was_acknowledged_inside_an_open_plan_is_not_sent_again(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    written = source.write(5) + source.write(5)  # two transactions show that one session restored both
    carrying = shard(source.url, broker)
    drain(carrying)
    carrying.let_go()
    with source.session() as session:
        assert session.execute(
            "UPDATE outbox_shard SET low = 4 WHERE next IS NOT NULL RETURNING shard"
        ).fetchall() == [(0,)], "planned, and four of ten known to be in"
    copy = dump_and_restore(source, new)
    assert Rebase(copy.url).survey().pending == len(written) - 4


def test_numbers_of_a_logical_copy_go_on_behind_the_copied_ones(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """Logical replication copies rows and leaves sequences behind."""
    source = install(old)
    written = published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    with copy.session() as session:
        session.execute(
            "SELECT setval('outbox_event_position_seq', 1), setval('outbox_scheduled_seq_seq', 1)"
        )
        session.execute(
            "INSERT INTO outbox_scheduled (id, due, seq, aggregatetype, type) OVERRIDING SYSTEM VALUE "
            "VALUES (gen_random_uuid(), now() + interval '1 day', 50, 'order', 'order.placed.v1')"
        )
    Rebase(copy.url).run()
    copy.publish(broker)
    with copy.session() as session:
        found = session.execute("SELECT nextval('outbox_scheduled_seq_seq')").fetchone()
    assert found == (51,)
    assert [record.id for record in broker.log] == written


def test_parked_events_stay_parked_and_a_replay_ends(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    source = install(old)
    published_then_pending(source, broker)
    with source.session() as session:
        session.execute("""
            INSERT INTO outbox_hold (shard, topic, aggregateid, wanted_at, wanted_by, planned)
            VALUES (0, 'orders', 'k', clock_timestamp(), 'somebody', 7)""")
        session.execute("""
            INSERT INTO outbox_job (shard, groups, requested_by, upto, upto_floor)
            SELECT 0, '*', 'somebody', done, done_floor FROM outbox_shard""")
    copy = dump_and_restore(source, new)
    Rebase(copy.url).run()
    with copy.session() as session:
        assert session.execute("SELECT planned, wanted_by FROM outbox_hold").fetchall() == [
            (None, "somebody")
        ]
        assert session.execute("SELECT outcome FROM outbox_job").fetchall() == [("rebased",)]


def test_settled_events_of_a_logical_copy_leave_their_numbers_to_nobody_else(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """All that was ever parked is settled: only the archive still knows how far the numbers went."""
    source = install(old)
    published_then_pending(source, broker)
    copy = dump_and_restore(source, new)
    with copy.session() as session:
        session.execute(
            """INSERT INTO outbox_archive (parked, outcome, seq, id, aggregatetype, type, topic, occurred_at,
                                           position, delta, settled_by)
               SELECT 41, 'sent', 's/1/0:1.1', id, aggregatetype, type, 't', occurred_at, position, 1, 'relay'
               FROM outbox_event LIMIT 1"""
        )
    Rebase(copy.url).run()
    with copy.session() as session:
        found = session.execute("SELECT nextval(pg_get_serial_sequence('outbox_parked', 'parked'))")
        assert found.fetchone() == (42,)
