"""A record that waits: stored as it was read, so that the same handler can run it later.

A key that has a parked record keeps its order: its later records queue behind, in the transaction that moves
the offset past them. A record without a key holds nobody but itself.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, text

from outbox.consumer.claim import Claim
from outbox.consumer.handlers import Run
from outbox.consumer.record import Polled, headers_of
from outbox.errors import OutboxError

# Promise: which of these keys have a record that waits. Served by index consumer_parked_key; asked only by a
# partition that has parked records, inside the transaction that moves its offset.
HELD = text("""
SELECT DISTINCT key FROM consumer_parked
WHERE grp = :grp AND topic = :topic AND partition = :partition AND state <> 'discarded' AND key = ANY (:keys)
""")

PARK = text("""
INSERT INTO consumer_parked (grp, topic, partition, record_offset, key, value, header_names, header_values,
    timestamp_kind, timestamp_ms, state, error, attempts)
VALUES (:grp, :topic, :partition, :record_offset, :key, :value, :header_names, :header_values,
    :timestamp_kind, :timestamp_ms, :state, :error, :attempts)
""")

# The row is locked by this transaction already: it has moved the offset.
COUNT = text("""
UPDATE consumer_offset SET parked = parked + :more
WHERE grp = :grp AND topic = :topic AND partition = :partition
""")

# Promise: takes back only what this very transaction queued: all that it found was before these offsets.
# Served by the primary key.
UNQUEUE = text("""
DELETE FROM consumer_parked
WHERE grp = :grp AND topic = :topic AND partition = :partition AND record_offset >= :offset
  AND state = 'queued'
""")


class State(enum.StrEnum):
    """Why a record is parked."""

    FAILED = "failed"
    QUEUED = "queued"
    DISCARDED = "discarded"


class TooManyParked(OutboxError):
    """One more parked record would pass the limit; the partition stops instead."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A parked record; it has the methods of a polled one that handlers are given values from."""

    stored_topic: str
    stored_partition: int
    stored_offset: int
    stored_key: bytes | None
    stored_value: bytes | None
    stored_headers: list[tuple[str, bytes | None]]
    stored_timestamp: tuple[int, int]

    def topic(self) -> str:
        return self.stored_topic

    def partition(self) -> int:
        return self.stored_partition

    def offset(self) -> int:
        return self.stored_offset

    def key(self) -> bytes | None:
        return self.stored_key

    def value(self) -> bytes | None:
        return self.stored_value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self.stored_headers

    def timestamp(self) -> tuple[int, int]:
        return self.stored_timestamp


def stored(topic: str, partition: int, row: Any) -> Polled:
    """The record in a row of consumer_parked."""
    return cast(
        Polled,
        Stored(
            topic,
            partition,
            row.record_offset,
            row.key,
            row.value,
            list(zip(row.header_names, row.header_values, strict=True)),
            (row.timestamp_kind, row.timestamp_ms),
        ),
    )


def place(claim: Claim) -> dict[str, Any]:
    """The partition's key, as the statements name it."""
    return {"grp": claim.group, "topic": claim.topic, "partition": claim.partition}


def park(
    connection: Connection,
    claim: Claim,
    messages: Sequence[Polled],
    state: State,
    *,
    error: str | None = None,
    attempts: int = 0,
) -> None:
    """Store records in the transaction that moves the offset past them."""
    where = place(claim)
    rows = [
        where | _row(message) | {"state": state.value, "error": error, "attempts": attempts}
        for message in messages
    ]
    connection.execute(PARK, rows)
    connection.execute(COUNT, where | {"more": len(rows)})


def queue(connection: Connection, claim: Claim, runs: list[Run], *, room: int) -> tuple[list[Run], int]:
    """Park what is behind a parked record of its key; returns what may run, and how many were parked.

    Raises TooManyParked when there is `room` for fewer.
    """
    keys = {message.key() for run in runs for message in run.messages} - {None}
    found = connection.execute(HELD, place(claim) | {"keys": list(keys)}).scalars()
    held = {bytes(key) for key in found}
    if not held:
        return runs, 0
    waiting = [message for run in runs for message in run.messages if message.key() in held]
    if len(waiting) > room:
        raise TooManyParked(
            f"{len(waiting)} more records would wait behind parked ones of their keys, more than max_parked "
            "allows; release or discard parked records first: outbox-relay consumers parked list"
        )
    park(connection, claim, waiting, State.QUEUED)
    free = [Run(run.route, [m for m in run.messages if m.key() not in held]) for run in runs]
    return [run for run in free if run.messages], len(waiting)


def unqueue(connection: Connection, claim: Claim, offset: int) -> int:
    """Take back what this transaction queued from `offset` on; returns how many records that were."""
    where = place(claim)
    count = connection.execute(UNQUEUE, where | {"offset": offset}).rowcount
    connection.execute(COUNT, where | {"more": -count})
    return count


def _row(message: Polled) -> dict[str, Any]:
    headers = headers_of(message)
    kind, milliseconds = message.timestamp()
    return {
        "record_offset": message.offset(),
        "key": message.key(),
        "value": message.value(),
        "header_names": [name for name, _ in headers],
        "header_values": [value for _, value in headers],
        "timestamp_kind": kind,
        "timestamp_ms": milliseconds,
    }
