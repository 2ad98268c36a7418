"""Every statement of the hot path stays on its index and touches few pages, whatever the statistics say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from outbox.storage import ring
from outbox.storage.roles import Roles, statements
from relay import database, look, reader
from relay.lease import TAKE
from relay.look import Look
from relay.parking import parking, release
from relay.progress import Progress
from relay.replay import window
from relay.row import POSITION
from relay.snapshot import Snapshot
from relay.telemetry import backlog
from tests.relay.database.half import Half, Session, write
from tests.relay.database.watched_plans import Plan, plan_of, plans_of, watch

OTHERS = 120_000
FEW_PAGES = 120
"""For a handful of rows on eight leaves: two or three pages of index each, and of the heap where rows are."""

INDEXED = {"Index Scan", "Index Only Scan"}


@dataclass
class Filled:
    """A table of many published events with a delta of a few behind them, two of them stragglers."""

    half: Half
    url: str
    state: Progress
    look: Look

    def fetch(self, statement: str, **changed: Any) -> Callable[[], object]:
        following = self.state.next
        assert following is not None
        bound = {
            "done": self.state.done.text,
            "done_floor": self.state.done_floor,
            "done_xid": self.state.done_xid,
            "next": following.text,
            "next_floor": self.state.next_floor,
            "next_xid": self.state.next_xid,
            "shard": self.state.shard,
            "delta": self.state.delta,
            "low": 0,
            "last": self.state.done_floor,
            "limit": 2_000,
            "each": 2_000,
            "bytes": 4_194_304,
        }
        return lambda: self.half.reader._fetch(statement, bound | changed)


@pytest.fixture(scope="module", params=["no statistics", "stale statistics", "fresh statistics"])
def filled(request: pytest.FixtureRequest, postgres: Any, template: str) -> Iterator[Filled]:
    """The relay's own role, on a table with 120,000 events in eight leaves and the statistics in question."""
    name = f"outbox_plans_{request.param.split()[0]}"
    url = postgres.database(name, template=template)
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements(Roles(relay=["plans_relay"]), create=True):
            session.execute(statement.encode())
        session.execute(b"ALTER TABLE outbox_shard SET (autovacuum_enabled = off)")
        for slot in range(ring.LEAVES):
            session.execute(f"ALTER TABLE {ring.leaf(slot)} SET (autovacuum_enabled = off)".encode())
        watch(url)
        if request.param.startswith("stale"):
            write(session, 10)
            session.execute("ANALYZE outbox_event")
        for slot in range(ring.LEAVES):
            write(session, OTHERS // ring.LEAVES, slot=slot)
        if request.param.startswith("fresh"):
            session.execute("VACUUM ANALYZE outbox_event")
        parts = urlsplit(url)
        owner = Half(urlunsplit(parts._replace(netloc=f"plans_relay@{parts.hostname}:{parts.port}")))
        yield _with_delta(owner, url, session)
        owner.close()
    postgres.drop(name)


def _with_delta(half: Half, url: str, session: Session) -> Filled:
    with psycopg.connect(url) as late, psycopg.connect(url) as later:
        write(late, 2, slot=3)
        write(later, 2, slot=3)
        state = half.row.claim()
        state = half.row.plan(state, half.looker.look(state.done))
        state = half.row.confirm(state)
        late.commit()
        write(session, 5, slot=4)
        found = half.looker.look(state.done)
        state = half.row.plan(state, found)
    return Filled(half, url, state, found)


def on_its_indexes(plan: Plan, pages: int = FEW_PAGES) -> None:
    assert plan.kinds("outbox_event") <= INDEXED | {"Seq Scan"}, plan
    scanned = [n for n in plan.nodes() if n["Node Type"] == "Seq Scan"]
    assert [n["Relation Name"] for n in scanned] in ([], ["outbox_event_position_seq"]), plan
    assert plan.buffers <= pages, plan


def run_look(filled: Filled, done: Snapshot | None = None) -> Callable[[], object]:
    return lambda: filled.half.looker.look(done or filled.state.done)


def test_the_look(filled: Filled) -> None:
    on_its_indexes(plan_of(filled.half.connection, run_look(filled)))


def test_a_look_at_a_backlog_stops_at_its_limit(filled: Filled) -> None:
    plan = plan_of(filled.half.connection, run_look(filled, Snapshot("1:1:")))
    assert plan.kinds("outbox_event_") <= INDEXED | {"Seq Scan"}
    assert plan.buffers < 1_500, plan


def test_the_look_as_one_or_would_read_everything(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    head, first, _ = look.LOOK.split("UNION ALL")
    either = """xid >= pg_snapshot_xmax(%(done)s::pg_snapshot)
        OR (xid < pg_snapshot_xmax(%(done)s::pg_snapshot)
            AND NOT pg_visible_in_snapshot(xid, %(done)s::pg_snapshot))"""
    naive = first.replace("xid >= pg_snapshot_xmax(%(done)s::pg_snapshot)", either)
    monkeypatch.setattr(look, "LOOK", f"{head} UNION ALL {naive}")
    with pytest.raises(AssertionError):
        on_its_indexes(plan_of(filled.half.connection, run_look(filled)))


def test_few_stragglers(filled: Filled) -> None:
    on_its_indexes(plan_of(filled.half.reading, filled.fetch(reader.FEW_STRAGGLERS)))


def test_where_stragglers_end(filled: Filled) -> None:
    on_its_indexes(plan_of(filled.half.reading, filled.fetch(reader.LAST_STRAGGLER)))


def test_few_stragglers_sought_by_position_would_read_everything(filled: Filled) -> None:
    walked = plan_of(filled.half.reading, filled.fetch(reader.MANY_STRAGGLERS))
    assert walked.buffers > 10 * FEW_PAGES, "why the few are sought by transaction"


def test_many_stragglers_walk_no_further_than_the_last(filled: Filled) -> None:
    floor = filled.state.done_floor
    walk = filled.fetch(reader.MANY_STRAGGLERS, low=floor - 10, last=floor)
    on_its_indexes(plan_of(filled.half.reading, walk))


CHUNKS = pytest.mark.parametrize("chunk", ["CHUNK", "LARGE_CHUNK"])


@CHUNKS
def test_a_chunk(filled: Filled, chunk: str) -> None:
    read = filled.fetch(getattr(reader, chunk), low=filled.state.done_floor)
    on_its_indexes(plan_of(filled.half.reading, read))


@CHUNKS
@pytest.mark.parametrize("low", [0, 60_000, 100_000])
def test_a_chunk_of_a_backlog_reads_no_more_than_it_returns(filled: Filled, low: int, chunk: str) -> None:
    read = filled.fetch(getattr(reader, chunk), low=low, next_floor=OTHERS, limit=500)
    plan = plan_of(filled.half.reading, read)
    assert plan.kinds("outbox_event") <= INDEXED, plan
    scanned = sum(n["Actual Rows"] for n in plan.nodes() if n["Node Type"] in INDEXED)
    assert scanned <= 500 + ring.LEAVES, plan


def test_a_chunk_sorted_by_an_expression_would_read_the_whole_delta(filled: Filled) -> None:
    naive = reader.CHUNK.replace("ORDER BY position LIMIT", "ORDER BY position + 0 LIMIT")
    read = filled.fetch(naive, low=60_000, next_floor=OTHERS, limit=500)
    plan = plan_of(filled.half.reading, read)
    assert sum(n["Actual Rows"] for n in plan.nodes() if n["Node Type"] in INDEXED) > 50_000


def test_the_survey_of_what_waits_begins_where_all_shards_are_through(filled: Filled) -> None:
    plan = plan_of(filled.half.connection, lambda: survey(filled))
    assert plan.kinds("outbox_event") <= INDEXED, plan
    assert plan.buffers < FEW_PAGES, plan


def test_the_survey_of_a_backlog_reads_each_event_once_and_no_more_than_its_bound(filled: Filled) -> None:
    plan = plan_of(filled.half.connection, lambda: survey(filled, most=1_000, everything=True))
    assert plan.kinds("outbox_event") <= INDEXED, plan
    read = sum(
        n["Actual Rows"] for n in plan.nodes() if n.get("Relation Name", "").startswith("outbox_event")
    )
    assert read <= 1_000 + ring.LEAVES, plan


def survey(filled: Filled, *, most: int = 100_000, everything: bool = False) -> object:
    statement = backlog.BACKLOG
    if everything:
        statement = statement.replace("(SELECT start FROM s ORDER BY start LIMIT 1)", "'1'::xid8")
    return database.execute(filled.half.connection, statement, {"shards": None, "most": most})


def moves(filled: Filled) -> Iterator[tuple[str, list[Plan]]]:
    """Each move of the row, in an order in which each finds the state that it needs."""
    half = filled.half
    states = [half.row.claim()]
    rounds: list[tuple[str, Callable[[], Progress]]] = [
        ("confirm", lambda: half.row.confirm(states[-1])),
        ("advance", lambda: half.row.advance(states[-1], filled.look)),
        ("plan", lambda: half.row.plan(states[-1], half.looker.look(states[-1].done))),
        ("mark_low", lambda: half.row.mark_low(states[-1], 5)),
        (
            "confirm_and_plan",
            lambda: half.row.confirm_and_plan(states[-1], half.looker.look(states[-1].done)),
        ),
    ]
    for name, move in rounds:
        plans = plans_of(half.connection, partial(_append, states, move))
        yield name, [plan for plan in plans if plan.root["Node Type"] == "ModifyTable"]


def _append(states: list[Progress], move: Callable[[], Progress]) -> None:
    states.append(move())


def test_every_move_of_the_row_finds_it_by_its_place(filled: Filled) -> None:
    for name, plans in moves(filled):
        [plan] = plans
        assert plan.kinds("outbox_shard") == {"ModifyTable", "Tid Scan"}, f"{name}: {plan}"
        assert plan.buffers <= 30, f"{name}: {plan}"


@pytest.mark.parametrize("sent", [False, True], ids=["plan", "confirm and plan"])
def test_a_look_that_plans(filled: Filled, sent: bool) -> None:
    half = filled.half
    state = half.row.claim()
    if not sent:
        state = half.row.confirm(state)
    with psycopg.connect(filled.url) as session:
        write(session, 3)
    plan = plan_of(half.connection, lambda: half.planner.look(state, sent=sent))
    on_its_indexes(plan, FEW_PAGES + 30)
    assert plan.kinds("outbox_shard") == {"ModifyTable", "Tid Scan"}, plan
    state = half.row.read(state)
    nothing = plan_of(half.connection, lambda: half.planner.look(state, sent=True))
    [found] = [n for n in nothing.nodes() if n["Node Type"] == "Tid Scan"]
    assert found["Actual Loops"] == 0, "where nothing is new the row is not even looked for"


def test_a_claim_and_the_lease_find_their_row_by_key(filled: Filled) -> None:
    connection = filled.half.connection
    claim = plan_of(connection, filled.half.row.claim)
    assert claim.kinds("outbox_shard") == {"ModifyTable", "Index Scan"}, claim
    values = {"owner": "a", "lease": "5s", "shard": 0, "silent": "4s"}
    take = plan_of(
        connection, lambda: connection.execute(TAKE.replace("%(lease)s", "%(lease)s::interval"), values)
    )
    assert take.kinds("outbox_lease") == {"ModifyTable", "Index Scan"}, take


def test_rows_that_are_set_aside_and_sent_again(filled: Filled) -> None:
    connection, state = filled.half.connection, filled.state
    (hold,) = (
        database.execute(connection, parking.HOLD, {"shard": 0, "topic": "t", "key": "k"}).fetchone() or ()
    )
    positions = [found[POSITION] for found in filled.look.rows or []]
    values: dict[str, Any] = {
        "shard": 0,
        "delta": state.delta,
        "stream": state.stream.decode(),
        "positions": positions,
        "holds": [hold] * len(positions),
        "partitions": [0] * len(positions),
        "states": ["failed"] + ["held"] * (len(positions) - 1),
        "error": "refused",
    }
    stored = plan_of(connection, lambda: database.execute(connection, parking.STORE, values))
    assert stored.kinds("outbox_event") <= INDEXED, stored
    assert stored.buffers < 60 * len(positions), "a probe a row and leaf"
    taken = {"delta": state.delta, "holds": [hold], "shard": 0, "most": 500}
    database.execute(connection, "UPDATE outbox_hold SET wanted_at = now(), wanted_by = 'o'")
    database.execute(connection, release.TAKE, taken)
    frozen = plan_of(connection, lambda: database.execute(connection, release.FROZEN, taken))
    assert frozen.kinds("outbox_parked") <= INDEXED, frozen
    assert frozen.buffers < 60, frozen


def test_a_window_of_a_replay(filled: Filled) -> None:
    connection, state = filled.half.connection, filled.state
    with psycopg.connect(filled.url, autocommit=True) as session:
        ask = "INSERT INTO outbox_job (shard, groups, requested_by) VALUES (0, '*', 'operator') RETURNING job"
        (job,) = session.execute(ask).fetchone() or ()
    values = {
        "job": job,
        "low": 50_000,
        "last": 55_000,
        "only": None,
        "upto": state.done.text,
        "header": "outbox-replay",
        "replay": "1;groups=*",
        "delta": state.delta,
        "limit": 2_000,
        "bytes": 4_194_304,
    }
    database.execute(connection, "UPDATE outbox_shard SET job = %(job)s", values)
    try:
        page = plan_of(connection, lambda: database.execute(connection, window.PAGE, values))
        newest = plan_of(connection, lambda: database.execute(connection, window.NEWEST, values))
    finally:
        database.execute(connection, "UPDATE outbox_shard SET job = NULL")
    for plan in (page, newest):
        assert plan.kinds("outbox_event") <= INDEXED, plan
        assert plan.kinds("outbox_parked") | plan.kinds("outbox_archive") <= INDEXED, plan
    assert page.buffers < 10 * 5_000, "the window, a probe into what was parked and archived a row"
