"""Carry out what `positions` says about an offset that cannot be read from, under the owner's fence."""

from dataclasses import dataclass, field
from datetime import timedelta

from outbox.consumer.database import Database
from outbox.consumer.partition import Partition
from outbox.consumer.place import move
from outbox.consumer.place.move import Spot
from outbox.consumer.place.position import Positions, command


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a position, and where the policy goes on; to: None stops the partition."""

    what: str
    to: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mender:
    """For one member. database: None for a group whose offsets are in Kafka; nothing is moved there."""

    group: str
    database: Database | None = None
    owner: str = ""
    patience: timedelta = timedelta(seconds=2)
    positions: Positions = field(default_factory=Positions)

    def remedy(self, problem: Problem, partition: Partition, to: str) -> str:
        """What a person can do."""
        topic, number = partition.key
        if self.database is not None:
            return (
                f"{problem.what}. To go on, run: {command('seek', self.group, topic, number, f' --to {to}')}"
            )
        return (
            f"{problem.what}. To go on, stop the group and run: kafka-consumer-groups --group {self.group} "
            f"--topic {topic}:{number} --reset-offsets --to-earliest --execute"
        )

    def below(self, position: int, oldest: int) -> Problem:
        """Kafka's oldest record is beyond the position."""
        what = (
            f"offset {position} is gone, the oldest that Kafka still has is {oldest}: retention deleted "
            f"{oldest - position} offsets before this group read them"
        )
        return Problem(what=what, to=oldest if self.positions.below == "earliest" else None)

    def above(self, position: int, end: int) -> Problem:
        """Kafka's end is before the position."""
        what = (
            f"offset {position} is beyond the end {end}: the log was truncated, or the topic was made again"
        )
        return Problem(what=what, to=end if self.positions.above == "latest" else None)

    def truncated(self, position: int, fork: int | None) -> Problem:
        """Other records stand before the position than those that were read. fork: where they begin."""
        where = "" if fork is None else f" at offset {fork}"
        what = (
            f"the log was truncated{where}, below offset {position}, and has grown since: it is another one"
        )
        return Problem(what=what, to=fork if self.positions.truncated == "fork" else None)

    def go_on(self, partition: Partition, problem: Problem) -> bool:
        """Move it as the policy says, if it is still ours. False: somebody else moved or claimed it."""
        claim, database = partition.claim, self.database
        assert claim is not None
        assert database is not None
        assert problem.to is not None
        spot = Spot(group=self.group, topic=partition.topic, partition=partition.number)
        why = f"by positions: {problem.what}"
        to = problem.to

        def go_on() -> bool:
            with database.engine.begin() as connection:
                move.bound(connection, self.patience * 4)
                row = connection.execute(move.HOLD, spot.values()).one()
                ours = (row.owner_epoch, row.next_offset) == (claim.epoch, partition.expected)
                if ours:
                    move.go_on(connection, spot, origin=row.next_offset, to=to, who=self.owner, why=why)
                return ours

        moved = database.transact(go_on)
        if moved:
            move.say(spot, to, why)
        return moved
