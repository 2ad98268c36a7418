"""The shard's row: how far its events are planned and acknowledged, and who may say so.

Every change is a compare-and-set on (epoch, delta, next IS [NOT] NULL). A statement of a former owner, a
repeated one or a late one changes nothing; whoever loses learns it by `Fenced`. After any unknown outcome
there is one way on: a new connection, `claim`, believe the row.
"""

from dataclasses import dataclass
from typing import Any

from outbox.errors import Fenced
from outbox.storage.bucket import BUCKETS
from relay import database
from relay.database import Connection
from relay.look import Look
from relay.snapshot import Snapshot

ROW = (
    "ctid::text, shard, lo, hi, source, generation, epoch, delta, "
    "done::text, done_floor, done_xid::text, next::text, next_floor, next_xid::text, low, mode, wanted_mode, "
    "frozen, job"
)

# Flushed before it is believed, whatever the session, role or database says: an unflushed plan could be
# lost by a crash after its events were sent. Its flush covers every commit that the snapshot saw.
FLUSHED = "set_config('synchronous_commit', 'on', true) = 'on'"
# May be lost by a crash: then the same events go out again under the same numbers.
_UNFLUSHED = "set_config('synchronous_commit', 'off', true) = 'off'"

# Behind a pooler an idle session may have moved to a promoted standby, where the source is to be another.
EXAMINED = f"{database.SERVER} = %(server)s"

# A snapshot is worth something only on the server that took it, and only until that server crashes: then
# transaction ids whose commits were not flushed are handed out again. A pooler may swap the server and its
# process behind an open connection, so the one that plans must be the one that looked, or have been there
# before it; a process of a promoted standby may have been there longer than that.
_UNBROKEN = f"""pg_current_xact_id() >= pg_snapshot_xmax(%(next)s::pg_snapshot)
  AND {EXAMINED}
  AND (pg_backend_pid() = %(backend)s
       OR (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid())) < %(at)s::timestamptz)"""

# Numbers follow the clock so that they never go back, not even after a fail-over that lost some.
NEXT_DELTA = "greatest(delta + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"

CLAIM = f"""
UPDATE outbox_shard SET epoch = epoch + 1
WHERE shard = %(shard)s AND {FLUSHED}
RETURNING {ROW}
"""
"""Fence every former owner and learn the truth. Waits for and outlives their queued statements."""

PLAN = f"""
UPDATE outbox_shard
SET next = %(next)s, next_floor = %(floor)s, next_xid = pg_current_xact_id(), low = 0, delta = {NEXT_DELTA}
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NULL AND {FLUSHED}
  AND {_UNBROKEN} AND NOT frozen
RETURNING {ROW}
"""
"""Decide what the next delta is, durably, before its first byte is sent."""

CONFIRM_AND_PLAN = f"""
UPDATE outbox_shard
SET done = next, done_floor = next_floor, done_xid = next_xid,
    next = %(next)s, next_floor = %(floor)s, next_xid = pg_current_xact_id(), low = 0, delta = {NEXT_DELTA}
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NOT NULL AND {FLUSHED}
  AND {_UNBROKEN} AND NOT frozen
RETURNING {ROW}
"""
"""The whole delta is acknowledged; plan the following one in the same flush."""

CONFIRM = f"""
UPDATE outbox_shard
SET done = next, done_floor = next_floor, done_xid = next_xid,
    next = NULL, next_floor = NULL, next_xid = NULL, low = 0
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NOT NULL AND {_UNFLUSHED}
RETURNING {ROW}
"""
"""The whole delta is acknowledged and nothing follows yet."""

MARK_LOW = f"""
UPDATE outbox_shard SET low = %(low)s
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NOT NULL AND low <= %(low)s
  AND {_UNFLUSHED}
RETURNING {ROW}
"""
"""Everything of this delta up to position `low` is acknowledged: a successor need not send it again."""

PARK = f"""
UPDATE outbox_shard SET low = %(low)s
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NOT NULL AND low <= %(low)s
  AND {FLUSHED}
RETURNING {ROW}
"""
"""As MARK_LOW, in the transaction that sets the refused row at `low` aside: neither without the other."""

PLAN_JOB = f"""
UPDATE outbox_shard
SET next = done, next_floor = done_floor, next_xid = done_xid, job = %(job)s, low = 0, delta = {NEXT_DELTA}
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NULL AND NOT frozen AND {FLUSHED}
  AND {EXAMINED}
RETURNING {ROW}
"""
"""A delta that adds nothing to `done`: rows sent again for an operator, under numbers of its own. No look
precedes it, so it names the server itself."""

