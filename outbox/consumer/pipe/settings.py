"""What a Pipe may be told, checked at birth."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from outbox.consumer.settings import Edge
from outbox.errors import ConfigurationError
from outbox.preflight import topic_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeSettings:
    """Every choice beside the group and librdkafka's own properties.

    batch_size: records of one partition in one Kafka transaction at most.
    batch_bytes: bytes of these at most; a single larger record still passes.
    start: where a partition begins that this group has never read; written down at once.
    unknown: what becomes of a record whose type has no handler: skip it (said once a type), treat it as
        poison, or stop its partition.
    attempts: how often a record is tried before an unexpected exception makes it poison. `Retry` does not
        count.
    dead_letter: the topic that poison records go to, in the transaction that moves the offset; later records
        of the key go on without them. None: a poison record stops its partition.
    transaction_timeout: how long one transaction may take. So long, at most, readers and whoever takes the
        partitions over wait after this process died in the middle of one.
    identity_check, wait_for_topics, stuck_after: as in Settings.
    """

    batch_size: int = 500
    batch_bytes: int = 4 * 1024 * 1024
    start: Edge = "earliest"
    unknown: Literal["skip", "poison", "stop"] = "skip"
    attempts: int = 3
    dead_letter: str | None = None
    transaction_timeout: timedelta = timedelta(seconds=10)
    identity_check: timedelta = timedelta(seconds=5)
    wait_for_topics: timedelta = timedelta(seconds=10)
    stuck_after: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_bytes", "attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; it must be an integer from 1 on")
        for name, allowed in (("start", ("earliest", "latest")), ("unknown", ("skip", "poison", "stop"))):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, allowed))}"
                )
        for name in ("transaction_timeout", "identity_check", "wait_for_topics", "stuck_after"):
            value = getattr(self, name)
            if not (isinstance(value, timedelta) and value > timedelta(0)):
                raise ConfigurationError(f"{name} is {value!r}; it must be a positive timedelta")
        if self.transaction_timeout < timedelta(seconds=1):
            raise ConfigurationError("transaction_timeout is below a second, less than one commit may take")
        if self.dead_letter is not None and (fault := topic_fault(self.dead_letter)):
            raise ConfigurationError(f"dead_letter: {fault}")
