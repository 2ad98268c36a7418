"""Read a topic again, or go on further ahead: from a record, a moment or an event, while the group runs.

All partitions move in one transaction, which raises their epochs like a claim: batches under way either ended
before it or change nothing. Members notice within a second, or begin there when they start.
"""

import getpass
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar
from uuid import UUID

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from outbox.consumer.assignment import describe
from outbox.consumer.database import Database
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.outcome import sqlstate
from outbox.consumer.place import move
from outbox.consumer.place.move import Spot
from outbox.consumer.place.position import Misplaced, command
from outbox.consumer.place.scout import Scout, milliseconds, scouting
from outbox.consumer.properties import admin_properties
from outbox.consumer.record import headers_of
from outbox.errors import ConfigurationError, Fenced
from outbox.record import ID

Goal = Literal["beginning", "end"] | int | datetime | UUID
"""Where to read from: the oldest record, behind the newest, an offset, the first record of that time or
later, or the record of the event with this id."""

T = TypeVar("T")

PATIENCE = timedelta(seconds=60)
"""How long a batch under way may hold a row before the move gives up."""

DEADLOCKS = 5
"""Times that the move is tried again: a batch may lock its partitions in another order."""

EARLIER = timedelta(minutes=5)
"""Before the time in an event's id, for clocks that differ."""

