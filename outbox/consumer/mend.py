"""Carry out what `positions` says about an offset that cannot be read from, under the owner's fence."""

from dataclasses import dataclass
from datetime import timedelta

from outbox.consumer import move
from outbox.consumer.database import Database
from outbox.consumer.move import Spot
from outbox.consumer.partition import Partition
from outbox.consumer.position import Positions, command


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a position, and where the policy goes on; to: None stops the partition."""

    what: str
    to: int | None

    def remedy(self, group: str, partition: Partition, to: str) -> str:
        return f"{self.what}. To go on, run: {command('seek', group, *partition.key, f' --to {to}')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mender:
    """For one member."""

    database: Database
    group: str
    owner: str
    patience: timedelta
    positions: Positions

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
        claim = partition.claim
        assert claim is not None
        assert problem.to is not None
        spot = Spot(group=self.group, topic=partition.topic, partition=partition.number)
        why = f"by positions: {problem.what}"
        to = problem.to

        def go_on() -> bool:
            with self.database.engine.begin() as connection:
                move.bound(connection, self.patience * 4)
                row = connection.execute(move.HOLD, spot.values()).one()
                ours = (row.owner_epoch, row.next_offset) == (claim.epoch, partition.expected)
                if ours:
                    move.go_on(connection, spot, origin=row.next_offset, to=to, who=self.owner, why=why)
                return ours

        moved = self.database.transact(go_on)
        if moved:
            move.say(spot, to, why)
        return moved
