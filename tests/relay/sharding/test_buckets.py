"""Each row belongs to one shard; idle shards beside busy ones do not walk the others' rows for ever."""

import pytest

from outbox.storage import bucket, ring
from outbox.storage.ddl import steps
from relay import look, planner, reader
from relay import ring as turning
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, drain, ids, shard, write
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.database.test_plans import Filled, filled, on_its_indexes
from tests.relay.database.watched_plans import plan_of
from tests.relay.sharding.several import key_of, split

__all__ = ["filled"]

SHARDS = 3
KEYS = [None, "", "k", *(f"key-{n}" for n in range(20))]


def test_shards_together_publish_everything_once_in_the_order_of_each_key(
    database: str, writer: Session, connect: Connect, broker: MemoryBroker
) -> None:
    split(database, SHARDS)
    shards = [shard(database, broker, n, look_rows=5, chunk_rows=3) for n in range(SHARDS)]
    late = connect()
    written: dict[str | None, list[str]] = {key: [] for key in KEYS}
    for turn in range(4):
        for key in KEYS:
            written[key] += write(writer, 2, key=key)
        held = write(late, 3, key=f"late-{turn}")
        for carrying in shards:
            drain(carrying)
        late.commit()
        written[f"late-{turn}"] = held
    for carrying in shards:
        drain(carrying)
        carrying.finish()
    applied = broker.ids()
    assert len(applied) == len(broker.log), "nothing was repeated"
    for key, expected in written.items():
        wire_key = None if key is None else key.encode()
        of_key = [found.id for found in broker.once() if found.key == wire_key]
        assert of_key == expected, key
    assert {found.seq.shard for found in broker.log} == set(range(SHARDS))


def test_a_key_has_the_same_bucket_for_the_relay_the_ring_and_the_schema() -> None:
    for statement in (steps.PENDING, turning.NEEDED):
        assert bucket.BUCKET_SQL.replace("aggregateid", "e.aggregateid") in statement.replace("::bigint", "")


def test_one_shard_asks_for_no_bucket(half: Half, writer: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_statement: str) -> str:
        raise AssertionError("this costs 55 ns a row")

    for module in (look, planner, reader):
        monkeypatch.setattr(module, "of_buckets", never)
    written = write(writer, 3)
    state = half.row.claim()
    assert ids(half.looker.look(state.done).rows) == written
    found, planned = half.planner.look(state, sent=False)
    assert planned is not None
    assert ids(found.rows) == written == half.planned(planned)
    assert (
        "hashtext"
        not in look.LOOK
        + planner.LOOK_CONFIRM_AND_PLAN
        + reader.CHUNK
        + reader.LARGE_CHUNK
        + reader.FEW_STRAGGLERS
        + reader.MANY_STRAGGLERS
    )


def test_an_idle_shard_beside_a_busy_one_moves_its_own_start_and_nobody_elses(
    database: str, writer: Session, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.tenure.ADVANCE_EVERY", 0.0)
    split(database, 2)
    busy_key = key_of(writer, 0)
    idle = shard(database, broker, 1)
    idle.run_once()
    write(writer, 50, key=busy_key)
    idle.run_once()
    [(floor_0, floor_1)] = writer.execute(
        "SELECT (SELECT done_floor FROM outbox_shard WHERE shard = 0), "
        "(SELECT done_floor FROM outbox_shard WHERE shard = 1)"
    ).fetchall()
    assert (floor_0, floor_1) == (0, 50), "its own looks start behind the rows of others"
    before = writer.execute("SELECT done::text FROM outbox_shard WHERE shard = 1").fetchone()
    idle.run_once()
    after = writer.execute("SELECT done::text FROM outbox_shard WHERE shard = 1").fetchone()
    assert before == after, "nothing was written: no reason to move, or shards would keep each other busy"
    busy = shard(database, broker, 0)
    drain(busy)
    assert len(broker.ids()) == 50
    for carrying in (idle, busy):
        carrying.finish()


PARTS = {"lo": 64, "hi": 127}


def test_the_look_of_one_shard_of_several_stays_on_its_indexes(filled: Filled) -> None:
    half = filled.half
    looker = look.Looker(half.connection, limit=1_000, buckets=(64, 127))
    on_its_indexes(plan_of(half.connection, lambda: looker.look(filled.state.done)))


@pytest.mark.parametrize("name", ["FEW_STRAGGLERS", "LAST_STRAGGLER", "CHUNK", "LARGE_CHUNK"])
def test_a_chunk_of_one_shard_of_several_stays_on_its_indexes(filled: Filled, name: str) -> None:
    fetch = filled.fetch(
        getattr(reader, name), **PARTS, low=filled.state.done_floor if "CHUNK" in name else 0
    )
    on_its_indexes(plan_of(filled.half.reading, fetch))


def test_a_backlog_is_read_chunk_by_chunk_by_one_shard_of_several_too(filled: Filled) -> None:
    fetch = filled.fetch(reader.CHUNK, **PARTS, low=60_000, next_floor=120_000, limit=500)
    plan = plan_of(filled.half.reading, fetch)
    scanned = sum(n["Actual Rows"] for n in plan.nodes() if n["Node Type"] == "Index Scan")
    assert scanned <= 500 + ring.LEAVES, plan