LOOK = text("""
SELECT next_offset, owner, moves, retired, cluster_id, topic_id, partitions,
    (SELECT count(*) FROM consumer_parked p
     WHERE p.grp = o.grp AND p.topic = o.topic AND p.partition = o.partition
       AND p.record_offset >= :to AND p.state <> 'discarded') AS forgotten
FROM consumer_offset o WHERE grp = :grp AND topic = :topic AND partition = :partition
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach the brokers of a group."""

    properties: Mapping[str, Any]
    new_client: Callable[[dict[str, Any]], KafkaConsumer]
    new_identities: Callable[[Mapping[str, Any]], Identities]

    def look(self, topics: Sequence[str]) -> dict[str, TopicIdentity]:
        """Which topics these are. Raises ConfigurationError."""
        try:
            found = self.new_identities(admin_properties(self.properties)).look(topics)
        except KafkaException as error:
            raise ConfigurationError(
                f"the brokers do not say which topics these are: {describe(error)}"
            ) from error
        known = {}
        for topic in topics:
            identity = found.get(topic)
            if identity is None or isinstance(identity, TopicMissing):
                raise ConfigurationError(f"the brokers know no topic {topic}, or do not describe it to us")
            known[topic] = identity
        return known

    @contextmanager
    def scouting(self) -> Iterator[Scout]:
        """A scout while inside; what the brokers refuse becomes a ConfigurationError."""
        try:
            with scouting(self.properties, self.new_client) as scout:
                yield scout
        except KafkaException as error:
            raise ConfigurationError(f"the brokers do not answer: {describe(error)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One partition: `origin` to `to`. origin: None if the group never read it. owner: who held it then.
    forgotten: parked records that are read again."""

    topic: str
    partition: int
    origin: int | None
    to: int
    owner: str | None
    forgotten: int


def parse(given: str) -> Goal:
    """A goal as people type it: beginning, end, an offset, a time with its zone, event:ID."""
    if given in ("beginning", "end"):
        return "beginning" if given == "beginning" else "end"
    if given.isdigit():
        return int(given)
    kind, colon, rest = given.partition(":")
    try:
        if colon and kind == "event":
            return UUID(rest)
        when = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigurationError(
            f"{given!r} is no place; write beginning, end, an offset, a time such as 2026-05-01T00:00Z, or "
            "event:ID"
        ) from None
    if when.tzinfo is None:
        raise ConfigurationError(f"{given!r} has no time zone; write {given}Z or {given}+02:00")
    return when


def myself() -> str:
    """Who moves it, for people reading the row."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def seek(
    database: Database,
    access: Access,
    *,
    group: str,
    topic: str,
    to: Goal,
    partition: int | None = None,
    dry_run: bool = False,
    who: str | None = None,
) -> list[Moved]:
    """Move the topic's partitions, or one of them; returns where each went, or with dry_run would go.

    Raises ConfigurationError for what is not there, Misplaced where the stored offsets mean another topic,
    Fenced if batches held the rows too long. Nothing was changed then.
    """
    identity = access.look([topic])[topic]
    with access.scouting() as scout:
        goals = resolve(scout, topic, to, partition)
    why = f"seek to {to}"
    spots = [(Spot(group=group, topic=topic, partition=number), goal) for number, goal in goals]
    if dry_run:
        return settle(database, lambda c: [_look(c, spot, goal, identity) for spot, goal in spots])

    def work(connection: Connection) -> list[Moved]:
        return [_move(connection, spot, goal, identity, who or myself(), why) for spot, goal in spots]

    moved = settle(database, work)
    for each in moved:
        move.say(Spot(group=group, topic=topic, partition=each.partition), each.to, why)
    return moved


def settle(database: Database, work: Callable[[Connection], T], *, patience: timedelta = PATIENCE) -> T:
    """Do the work in one transaction that waits for rows, but not for ever. Raises Fenced."""

    def once() -> T:
        with (
            database.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection,
            connection.begin(),
        ):
            move.bound(connection, patience)
            return work(connection)

    for attempt in range(1, DEADLOCKS + 1):
        try:
            return database.transact(once)
        except DBAPIError as error:
            state = sqlstate(error)
            if state == "55P03":
                raise Fenced(
                    f"a batch held its partition for more than {patience.total_seconds():g} s; nothing was "
                    "changed, try again or stop the consumers first"
                ) from error
            if state == "57P01":
                raise Fenced(
                    "a member took a partition over meanwhile, without waiting; nothing was changed; try it"
                    " again"
                ) from error
            if state != "40P01" or attempt == DEADLOCKS:
                raise
    raise AssertionError("the last attempt returns or raises")


def resolve(scout: Scout, topic: str, to: Goal, partition: int | None = None) -> list[tuple[int, int]]:
    """The goal as an offset, for each partition that it concerns. Raises ConfigurationError."""
    there = scout.partitions(topic)
    if partition is not None and partition not in there:
        raise ConfigurationError(f"topic {topic} has no partition {partition}, it has {len(there)}")
    chosen = there if partition is None else [partition]
    if isinstance(to, UUID):
        return [_find(scout, topic, chosen, to)]
    if isinstance(to, int) and partition is None:
        raise ConfigurationError("an offset means something in one partition only; name it with partition")
    return [(number, _offset(scout, topic, number, to)) for number in chosen]


def _offset(scout: Scout, topic: str, partition: int, to: int | str | datetime) -> int:
    oldest, end = scout.bounds(topic, partition)
    match to:
        case "beginning":
            return oldest
        case "end":
            return end
        case datetime():
            found = scout.at(topic, partition, milliseconds(to))
            return end if found is None else found
        case int():
            if not oldest <= to <= end:
                raise ConfigurationError(
                    f"{topic}[{partition}] has no offset {to}: Kafka still has {oldest} to {end}"
                )
            return to
        case _:
            raise ConfigurationError(f"{to!r} is no place in a topic")


def _find(scout: Scout, topic: str, partitions: Sequence[int], event: UUID) -> tuple[int, int]:
    """The first record of the event. Where its id tells the time (version 7) the search begins there."""
    since = (event.int >> 80) - int(EARLIER.total_seconds() * 1000)
    ranges = {p: scout.bounds(topic, p) for p in partitions}
    starts = {p: scout.at(topic, p, since) if event.version == 7 else None for p in partitions}
    wanted = str(event).encode()
    likely = [(p, starts[p] or ranges[p].oldest, ranges[p].end) for p in partitions]
    rest = [(p, ranges[p].oldest, start) for p, start in starts.items() if start is not None]
    for partition, first, last in (*likely, *rest):
        for chunk in scout.read(topic, partition, first, last):
            for record in chunk.records:
                if any(name == ID and value == wanted for name, value in headers_of(record)):
                    offset = record.offset()
                    assert offset is not None
                    return partition, offset
    where = f"partition {partitions[0]} of topic" if len(partitions) == 1 else "topic"
    raise ConfigurationError(f"no record of event {event} is in {where} {topic}, as far back as Kafka has it")


def _look(connection: Connection, spot: Spot, to: int, identity: TopicIdentity) -> Moved:
    row = connection.execute(LOOK, spot.values() | {"to": to}).one_or_none()
    if row is not None:
        check(spot, row, identity)
    return moved(spot, row, to)


def _move(connection: Connection, spot: Spot, to: int, identity: TopicIdentity, who: str, why: str) -> Moved:
    while connection.execute(move.HOLD, spot.values()).one_or_none() is None:
        if move.place(connection, spot, to=to, who=who, why=why, identity=identity):
            return moved(spot, None, to)
    row = connection.execute(LOOK, spot.values() | {"to": to}).one()
    check(spot, row, identity)
    move.reread(connection, spot, origin=row.next_offset, to=to, who=who, why=why)
    return moved(spot, row, to)


def check(spot: Spot, row: Row[Any], identity: TopicIdentity) -> None:
    """Does the row mean the topic that is there, and may it move? Raises Misplaced."""
    if row.retired is not None:
        raise Misplaced(f"group {spot.group} is retired: {row.retired}", moves=row.moves)
    if not identity.agrees(TopicIdentity(row.cluster_id, row.topic_id)):
        raise Misplaced(
            f"{identity.difference(spot.topic, cluster_id=row.cluster_id, topic_id=row.topic_id)} The stored "
            f"offset means other records. To read what is there now, run: "
            f"{command('accept', spot.group, spot.topic)}",
            moves=row.moves,
        )


def moved(spot: Spot, row: Row[Any] | None, to: int) -> Moved:
    """As told of one partition; `forgotten` of the row: how many parked records that takes."""
    return Moved(
        topic=spot.topic,
        partition=spot.partition,
        origin=None if row is None else row.next_offset,
        to=to,
        owner=None if row is None else row.owner,
        forgotten=0 if row is None else row.forgotten,
    )
