"""A planned delta is read whole, in position order and in bounded chunks, as often as one likes."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from relay import reader
from relay.database import OutcomeUnknown
from relay.look import INLINE_BYTES
from relay.progress import Progress
from relay.row import KEY, MS, PAYLOAD, POSITION, TOPIC, Row
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, ids, write

Own = Callable[..., Half]

MEGABYTE = 1_048_576


def plan(half: Half) -> Progress:
    """Everything new, as one delta."""
    state = half.row.claim()
    if state.next is not None:
        state = half.row.confirm(state)
    return half.row.plan(state, half.looker.look(state.done))


def flat(chunks: list[list[Row]]) -> list[Row]:
    return [row for chunk in chunks for row in chunk]


def test_a_delta_of_fifty_thousand_events_comes_in_chunks_of_the_size_asked_for(
    own: Own, writer: Session
) -> None:
    half = own(rows=2_000)
    written = [id_ for slot in range(5) for id_ in write(writer, 10_000, slot=slot)]
    chunks = half.chunks(plan(half))
    assert [len(chunk) for chunk in chunks] == [2_000] * 25
    assert ids(flat(chunks)) == written


def test_a_chunk_ends_with_the_row_that_reaches_the_byte_bound(own: Own, writer: Session) -> None:
    half = own(rows=100, bytes_=1_000)
    written = write(writer, 10, payload=b"x" * 400)
    chunks = half.chunks(plan(half))
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 1]
    assert ids(flat(chunks)) == written


def test_a_row_larger_than_the_byte_bound_comes_alone(own: Own, writer: Session) -> None:
    half = own(bytes_=1_000)
    written = write(writer, 3, payload=b"x" * 5_000)
    chunks = half.chunks(plan(half))
    assert ([len(chunk) for chunk in chunks], ids(flat(chunks))) == ([1, 1, 1], written)


def test_a_row_without_payload_does_not_slip_in_ahead_of_one_left_out(
    own: Own, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = own(bytes_=1_000)

    def written() -> list[str]:
        return write(writer, 3, payload=b"x" * 800) + write(writer, 1, payload=None) + write(writer, 1)

    expected = written()
    assert half.planned(plan(half)) == expected
    unknown = "- octet_length(payload) AS before"
    naive = reader.LARGE_CHUNK.replace("- coalesce(octet_length(payload), 0) AS before", unknown)
    monkeypatch.setattr(reader, "LARGE_CHUNK", naive.replace("WHERE before <", "WHERE coalesce(before, 0) <"))
    expected = written()
    assert half.planned(plan(half)) != expected, "the third large row is lost behind the tombstone"


def test_large_rows_among_small_ones_come_whole_in_order_and_bounded(own: Own, writer: Session) -> None:
    half = own(rows=10, bytes_=1_000)
    sizes = [50, 100, 101, 0, 5_000, *[100] * 25, 400, 700, None, 5_000, *[1] * 12, 101]
    written = []
    for size in sizes:
        written += write(writer, payload=None if size is None else b"x" * size)
    chunks = half.chunks(plan(half))
    assert ids(flat(chunks)) == written
    assert [None if r[PAYLOAD] is None else len(r[PAYLOAD]) for r in flat(chunks)] == sizes
    assert all(r[MS] > 0 for r in flat(chunks))
    for chunk in chunks:
        assert len(chunk) <= 10
        assert sum(len(r[PAYLOAD] or b"") for r in chunk[:-1]) < 1_000


def test_what_is_acknowledged_is_not_read_again(half: Half, writer: Session) -> None:
    written = write(writer, 10)
    state = plan(half)
    rows = flat(half.chunks(state))
    for read in range(10):
        state = half.row.mark_low(state, rows[read][POSITION])
        assert half.planned(state) == written[read + 1 :]


def test_a_delta_reads_the_same_however_much_is_committed_meanwhile(
    half: Half, connect: Connect, writer: Session
) -> None:
    late = connect()
    write(late, 5)
    written = write(writer, 5)
    state = plan(half)
    late.commit()
    write(writer, 5)
    assert half.planned(state) == written


@pytest.mark.parametrize("count", [1, 3, 4, 5, 40], ids="{} late rows, 4 to a chunk".format)
@pytest.mark.parametrize("between", [0, 1, 50], ids="{} others between".format)
def test_stragglers_come_first_and_whole(
    own: Own, connect: Connect, writer: Session, count: int, between: int
) -> None:
    half, late = own(rows=4), connect()
    straggling = []
    for _ in range(count):
        straggling += write(late)
        write(writer, between)
    write(writer)
    plan(half)
    late.commit()
    straggling += write(writer, 6)
    assert half.planned(plan(half)) == straggling


def test_stragglers_are_bounded_by_bytes_too(own: Own, connect: Connect, writer: Session) -> None:
    half, late = own(rows=100, bytes_=1_000), connect()
    straggling = write(late, 3, payload=b"x" * 800) + write(late, 2, payload=None) + write(late, 9)
    write(writer)
    plan(half)
    late.commit()
    chunks = half.chunks(plan(half))
    assert ids(flat(chunks)) == straggling
    assert [len(chunk) for chunk in chunks] == [2, 12], "two large, then the third with all the small"


def test_a_straggler_may_begin_while_the_look_runs(
    half: Half, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look's snapshot was taken and before it read the floor: an xid above, a position below."""

    def straggle() -> tuple[list[str], list[str]]:
        state, session = half.row.claim(), connect()
        look = half.looker.look(state.done)
        written = write(session)
        state = half.row.plan(state, replace(look, floor=half.looker.look(state.done).floor))
        session.commit()
        state = half.row.confirm(state)
        state = half.row.plan(state, half.looker.look(state.done))
        found = half.planned(state)
        half.row.confirm(state)
        return written, found

    written, found = straggle()
    assert found == written
    naive = reader.FEW_STRAGGLERS.replace(
        "WHERE xid >= pg_snapshot_xmax(%(done)s::pg_snapshot) AND", "WHERE false AND"
    )
    monkeypatch.setattr(reader, "FEW_STRAGGLERS", naive)
    written, found = straggle()
    assert (len(written), found) == (1, []), "looking among the transactions that `done` lists is not enough"


