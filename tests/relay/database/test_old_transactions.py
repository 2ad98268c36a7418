"""What others leave open delays nobody: an old snapshot, thousands of transactions, one large one."""

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from outbox.storage import ddl
from outbox.testing.servers import PostgresServer, start_postgres
from relay import look, progress, reader
from relay.progress import Progress
from relay.shard import Shard
from tests.conftest import create_engine
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, ids, shard, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.database.watched_plans import plan_of, plans_of, watch

MOVES = 20_000
MOVE_THE_ROW = f"""
DO $$ DECLARE place tid := (SELECT ctid FROM outbox_shard); BEGIN
  PERFORM set_config('synchronous_commit', 'off', false);
  FOR i IN 1..{MOVES} LOOP
    UPDATE outbox_shard SET low = low + 1 WHERE ctid = place RETURNING ctid INTO place;
    COMMIT;
  END LOOP;
END $$
"""
OPEN = 1_500


def test_the_row_moves_as_fast_under_an_old_snapshot(
    database: str, connect: Connect, own: Callable[..., Half], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(database)
    old, worker = connect(), connect(autocommit=True)
    old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    old.execute("SELECT count(*) FROM outbox_shard")
    worker.execute("SET auto_explain.log_min_duration = -1")
    worker.execute(MOVE_THE_ROW)
    half = own()
    state = half.row.claim()
    written = write(worker)
    state = half.row.plan(state, half.looker.look(state.done))

    def pages(of: Callable[[Progress], Progress]) -> int:
        return sum(plan.buffers for plan in plans_of(half.connection, lambda: of(state)))

    by_place = pages(lambda at: half.row.mark_low(at, 1))
    state = half.row.claim()
    monkeypatch.setattr(progress, "_BY_PLACE", progress._BY_KEY)
    by_key = pages(lambda at: half.row.mark_low(at, 1))
    assert by_place < 30
    assert by_key > 10 * by_place, f"{by_key} pages by key, {by_place} by place"
    assert half.planned(half.row.claim()) in ([], written)


@pytest.fixture(scope="module")
def crowded() -> Iterator[tuple[PostgresServer, str, list[str]]]:
    """A database in which 1,500 transactions are open: prepared ones, which one session can make."""
    settings = {"max_prepared_transactions": OPEN + 10, "max_connections": 30}
    with start_postgres(settings, own=True) as server:
        url = server.database("crowded")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        with psycopg.connect(url, autocommit=True) as session:
            written = write(session, 20_000)
            for n in range(OPEN):
                session.execute("BEGIN")
                if n % 100 == 0:
                    written += write(session)
                else:
                    session.execute("SELECT pg_current_xact_id()")
                session.execute(f"PREPARE TRANSACTION 'open-{n}'".encode())
        watch(url)
        yield server, url, written


def test_a_look_probes_only_transactions_that_ended(
    crowded: tuple[PostgresServer, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url, _ = crowded
    with closing(Half(url)) as half, psycopg.connect(url, autocommit=True) as session:
        state = half.row.claim()
        state = half.row.plan(state, half.looker.look(state.done))
        assert state.next is not None
        assert len(state.next.running) >= OPEN
        written = write(session, 3)
        half.row.confirm(state)
        state = half.row.claim()
        found = half.looker.look(state.done)
        assert ids(found.rows) == written
        ours = plan_of(half.connection, lambda: half.looker.look(state.done))
        probe_all = look.LOOK.replace("EXCEPT SELECT pg_snapshot_xip(pg_current_snapshot())", "")
        monkeypatch.setattr(look, "LOOK", probe_all)
        naive = plan_of(half.connection, lambda: half.looker.look(state.done))
        assert ours.buffers < 200, ours
        # From 17 on one walk of the index answers for neighbours, so that there is less to be saved.
        times = 10 if half.connection.info.server_version < 170_000 else 1.5
        assert naive.buffers > times * ours.buffers, "each look would ask for each of the open transactions"
        planned = half.row.plan(state, found)
        [few] = plans_of(half.reading, lambda: half.planned(planned))[:1]
        assert few.buffers < 200, "and so would each delta"
        half.row.confirm(planned)


def test_the_events_of_open_transactions_come_when_they_end(
    crowded: tuple[PostgresServer, str, list[str]],
) -> None:
    _, url, _ = crowded
    broker = MemoryBroker()
    carrying = shard(url, broker)
    drain(carrying)
    before = len(broker.log)
    with psycopg.connect(url, autocommit=True) as session:
        for n in range(0, 1_000, 2):
            session.execute(f"COMMIT PREPARED 'open-{n}'".encode())
        drain(carrying)
        assert len(broker.log) - before == 10
        for n in range(0, 1_000, 2):
            session.execute(f"ROLLBACK PREPARED 'open-{n + 1}'".encode())
        drain(carrying)
        assert len(broker.log) - before == 10
        for n in range(1_000, OPEN):
            session.execute(f"COMMIT PREPARED 'open-{n}'".encode())
        drain(carrying)
    carrying.finish()
    assert len(broker.log) - before == 15
    assert len(set(broker.ids())) == len(broker.log)


def test_a_slow_look_that_finds_nothing_moves_on(
    database: str, connect: Connect, writer: Session, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.tenure.SLOW_LOOK", 1_000.0)
    write(writer)
    carrying = shard(database, broker)
    before = settled(carrying)
    large = connect()
    written = write(large, 1_000)
    writer.execute("SELECT pg_current_xact_id()")
    carrying.run_once()
    assert settled(carrying).done == before.done
    monkeypatch.setattr("relay.tenure.SLOW_LOOK", 0.0)
    monkeypatch.setattr("relay.tenure.ADVANCE_EVERY", 0.0)
    carrying.run_once()
    after = settled(carrying).done
    assert after.xmax > before.done.xmax
    assert len(after.running) == 1, "the open transaction's rows are not walked again"
    large.commit()
    drain(carrying)
    carrying.finish()
    assert broker.ids()[1:] == written


def settled(carrying: Shard) -> Progress:
    """The row as the shard knows it once its last delta is confirmed."""
    drain(carrying)
    while carrying._tenure is None or carrying._tenure.state.next is not None:
        carrying.run_once()
    return carrying._tenure.state


def test_stragglers_of_a_transaction_that_still_runs_are_not_sought(
    connect: Connect,
    writer: Session,
    own: Callable[..., Half],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch(database)
    half, large = own(), connect()
    write(large, 20_000)
    write(writer)
    state = half.row.claim()
    state = half.row.confirm(half.row.plan(state, half.looker.look(state.done)))
    written = write(writer, 2)
    state = half.row.plan(state, half.looker.look(state.done))
    assert half.planned(state) == written
    [ours] = plans_of(half.reading, lambda: half.planned(state))[:1]
    without = reader.FEW_STRAGGLERS.replace("EXCEPT SELECT pg_snapshot_xip(%(next)s::pg_snapshot)", "")
    monkeypatch.setattr(reader, "FEW_STRAGGLERS", without)
    [naive] = plans_of(half.reading, lambda: half.planned(state))[:1]
    assert naive.buffers > 10 * ours.buffers, (
        f"{naive.buffers} pages for each delta instead of {ours.buffers}"
    )
