"""The difference of two snapshots, as a value: the same as PostgreSQL's, and every transaction is in one."""

from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import TupleRow

from outbox.testing.servers import PostgresServer
from relay.snapshot import Snapshot, between

VISIBLE = """
SELECT pg_visible_in_snapshot(x::text::xid8, s::pg_snapshot)
FROM unnest(%(snapshots)s::text[], %(xids)s::bigint[]) WITH ORDINALITY AS t(s, x, n) ORDER BY n
"""


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    xmin = draw(st.integers(3, 60))
    xmax = draw(st.integers(xmin, xmin + 30))
    running = draw(st.sets(st.integers(xmin, xmax - 1))) if xmax > xmin else set()
    return Snapshot(f"{xmin}:{xmax}:{','.join(map(str, sorted(running)))}")


@given(snapshots(), st.integers(3, 100))
def test_a_snapshot_sees_what_ended_before_it(snapshot: Snapshot, xid: int) -> None:
    running = {int(x) for x in snapshot.text.split(":")[2].split(",") if x}
    assert snapshot.sees(xid) == (xid < int(snapshot.text.split(":")[1]) and xid not in running)


@given(snapshots(), snapshots(), st.integers(3, 100))
def test_a_delta_is_what_one_sees_and_the_other_does_not(done: Snapshot, later: Snapshot, xid: int) -> None:
    assert between(done, later, xid) == (later.sees(xid) and not done.sees(xid))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Snapshot], set[int]]:
    """Snapshots taken along a random history of transactions, and those that had ended by the last."""
    following, running, ended = 3, set[int](), set[int]()
    taken = [Snapshot("1:1:")]
    steps = st.lists(st.sampled_from(["begin", "end", "look"]), max_size=60)
    for step in [*draw(steps), "look"]:
        if step == "begin":
            running.add(following)
            following += 1
        elif step == "end" and running:
            gone = draw(st.sampled_from(sorted(running)))
            running.remove(gone)
            ended.add(gone)
        elif step == "look":
            xmax = max(ended, default=2) + 1
            open_ = sorted(x for x in running if x < xmax)
            taken.append(Snapshot(f"{open_[0] if open_ else xmax}:{xmax}:{','.join(map(str, open_))}"))
    return taken, ended


@given(histories())
def test_along_any_history_each_ended_transaction_is_in_exactly_one_delta(
    history: tuple[list[Snapshot], set[int]],
) -> None:
    taken, ended = history
    for xid in range(3, 70):
        deltas = sum(between(a, b, xid) for a, b in pairwise(taken))
        assert deltas == (1 if xid in ended else 0)


@given(histories())
def test_positions_alone_would_not_tell(history: tuple[list[Snapshot], set[int]]) -> None:
    """What is below xmax is not what has ended: the naive form of `sees` fails as soon as one runs late."""
    taken, _ = history
    for snapshot in taken:
        late = [xid for xid in range(snapshot.xmin, snapshot.xmax) if not snapshot.sees(xid)]
        assert late == sorted(snapshot.running)


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[psycopg.Connection[TupleRow]]:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(snapshots(), st.integers(3, 100)), min_size=20, max_size=60))
def test_postgresql_agrees(server: psycopg.Connection[TupleRow], pairs: list[tuple[Snapshot, int]]) -> None:
    values = {"snapshots": [s.text for s, _ in pairs], "xids": [x for _, x in pairs]}
    visible = [found for (found,) in server.execute(VISIBLE, values).fetchall()]
    assert visible == [snapshot.sees(xid) for snapshot, xid in pairs]
