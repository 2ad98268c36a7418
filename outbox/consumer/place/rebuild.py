"""Make a projection anew from its history: its tables are emptied and every partition goes back, or nothing.

The group's rows are locked first, so no batch of it is under way when the tables are emptied, and none that
was polled before can store anything afterwards. What follows is ordinary consuming, from the beginning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, Table, text

from outbox.consumer.database import Database
from outbox.consumer.place import move
from outbox.consumer.place.move import Spot
from outbox.consumer.place.position import Misplaced
from outbox.consumer.place.seek import PATIENCE, Access, Moved, check, moved, myself, settle
from outbox.errors import ConfigurationError

# Promise: all partitions of the group at once, those too that no topic of its handlers has any more. Served
# by the primary key.
HOLD_ALL = text("""
SELECT topic, partition, next_offset, owner, moves, parked AS forgotten, retired, cluster_id, topic_id
FROM consumer_offset WHERE grp = :grp ORDER BY topic, partition FOR UPDATE
""")

MAY_TRUNCATE = text("SELECT has_table_privilege(CAST(:name AS text), 'TRUNCATE')")

STANDS = text("SELECT topic, partition, next_offset, run_up FROM consumer_offset WHERE grp = :grp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilding:
    """What was begun, or with dry_run would be. ends: the offsets up to which there is history, as (topic,
    partition) to the end at that moment."""

    tables: tuple[str, ...]
    moved: tuple[Moved, ...]
    ends: dict[tuple[str, int], int]

    @property
    def records(self) -> int:
        """How many offsets are read again, to catch up with the moment it began."""
        return sum(self.ends[m.topic, m.partition] - m.to for m in self.moved)


def rebuild(
    database: Database,
    access: Access,
    *,
    group: str,
    topics: Sequence[str],
    tables: Sequence[Table],
    incomplete: bool = False,
    dry_run: bool = False,
    who: str | None = None,
    patience: timedelta = PATIENCE,
) -> Rebuilding:
    """Empty the tables and send the group back to the oldest records, in one transaction.

    incomplete: also if retention has deleted the beginning of the history, which then is missing.
    Raises ConfigurationError, GuardViolation or Fenced; nothing was changed then.
    """
    if not tables:
        raise ConfigurationError(
            "this consumer names no tables; say which ones its handlers fill: Consumer(..., "
            "projection=[Invoice])"
        )
    identities = access.look(topics)
    goals, ends = _history(access, group, topics, incomplete=incomplete)
    by, why = who or myself(), f"rebuild of {', '.join(table.fullname for table in tables)}"

    def work(connection: Connection) -> list[Moved]:
        found = connection.execute(HOLD_ALL, {"grp": group})
        rows = {Spot(group=group, topic=row.topic, partition=row.partition): row for row in found}
        for spot in goals:
            if spot in rows:
                check(spot, rows[spot], identities[spot.topic])
        if not dry_run:
            for spot, to in goals.items():
                if spot in rows:
                    origin = rows[spot].next_offset
                    move.reread(connection, spot, origin=origin, to=to, who=by, why=why)
                elif not move.place(
                    connection, spot, to=to, who=by, why=why, identity=identities[spot.topic]
                ):
                    raise Misplaced(f"{spot} was just read for the first time; try again", moves=None)
            _empty(connection, tables)
        return [moved(spot, rows.get(spot), to) for spot, to in goals.items()]

    done = settle(database, work, patience=patience)
    if not dry_run:
        for spot, to in goals.items():
            move.say(spot, to, why)
    return Rebuilding(tables=tuple(table.fullname for table in tables), moved=tuple(done), ends=ends)


def _history(
    access: Access, group: str, topics: Sequence[str], *, incomplete: bool
) -> tuple[dict[Spot, int], dict[tuple[str, int], int]]:
    """Each partition's oldest offset, and its end."""
    goals: dict[Spot, int] = {}
    ends: dict[tuple[str, int], int] = {}
    with access.scouting() as scout:
        for topic in topics:
            for number in scout.partitions(topic):
                bounds = scout.bounds(topic, number)
                goals[Spot(group=group, topic=topic, partition=number)] = bounds.oldest
                ends[topic, number] = scout.last(topic, number, bounds)
    gone = [f"{spot.topic}[{spot.partition}] begins at {to}" for spot, to in goals.items() if to]
    if gone and not incomplete:
        raise ConfigurationError(
            f"the history is not whole any more, retention deleted its beginning: {', '.join(gone[:5])}; "
            "rebuild from what is left with --incomplete, or restore the tables from elsewhere"
        )
    return goals, ends


def topics_read(database: Database, group: str) -> list[str]:
    """Those of which the group has rows."""

    def look(connection: Connection) -> list[str]:
        return sorted({row.topic for row in connection.execute(STANDS, {"grp": group})})

    return settle(database, look)


def left(database: Database, group: str, rebuilding: Rebuilding) -> int:
    """How many offsets are still to be read until the tables are as they were when it began."""

    def look(connection: Connection) -> dict[tuple[str, int], Row[Any]]:
        return {(row.topic, row.partition): row for row in connection.execute(STANDS, {"grp": group})}

    stands = settle(database, look)
    return sum(
        max(0, end - stands[place].next_offset) + int(stands[place].run_up is not None)
        for place, end in rebuilding.ends.items()
        if place in stands
    )


def as_tables(given: Iterable[object]) -> tuple[Table, ...]:
    """Tables, or mapped classes of one. Raises ConfigurationError."""
    tables = []
    for each in given:
        table = each if isinstance(each, Table) else getattr(each, "__table__", None)
        if not isinstance(table, Table):
            raise ConfigurationError(
                f"projection holds {each!r}, which is neither a Table nor a mapped class"
            )
        tables.append(table)
    return tuple(tables)


def _empty(connection: Connection, tables: Sequence[Table]) -> None:
    """TRUNCATE where this role may, which takes no time; otherwise DELETE, referencing tables first."""
    quote = connection.dialect.identifier_preparer.format_table
    names = [quote(table) for table in tables]
    if all(connection.scalar(MAY_TRUNCATE, {"name": name}) for name in names):
        connection.execute(text(f"TRUNCATE {', '.join(names)}"))
        return
    ordered = tables[0].metadata.sorted_tables if len({t.metadata for t in tables}) == 1 else list(tables)
    for table in reversed([table for table in ordered if table in tables]):
        connection.execute(table.delete())