CONFIRM_JOB = f"""
UPDATE outbox_shard
SET next = NULL, next_floor = NULL, next_xid = NULL, low = 0, job = NULL
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NOT NULL AND job = %(job)s
  AND {FLUSHED}
RETURNING {ROW}
"""
"""The job's delta is over, in the transaction that writes down what became of its rows."""

ADVANCE = f"""
UPDATE outbox_shard
SET done = %(next)s, done_floor = %(floor)s, done_xid = pg_current_xact_id()
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NULL AND {FLUSHED}
  AND {_UNBROKEN} AND NOT frozen
RETURNING {ROW}
"""
"""A look found nothing new: start the next look from its snapshot."""

NEW_SOURCE = f"""
UPDATE outbox_shard
SET source = left(replace(gen_random_uuid()::text, '-', ''), 12), timeline = %(timeline)s,
    delta = {NEXT_DELTA}
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NULL AND {FLUSHED}
RETURNING {ROW}
"""
"""Number from here on under a name never used before: a promoted standby may lack the last numbers."""

READ_AGAIN = f"SELECT {ROW} FROM outbox_shard WHERE {{where}} AND epoch = %(epoch)s"
"""The row as it is, if it is still ours."""

SWITCH = f"""
UPDATE outbox_shard SET mode = wanted_mode, wanted_mode = NULL, epoch = epoch + 1
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND wanted_mode = %(wanted)s
  AND low = %(low)s AND (NOT frozen OR mode = wanted_mode) AND {FLUSHED}
RETURNING {ROW}
"""
"""Change how events are sent. The epoch fences whoever would go on as before."""

COMMON_END = f"""
UPDATE outbox_reshard SET upto = %(next)s, floor = %(floor)s, at_xid = pg_current_xact_id()
WHERE upto IS NULL AND pg_visible_in_snapshot(frozen_by, %(next)s::pg_snapshot) AND {FLUSHED}
  AND {_UNBROKEN}
"""
"""Where all shards end before their number changes: a look that saw them frozen, so none planned beyond."""

PLAN_END = f"""
UPDATE outbox_shard
SET next = goal.upto, next_floor = goal.floor, next_xid = goal.at_xid, low = 0, delta = {NEXT_DELTA}
FROM (SELECT upto, floor, at_xid FROM outbox_reshard WHERE upto::text = %(upto)s FOR SHARE) goal
WHERE {{where}} AND epoch = %(epoch)s AND delta = %(delta)s AND next IS NULL AND frozen AND {FLUSHED}
  AND {EXAMINED}
RETURNING {ROW}
"""
"""The last delta before the number of shards changes. The lock keeps the end as it is until then."""

READ = f"SELECT {ROW} FROM outbox_shard WHERE shard = %(shard)s"

# Found by its place first: under somebody's old snapshot the row's dead versions pile up and a key look-up
# walks all of them (0.16 → 7 ms after 150,000 updates).
_BY_PLACE = "ctid = %(ctid)s::tid AND shard = %(shard)s"
_BY_KEY = "shard = %(shard)s"


SEQUENCED, TRANSACTIONAL = "sequenced", "transactional"

RELEASE = 0
"""The job of a delta that sends rows which were parked."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of the row. `done` has been acknowledged; `next`, if any, is planned and immutable."""

    ctid: str
    shard: int
    lo: int
    hi: int
    source: str
    generation: int
    epoch: int
    delta: int
    done: Snapshot
    done_floor: int
    done_xid: str
    next: Snapshot | None
    next_floor: int | None
    next_xid: str | None
    low: int
    mode: str
    wanted_mode: str | None
    frozen: bool
    job: int | None = None
    """What the planned delta sends instead of new rows: RELEASE, or the number of a replay."""

    @property
    def buckets(self) -> tuple[int, int] | None:
        """First and last bucket of one shard of several; None where one shard carries all."""
        return None if (self.lo, self.hi) == (0, BUCKETS - 1) else (self.lo, self.hi)

    @property
    def stream(self) -> bytes:
        """The constant part of `outbox-seq` in this delta."""
        return f"{self.source}/{self.generation}/{self.shard}:{self.delta}.".encode()


class Frozen(Exception):
    """Nothing may be planned because the number of shards is being changed; nothing was changed."""


class Resharded(Exception):
    """The shards were replaced by those of a new generation; this one is over or carries other buckets."""


