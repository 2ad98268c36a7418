"""Let a group that built a new version beside the old take its place, in one transaction.

The old group is held where it is; the new one catches up with it, everything is checked under locks, readers
are led to the new tables, and the old group is retired: it applies nothing any more, whoever still runs it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import hooks
from outbox.consumer.database import Database
from outbox.consumer.place.seek import PATIENCE, myself, settle
from outbox.errors import ConfigurationError, OutboxError

log = logging.getLogger(__name__)

CATCH_UP = timedelta(seconds=10)
"""How long the old group stands still while the new one reads what is missing."""

LOOK = 0.05
"""Seconds between two looks at how far it is."""

# Promise: the old group's offsets stand from now on. Served by the primary key.
HOLD = text("""
SELECT topic, partition, next_offset, cluster_id, topic_id, run_up, parked, retired
FROM consumer_offset WHERE grp = :grp ORDER BY topic, partition FOR UPDATE
""")

LOOK_AT = text("""
SELECT topic, partition, next_offset, cluster_id, topic_id, run_up, parked, retired
FROM consumer_offset WHERE grp = :grp ORDER BY topic, partition
""")

# Promise: whatever of it is under way changes nothing, and no claim of it succeeds again. Its ids are needed
# no more.
RETIRE = text("""
UPDATE consumer_offset
SET owner_epoch = owner_epoch + 1, owner = NULL, backend_pid = NULL, moves = moves + 1,
    moved_at = clock_timestamp(), moved_by = :who, moved_why = :why, retired = :why,
    inbox_window = NULL,
    updated_at = clock_timestamp()
WHERE grp = :grp AND set_config('synchronous_commit', 'on', true) = 'on'
""")


class NotCaughtUp(OutboxError):
    """The new group has not applied what the old one has. Nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """The old group's offsets at the end, and the new group's, as (topic, partition, old, new)."""

    partitions: tuple[tuple[str, int, int, int], ...]


def switch(
    database: Database,
    *,
    old: str,
    new: str,
    swap: Callable[[Connection], object],
    catch_up: timedelta = CATCH_UP,
    dry_run: bool = False,
    who: str | None = None,
) -> Switched:
    """Run `swap` (redefine a view, rename tables) in the transaction that retires the old group.

    catch_up: how long the old group is held while the new one comes up to it.
    Raises NotCaughtUp, ConfigurationError or Fenced; nothing was changed then.
    """
    if old == new:
        raise ConfigurationError(f"{old} cannot take its own place; name two groups")
    why = f"switched over to {new}"

    def work(connection: Connection) -> Switched:
        held = connection.execute(HOLD, {"grp": old}).all()
        _may_be_left(old, held)
        end = time.monotonic() + (0.0 if dry_run else catch_up.total_seconds())
        while True:
            behind = _behind(held, connection.execute(LOOK_AT, {"grp": new}).all(), new)
            if not behind:
                break
            if time.monotonic() >= end:
                raise NotCaughtUp(
                    f"group {new} cannot take the place of {old} yet: {'; '.join(behind[:5])}. See: "
                    f"outbox-relay consumers list --group {new}"
                )
            time.sleep(LOOK)
        taken = connection.execute(HOLD, {"grp": new}).all()
        behind = _behind(held, taken, new)
        if behind:
            raise NotCaughtUp(f"group {new} was moved meanwhile: {'; '.join(behind[:5])}")
        if not dry_run:
            swap(connection)
            connection.execute(RETIRE, {"grp": old, "who": who or myself(), "why": why})
        offsets = {(row.topic, row.partition): row.next_offset for row in taken}
        return Switched(
            partitions=tuple(
                (row.topic, row.partition, row.next_offset, offsets[row.topic, row.partition]) for row in held
            )
        )

    switched = settle(database, work, patience=max(PATIENCE, catch_up))
    if not dry_run:
        log.warning("group %s: %s", old, why)
        hooks.fire("consumer.switched", old=old, new=new)
    return switched


def _may_be_left(old: str, rows: Sequence[Row[Any]]) -> None:
    if not rows:
        raise ConfigurationError(f"group {old} has read nothing; see: outbox-relay consumers list")
    retired = next((row.retired for row in rows if row.retired is not None), None)
    if retired is not None:
        raise ConfigurationError(f"group {old} is retired already: {retired}")


def _behind(old: Sequence[Row[Any]], new: Sequence[Row[Any]], group: str) -> list[str]:
    """What the new group lacks, in words."""
    there = {(row.topic, row.partition): row for row in new}
    lacks = []
    for row in old:
        place, mine = f"{row.topic}[{row.partition}]", there.get((row.topic, row.partition))
        if mine is None:
            lacks.append(f"{place} was never read by {group}")
        elif mine.retired is not None:
            lacks.append(f"{place}: {group} is retired itself: {mine.retired}")
        elif (mine.cluster_id, mine.topic_id) != (row.cluster_id, row.topic_id):
            lacks.append(f"{place}: the groups' offsets mean different topics")
        elif mine.next_offset < row.next_offset:
            lacks.append(f"{place} is at {mine.next_offset} of {row.next_offset}")
        elif mine.run_up is not None:
            lacks.append(f"{place} rebuilds its marks")
        elif mine.parked:
            lacks.append(f"{place} has {mine.parked} parked records, which are not applied")
    return lacks