def test_few_stragglers_are_found_without_walking_what_lies_behind_them(
    own: Own, connect: Connect, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, late = own(), connect()
    straggling = write(late)
    write(writer, 2_000)
    plan(half)
    late.commit()
    monkeypatch.setattr(reader, "MANY_STRAGGLERS", "SELECT 1 / 0")
    monkeypatch.setattr(reader, "LAST_STRAGGLER", "SELECT 1 / 0")
    assert half.planned(plan(half)) == straggling


def test_reading_may_stop_anywhere(half: Half, writer: Session) -> None:
    written = write(writer, 5_000)
    state = plan(half)
    chunks = half.reader.chunks(state)
    next(chunks)
    chunks.close()
    assert half.planned(state) == written


def test_it_says_when_the_next_chunk_is_not_here_soon(half: Half, connect: Connect, writer: Session) -> None:
    written = write(writer, 100)
    state = plan(half)
    other = connect()
    other.execute("LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE")
    with closing(half.reader.chunks(state, near=0.001)) as chunks:
        assert next(chunks) == []
        other.rollback()
        assert [id_ for chunk in chunks for id_ in ids(chunk)] == written


def test_large_payloads_stay_within_the_byte_bound(own: Own, writer: Session) -> None:
    half = own(bytes_=4 * MEGABYTE)
    for _ in range(40):
        write(writer, payload=b"x" * MEGABYTE)
    state = plan(half)
    tracemalloc.start()
    try:
        read = sum(len(chunk) for chunk in _let_go(half.reader.chunks(state)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == 40
    assert peak < 20 * MEGABYTE, "two chunks of 4 MB and what the driver holds of a third"


def _let_go(chunks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    for chunk in chunks:
        yield chunk
        del chunk


def test_a_large_payload_arrives_whole(half: Half, writer: Session) -> None:
    payload = bytes(range(256)) * (INLINE_BYTES // 256 + 1)
    write(writer, payload=payload)
    [row] = flat(half.chunks(plan(half)))
    assert row[PAYLOAD] == payload


def test_rows_written_as_for_debezium_arrive_byte_for_byte(half: Half, writer: Session) -> None:
    payload = bytes(range(256))
    writer.execute(
        "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload)"
        " VALUES (gen_random_uuid(), 'Order', 'ключ-7', 'OrderPlaced', %s)",
        (payload,),
    )
    look = half.looker.look(half.row.claim().done)
    [row] = flat(half.chunks(plan(half)))
    assert look.rows == [row]
    assert (row[TOPIC], row[KEY], row[PAYLOAD]) == (b"outbox.event.Order", "ключ-7".encode(), payload)


def test_nulls_stay_nulls(half: Half, writer: Session) -> None:
    write(writer, key=None, payload=None)
    look = half.looker.look(half.row.claim().done)
    [row] = flat(half.chunks(plan(half)))
    assert look.rows == [row]
    assert (row[KEY], row[PAYLOAD], *row[7:]) == (None, None, None, None)


@pytest.mark.parametrize("when", ["infinity", "-infinity", "1969-12-31", "0044-03-15 BC", "5000-01-01"])
def test_no_time_stops_the_relay(half: Half, writer: Session, when: str) -> None:
    write(writer)
    writer.execute(
        "INSERT INTO outbox_event (id, aggregatetype, type, occurred_at)"
        " VALUES (gen_random_uuid(), 'order', 't', %s)",
        (when,),
    )
    rows = flat(half.chunks(plan(half)))
    assert len(rows) == 2
    assert rows[1][1] >= 1


def test_a_server_without_the_plan_gives_no_rows_of_it(
    own: Own, writer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a lagging standby lacks is the newest: first the plan, then the rows that the plan sees."""
    half = own(rows=2)
    written = write(writer, 5)
    state = plan(half)
    with closing(half.reader.chunks(state)) as chunks:
        first = next(chunks)
        writer.execute("UPDATE outbox_shard SET next_xid = done_xid")
        writer.execute("DELETE FROM outbox_event WHERE position > 2")
        with pytest.raises(OutcomeUnknown, match="does not hold the plan"):
            list(chunks)
    assert ids(first) == written[:2]
    monkeypatch.setattr(reader, "CHUNK", reader.CHUNK.replace(reader._PLAN_IS_HERE, "true"))
    assert half.planned(state) == written[:2], "three events would be confirmed and never sent"
