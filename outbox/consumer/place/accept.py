"""Say that the topic which is there now is the one to read, where its offsets mean other records than stored.

Marks stay, so what was applied is dropped when its relay sends it again, unless the topic has another number
of partitions: then keys are elsewhere, and marks would drop what was never applied. Parked records keep
waiting, before everything that is read.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox.consumer.database import Database
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.place import move
from outbox.consumer.place.move import Spot
from outbox.consumer.place.position import Misplaced
from outbox.consumer.place.seek import Access, Goal, myself, resolve, settle

# Promise: partitions that are added from now on are noticed. Served by the primary key.
COUNT = text("UPDATE consumer_offset SET partitions = :partitions WHERE grp = :grp AND topic = :topic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of one partition. origin: its offset before, None if it had none. to: None if it stays."""

    topic: str
    partition: int
    origin: int | None
    to: int | None
    why: str


def accept(
    database: Database,
    access: Access,
    *,
    group: str,
    topic: str,
    to: Goal = "beginning",
    dry_run: bool = False,
    who: str | None = None,
) -> list[Accepted]:
    """Go on in the topic that is there: `to` in partitions whose offset meant another one, and the oldest
    record of those that were added. Raises ConfigurationError, Misplaced or Fenced; nothing was changed then.
    """
    identity = access.look([topic])[topic]
    with access.scouting() as scout:
        goals = resolve(scout, topic, to)
        oldest = {number: scout.bounds(topic, number).oldest for number, _ in goals}
    by = who or myself()

    def work(connection: Connection) -> list[Accepted]:
        done = []
        for number, goal in goals:
            spot = Spot(group=group, topic=topic, partition=number)
            done.append(_one(connection, spot, identity, goal, oldest[number], by, dry_run=dry_run))
        if not dry_run:
            connection.execute(COUNT, {"grp": group, "topic": topic, "partitions": identity.partitions})
        return done

    accepted = settle(database, work)
    if not dry_run:
        for each in accepted:
            if each.to is not None:
                move.say(Spot(group=group, topic=topic, partition=each.partition), each.to, each.why)
    return accepted


def _one(
    connection: Connection,
    spot: Spot,
    identity: TopicIdentity,
    goal: int,
    oldest: int,
    by: str,
    *,
    dry_run: bool,
) -> Accepted:
    row = connection.execute(move.HOLD, spot.values()).one_or_none()
    if row is None:
        why = "accepted: a partition that was added"
        if not dry_run:
            move.place(connection, spot, to=oldest, who=by, why=why, identity=identity)
        return Accepted(topic=spot.topic, partition=spot.partition, origin=None, to=oldest, why=why)
    if row.retired is not None:
        raise Misplaced(f"group {spot.group} is retired: {row.retired}", moves=row.moves)
    if identity.agrees(TopicIdentity(row.cluster_id, row.topic_id)):
        return Accepted(
            topic=spot.topic, partition=spot.partition, origin=row.next_offset, to=None, why="it is the same"
        )
    difference = identity.difference(spot.topic, cluster_id=row.cluster_id, topic_id=row.topic_id)
    moved_keys = row.partitions is not None and row.partitions != identity.partitions
    why = f"accepted: {difference}" + (" Its marks are forgotten, for keys moved." if moved_keys else "")
    if not dry_run:
        move.go_on(
            connection,
            spot,
            origin=row.next_offset,
            to=goal,
            who=by,
            why=why,
            identity=identity,
            forget_marks=moved_keys,
        )
    return Accepted(topic=spot.topic, partition=spot.partition, origin=row.next_offset, to=goal, why=why)
