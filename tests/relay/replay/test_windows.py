"""A window of a replay is the same whenever it is read, whatever is committed in between."""

from collections import Counter

import pytest

from outbox import hooks
from relay import points, tenure
from relay.database import OutcomeUnknown
from relay.replay import replay, window
from tests.relay.conftest import Connect
from tests.relay.database.half import Session, drain, shard, write
from tests.relay.database.memory_broker import MemoryBroker

ASK = "INSERT INTO outbox_job (shard, groups, requested_by) VALUES (0, '*', 'operator')"


def ended(session: Session) -> bool:
    return session.execute("SELECT bool_and(ended_at IS NOT NULL) FROM outbox_job").fetchone() == (True,)


def replayed(database: str, connect: Connect, broker: MemoryBroker) -> tuple[list[str], Counter[str]]:
    """A relay is cut off in a window, then a transaction older than it commits lower positions."""
    late, session = connect(), connect(autocommit=True)
    write(late, 2)
    written = write(session, 9)
    carrying = shard(database, broker, chunk_rows=1)
    drain(carrying)
    carrying.finish()
    before = len(broker.log)
    session.execute(ASK)
    cut: list[object] = []

    def strike(point: str, facts: dict[str, object]) -> None:
        # The window is of positions 3 to 6; all but the last are sent.
        if point == points.REPLAYING and facts["last"] == 6 and not cut:
            cut.append(facts)
            raise OutcomeUnknown("cut off")

    unsubscribe = hooks.subscribe(strike)
    try:
        for _ in range(100):
            carrying.run_once()
            if cut and late.info.transaction_status:
                late.commit()
            if ended(session):
                break
        assert ended(session)
    finally:
        unsubscribe()
        carrying.let_go()
    assert cut
    numbers = {(found.id, found.seq) for found in broker.log[before:] if found.id in {*written}}
    return written, Counter(id_ for id_, _ in numbers)


def test_what_was_acknowledged_but_not_written_down_yet_belongs_to_it(
    database: str, connect: Connect
) -> None:
    session, broker = connect(autocommit=True), MemoryBroker()
    carrying = shard(database, broker)
    written = write(session, 3)
    assert carrying.run_once().published == 3
    assert session.execute("SELECT next IS NOT NULL FROM outbox_shard").fetchone() == (True,)
    session.execute(ASK)
    for _ in range(20):
        carrying.run_once()
    carrying.let_go()
    assert ended(session)
    assert [found.id for found in broker.log[3:]] == written


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WINDOW", 4)
    monkeypatch.setattr(tenure, "REPLAYS_EVERY", 0.0)


def test_a_late_commit_below_it_moves_no_window(database: str, connect: Connect) -> None:
    written, numbers = replayed(database, connect, MemoryBroker())
    assert numbers == Counter(written)


def test_a_window_that_began_at_any_row_would_send_its_end_twice(
    database: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = window.FIRST.replace("AND pg_visible_in_snapshot(xid, %(upto)s::pg_snapshot)", "")
    assert naive != window.FIRST
    monkeypatch.setattr(window, "FIRST", naive)
    written, numbers = replayed(database, connect, MemoryBroker())
    assert max(numbers.values()) == 2
    assert {*numbers} == {*written}