class ShardRow:
    """Moves one shard's row, as its owner, on one connection.

    Raises Fenced when somebody else owns the shard, Frozen or Resharded while or once the number of shards is
    changed, OutcomeUnknown when the answer is missing.
    """

    def __init__(self, connection: Connection, shard: int) -> None:
        self._connection = connection
        self._shard = shard

    def claim(self) -> Progress:
        row = self._run(CLAIM, {"shard": self._shard})
        if row is None:
            raise Fenced(f"shard {self._shard} is no longer there: the number of shards was changed")
        return row

    def read(self, state: Progress) -> Progress:
        """The row as it stands, if it is still ours."""
        return self._read(state)

    def plan(self, state: Progress, look: Look) -> Progress:
        return self._move(PLAN, state, **_seen(look))

    def confirm_and_plan(self, state: Progress, look: Look) -> Progress:
        return self._move(CONFIRM_AND_PLAN, state, **_seen(look))

    def confirm(self, state: Progress) -> Progress:
        return self._move(CONFIRM, state)

    def mark_low(self, state: Progress, low: int) -> Progress:
        return self._move(MARK_LOW, state, low=low)

    def park(self, state: Progress, low: int) -> Progress:
        return self._move(PARK, state, low=low)

    def plan_job(self, state: Progress, job: int, server: int) -> Progress:
        """Only on the `server` that was examined."""
        return self._move(PLAN_JOB, state, job=job, server=server)

    def confirm_job(self, state: Progress) -> Progress:
        return self._move(CONFIRM_JOB, state, job=state.job)

    def advance(self, state: Progress, look: Look) -> Progress:
        return self._move(ADVANCE, state, **_seen(look))

    def read_again(self, state: Progress) -> Progress:
        return self._move(READ_AGAIN, state)

    def switch(self, state: Progress) -> Progress:
        return self._move(SWITCH, state, wanted=state.wanted_mode, low=state.low)

    def new_source(self, state: Progress, timeline: int) -> Progress:
        return self._move(NEW_SOURCE, state, timeline=timeline)

    def set_common_end(self, look: Look) -> None:
        """Fix the end for all shards if nobody has; `look` saw that their number is being changed."""
        database.execute(self._connection, COMMON_END, _seen(look))

    def plan_end(self, state: Progress, upto: str, server: int) -> Progress:
        """Only on the `server` that was examined."""
        return self._move(PLAN_END, state, upto=upto, server=server)

    def _move(self, statement: str, state: Progress, **values: Any) -> Progress:
        values |= {"ctid": state.ctid, "shard": state.shard, "epoch": state.epoch, "delta": state.delta}
        for where in (_BY_PLACE, _BY_KEY):
            moved = self._run(statement.format(where=where), values)
            if moved is not None:
                return moved
        now = self._read(state)
        if now.frozen and now.delta == state.delta:
            raise Frozen
        raise _fenced(state)

    def _read(self, state: Progress) -> Progress:
        now = self._run(READ, {"shard": state.shard})
        if now is None or now.generation != state.generation:
            raise Resharded(f"shard {state.shard}: generation {state.generation} of the shards is over")
        if now.epoch != state.epoch:
            raise _fenced(state)
        return now

    def _run(self, statement: str, values: dict[str, Any]) -> Progress | None:
        row = database.execute(self._connection, statement, values).fetchone()
        return None if row is None else believed(row)


def _fenced(state: Progress) -> Fenced:
    return Fenced(
        f"shard {state.shard}: epoch {state.epoch}, delta {state.delta} is no longer current; "
        "another relay claimed it, or the server was replaced in between; nothing was changed"
    )


def _seen(look: Look) -> dict[str, Any]:
    return {
        "next": look.snapshot.text,
        "floor": look.floor,
        "at": look.at,
        "backend": look.backend,
        "server": look.server,
    }


def believed(row: tuple[Any, ...]) -> Progress:
    """The columns of ROW as one value."""
    (ctid, shard, lo, hi, source, generation, epoch, delta, done, floor, xid, *planned, low) = row[:-4]
    mode, wanted, frozen, job = row[-4:]
    following, next_floor, next_xid = planned
    return Progress(
        ctid=ctid,
        shard=shard,
        lo=lo,
        hi=hi,
        source=source,
        generation=generation,
        epoch=epoch,
        delta=delta,
        done=Snapshot(done),
        done_floor=floor,
        done_xid=xid,
        next=Snapshot(following) if following is not None else None,
        next_floor=next_floor,
        next_xid=next_xid,
        low=low,
        mode=mode,
        wanted_mode=wanted,
        frozen=frozen,
        job=job,
    )
