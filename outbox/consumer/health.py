"""What a consumer is doing, as values for people, probes and metrics."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from outbox.consumer.figures import ClientFigures
from outbox.consumer.partition import Partition, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionHealth:
    """One partition. next_offset: the first offset not applied yet, None while
    it is not ours. lag: offsets between it and the end of what can be read, as the Kafka client last saw it;
    None: not seen yet. parked: records of it that wait in the database. applied: records done with since this
    member has it; applied_at: when it was last so. stuck: for how long it has had something to do and has not
    got on, once that is longer than `stuck_after`. reason: why it does not read, or is stuck."""

    topic: str
    partition: int
    status: Status
    next_offset: int | None
    parked: int
    reason: str | None
    lag: int | None = None
    applied: int = 0
    applied_at: datetime | None = None
    stuck: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHealth:
    """One thread. applied: records whose results it stored. discarded: parked ones that an operator did not
    want, and that it put away. trouble: what servers withhold at the moment.
    client: what its Kafka client says of itself."""

    alive: bool
    applied: int
    trouble: tuple[str, ...]
    partitions: tuple[PartitionHealth, ...]
    client: ClientFigures = field(default_factory=ClientFigures)
    discarded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A consumer with all its threads."""

    group: str
    members: tuple[MemberHealth, ...]

    @property
    def stopped(self) -> tuple[PartitionHealth, ...]:
        """Partitions that stand still until somebody mends something."""
        return tuple(p for member in self.members for p in member.partitions if p.status is Status.STOPPED)

    @property
    def stuck(self) -> tuple[PartitionHealth, ...]:
        """Partitions that try to get on and have not for too long."""
        return tuple(p for member in self.members for p in member.partitions if p.stuck is not None)

    @property
    def lag(self) -> int:
        """Of all partitions whose lag is known."""
        return sum(p.lag or 0 for member in self.members for p in member.partitions)

    @property
    def ok(self) -> bool:
        """All threads live, no partition is stopped or stuck and no server is missing."""
        return (
            bool(self.members)
            and not self.stopped
            and not self.stuck
            and all(member.alive and not member.trouble for member in self.members)
        )


def of_partition(partition: Partition, stuck_after: timedelta) -> PartitionHealth:
    """What is to be told of it. May be called from any thread."""
    idle = timedelta(seconds=time.monotonic() - partition.progressed)
    waiting = partition.claim is None or bool(partition.lag) or bool(partition.polled)
    busy = waiting and not partition.stopped
    stuck = idle if busy and idle > stuck_after else None
    reason = partition.reason
    if stuck and reason is None:
        reason = (
            f"{len(partition.polled)} polled records are not stored yet: a handler or the database is slow"
            if partition.polled
            else "the brokers send no records"
        )
    return PartitionHealth(
        topic=partition.topic,
        partition=partition.number,
        status=partition.status,
        next_offset=None if partition.claim is None else partition.expected,
        parked=partition.parked,
        reason=reason,
        lag=partition.lag,
        applied=partition.applied,
        applied_at=None
        if partition.applied_at is None
        else datetime.fromtimestamp(partition.applied_at, UTC),
        stuck=stuck,
    )
