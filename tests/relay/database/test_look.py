"""A look sees every committed event that was not seen before, however its transaction ended."""

from collections.abc import Callable

import psycopg
import pytest

from relay import look
from relay.database import OutcomeUnknown
from relay.look import INLINE_BYTES
from relay.snapshot import Snapshot
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, ids, write


def test_what_was_committed_is_seen_in_position_order(half: Half, writer: Session) -> None:
    done = half.row.claim().done
    written = write(writer, 3) + write(writer, 2, slot=5)
    assert ids(half.looker.look(done).rows) == written


def test_what_is_rolled_back_is_never_seen(half: Half, connect: Connect) -> None:
    done = half.row.claim().done
    session = connect()
    kept = write(session)
    session.execute("SAVEPOINT inner_part")
    write(session, 5)
    session.execute("ROLLBACK TO inner_part")
    with session.transaction():
        kept += write(session)
    kept += write(session)
    session.commit()
    write(session)
    session.rollback()
    assert ids(half.looker.look(done).rows) == kept


def test_a_transaction_that_ends_late_is_seen_when_it_ends(half: Half, connect: Connect) -> None:
    late, early = connect(), connect()
    written_late = write(late)
    written_early = write(early)
    early.commit()
    first = half.looker.look(half.row.claim().done)
    late.commit()
    second = half.looker.look(first.snapshot)
    assert (ids(first.rows), ids(second.rows)) == (written_early, written_late)


def test_a_prepared_transaction_is_seen_when_it_is_committed(
    half: Half, connect: Connect, writer: Session
) -> None:
    session = connect()
    session.tpc_begin(session.xid(1, "late", "look"))
    written = write(session)
    session.tpc_prepare()
    session.close()
    others = write(writer)
    first = half.looker.look(half.row.claim().done)
    writer.execute("COMMIT PREPARED '1_bGF0ZQ==_bG9vaw=='")
    second = half.looker.look(first.snapshot)
    assert (ids(first.rows), ids(second.rows)) == (others, written)


def test_an_idle_transaction_elsewhere_delays_nobody(
    half: Half, connect: Connect, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = connect()
    idle.execute("SELECT pg_current_xact_id()")
    written = write(writer, 2)
    done = half.row.claim().done
    assert ids(half.looker.look(done).rows) == written
    monkeypatch.setattr(
        look,
        "LOOK",
        look.LOOK.replace("WHERE xid", "WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND xid"),
    )
    assert ids(half.looker.look(done).rows) == [], "waiting for the oldest transaction would be noticed"


def test_before_the_first_event_the_floor_is_below_it(
    half: Half, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert half.looker.look(half.row.claim().done).floor == 0
    whole = look.LOOK.replace("CASE WHEN is_called THEN last_value ELSE last_value - 1 END", "last_value")
    monkeypatch.setattr(look, "LOOK", whole)
    naive = half.looker.look(half.row.claim().done)
    state = half.row.advance(half.row.claim(), naive)
    written = write(writer)
    state = half.row.plan(state, half.looker.look(state.done))
    assert (written, half.planned(state)) == (written, []), "the first event lies on the floor and is lost"


def test_a_delta_too_large_to_hold_is_left_to_the_reader(own: Callable[..., Half], writer: Session) -> None:
    half = own(limit=3)
    done = half.row.claim().done
    written = write(writer, 3)
    assert ids(half.looker.look(done).rows) == written
    write(writer)
    assert half.looker.look(done).rows is None


def test_a_large_payload_is_left_to_the_reader(half: Half, writer: Session) -> None:
    done = half.row.claim().done
    write(writer, payload=b"x" * INLINE_BYTES)
    found = half.looker.look(done)
    assert found.rows is not None
    write(writer, payload=b"x" * (INLINE_BYTES + 1))
    assert half.looker.look(done).rows is None


def test_inside_a_writing_transaction_nothing_can_be_told(
    half: Half, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    half.connection.autocommit = False
    own_xid = half.connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert own_xid is not None
    with pytest.raises(OutcomeUnknown, match="inside a writing transaction"):
        half.looker.look(Snapshot("1:1:"))
    write(connect(autocommit=True))
    monkeypatch.setattr(look, "LOOK", look.LOOK.replace("pg_current_xact_id_if_assigned() IS NULL AND", ""))
    naive = half.looker.look(Snapshot("1:1:")).snapshot
    assert naive.sees(int(own_xid[0])), "the open transaction looks ended"


def test_a_transaction_counter_that_went_back_is_noticed(half: Half) -> None:
    with pytest.raises(OutcomeUnknown, match="went back"):
        half.looker.look(Snapshot(f"{2**40 + 7}:{2**40 + 7}:"))


def test_a_lost_connection_is_an_unknown_outcome(half: Half, writer: Session) -> None:
    writer.execute("SELECT pg_terminate_backend(%s)", (half.connection.info.backend_pid,))
    with pytest.raises(OutcomeUnknown):
        half.looker.look(Snapshot("1:1:"))
    with pytest.raises(psycopg.OperationalError):
        half.connection.execute("SELECT 1")
