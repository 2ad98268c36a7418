"""What a consumer is doing, as values for people, probes and metrics."""

from dataclasses import dataclass

from outbox.consumer.partition import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionHealth:
    """One partition. next_offset: the first offset not applied yet, None while
    it is not ours. parked: records of it that wait in the database. reason: why it does not read, if so."""

    topic: str
    partition: int
    status: Status
    next_offset: int | None
    parked: int
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHealth:
    """One thread. applied: records whose results it stored. trouble: what servers withhold at the moment."""

    alive: bool
    applied: int
    trouble: tuple[str, ...]
    partitions: tuple[PartitionHealth, ...]


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
    def ok(self) -> bool:
        """All threads live, no partition is stopped and no server is missing."""
        return (
            bool(self.members)
            and not self.stopped
            and all(member.alive and not member.trouble for member in self.members)
        )
