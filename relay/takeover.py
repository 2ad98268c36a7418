"""Take a shard over, and change its mode, without sending again what Kafka has committed.

The order is the point. Claim (the row's former owners can write nothing more) ▸ fence (they can commit
nothing more in Kafka) ▸ read the progress topic ▸ read the row again, under our epoch. A row read before the
topic would be older than the record beside it whenever somebody claimed in between.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection

from outbox import hooks
from outbox.errors import Fenced, GuardViolation
from outbox.record import Seq
from relay import database, points
from relay.database import Connection
from relay.producers import Names, Producer, Recorded, RecordingProducer, Target, Unsettled
from relay.progress import TRANSACTIONAL, Progress, ShardRow

log = logging.getLogger("relay.shard")


class ModeWanted(Exception):
    """Somebody asked for another mode, and nothing is under way: claim anew and change it.

    `inside`: the row when nothing of its delta beyond `low` was given to any producer.
    """

    def __init__(self, inside: Progress | None = None) -> None:
        super().__init__("another mode is wanted")
        self.inside = inside


SWITCH_AGAIN = 10.0
"""Seconds before a mode that could not be had is tried again; the shard goes on in the one it has."""

WHO = """
SELECT s.mode, (SELECT system_identifier FROM pg_control_system()),
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database())
FROM outbox_shard s WHERE s.shard = %(shard)s
"""
"""The mode stands in the row, never in a setting: two relays with two opinions would undo each other."""


def who(connection: Connection, shard: int) -> tuple[str, Names]:
    """The shard's mode, and what it is called in Kafka."""
    row = database.execute(connection, WHO, {"shard": shard}).fetchone()
    if row is None:
        raise Fenced(f"shard {shard} is no longer there: the number of shards was changed")
    mode, system, oid = row
    return mode, Names(system, oid, shard)


def take_over(
    row: ShardRow,
    state: Progress,
    producer: Producer,
    alive: Callable[[], bool],
    *,
    wrote: Collection[Target],
    failed_over: bool,
    lossy: bool,
) -> Progress:
    """The claimed row with what Kafka knows beyond it. Raises Fenced, Interrupted or GuardViolation."""
    committed = producer.take_over(alive, known=recorded(state), wrote=wrote)
    if committed is not None:
        state = reconcile(row.read_again(state), committed, failed_over=failed_over, lossy=lossy)
        hooks.fire(points.TAKEN_OVER, shard=state.shard, low=state.low)
    return state


def reconcile(state: Progress, recorded: Recorded, *, failed_over: bool, lossy: bool = False) -> Progress:
    """What is acknowledged, by the row and by the last committed record. The row is a lower bound.

    `failed_over`: the server is another one than the shard's last plan was made on, and may lack plans.
    `lossy`: it may also lack that a row was set aside. The record reaches beyond such a row, so only the row
    of the shard is believed, and what Kafka has beyond it goes out again under the same numbers.
    """
    seq = recorded.seq
    if seq.source != state.source or seq.generation < state.generation:
        return state  # nothing is committed yet under the row's own name
    if (seq.generation, seq.delta) > (state.generation, state.delta):
        if not failed_over:
            raise _contradiction(
                state, recorded, f"generation {seq.generation}, delta {seq.delta} was never planned here"
            )
        log.warning(
            "shard %d: the failed server had planned up to delta %d of generation %d, this one knows %d of "
            "%d; events of the plans that are lost go out again, under a new source%s",
            state.shard,
            seq.delta,
            seq.generation,
            state.delta,
            state.generation,
            "; the number of shards is as before" if seq.generation > state.generation else "",
        )
        if lossy or state.next_floor is None or state.job is not None:
            # A job's delta may be over with rows of it unsent: refused ones stay, and what is behind them.
            return state
        # A delta of events is planned only when the one before it is in, a generation begun when all are.
        return dataclasses.replace(state, low=state.next_floor)
    if seq.delta < state.delta or state.next is None:
        return state
    if recorded.next != state.next.text:
        raise _contradiction(state, recorded, "its plan is another one")
    return state if lossy else dataclasses.replace(state, low=max(state.low, seq.position))


def switchable(state: Progress, inside: Progress | None) -> bool:
    """May the mode be changed at this row?

    Between deltas. Inside one only where its owner stood before the row and nobody came in between: what
    else was sent of a delta in mode sequenced, nobody knows. And a transactional shard that is to go on from
    its row may do so wherever that stands.
    """
    anew = state.mode == state.wanted_mode
    if state.wanted_mode is None or (state.frozen and not anew):
        return False
    stood = inside is not None and (inside.delta, inside.low, inside.epoch + 1) == (
        state.delta,
        state.low,
        state.epoch,
    )
    return state.next is None or anew or stood


def switch(
    row: ShardRow,
    state: Progress,
    producer: RecordingProducer,
    alive: Callable[[], bool],
    *,
    wrote: Collection[Target],
) -> None:
    """Give a `switchable` shard its wanted mode; claim anew afterwards. After a crash it is done again."""
    assert state.wanted_mode is not None
    if state.mode == TRANSACTIONAL and state.wanted_mode != TRANSACTIONAL:
        try:
            # In the other mode nobody looks for transactions that the brokers forgot, nor makes up for them.
            _leave(state, producer, alive, wrote)
        except GuardViolation as lost:
            log.warning("shard %d: what its transactions left open is not known: %s", state.shard, lost)
    else:
        producer.fence(alive)
    if state.wanted_mode == TRANSACTIONAL:
        # Under our epoch still: otherwise this record would come behind those of the right owner.
        state = row.read_again(state)
        producer.begin(recorded(state), alive)
        hooks.fire(points.RECORDED, shard=state.shard)
    row.switch(state)
    hooks.fire(points.SWITCHED, shard=state.shard, mode=state.wanted_mode)
    log.info("shard %d: mode %s follows %s", state.shard, state.wanted_mode, state.mode)


def _leave(
    state: Progress, producer: RecordingProducer, alive: Callable[[], bool], wrote: Collection[Target]
) -> None:
    while True:
        producer.take_over(alive, known=recorded(state), wrote=wrote)
        try:
            producer.leave(alive)
            return
        except Unsettled as unsettled:
            if not unsettled.expected:
                raise


def recorded(state: Progress) -> Recorded:
    """The progress record that says what the row says."""
    seq = Seq(state.source, state.generation, state.shard, state.delta, state.low)
    return Recorded(seq, state.done.text, None if state.next is None else state.next.text)


def _contradiction(state: Progress, recorded: Recorded, what: str) -> GuardViolation:
    return GuardViolation(
        f"shard {state.shard}: the last record in the progress topic is {recorded.seq.encode().decode()}, "
        f"the row says {state.stream.decode()}{state.low}: {what}. The database was set back, or the "
        "topic is another database's. To go on from the row, which can repeat events, run: "
        f"outbox-relay shards mode transactional --from-row --shard {state.shard}"
    )
