"""What a consumer may be told, checked at birth."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from outbox.consumer.place.position import Positions
from outbox.errors import ConfigurationError

Edge = Literal["earliest", "latest"]
Start = Edge | Literal["stop"] | datetime
Unknown = Literal["skip", "park", "stop"]
Poison = Literal["park", "stop"]

_STAND_STILL = Positions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every choice beside the group, the database and librdkafka's own properties.

    concurrency: how many handlers may run at a time in one transaction, each key's records in order. For
        handlers that wait for something else than the database: their statements take turns. Needs no more
        connections; savepoints are refused.
    batch_size: records applied in one transaction at most. More is faster and repeats more work after a
        failure.
    batch_bytes: values and headers applied in one transaction at most, in bytes; a single larger record still
        is. While a full batch waits, nothing more is read: with librdkafka's `queued.max.messages.kbytes`
        this bounds the memory that records take.
    batch_time: how long the handlers of one transaction may take together; then it is committed as far as it
        got, and the other records come next. Never more than a third of `max.poll.interval.ms`, after which
        Kafka would give the partition away. One call of a handler, a list of `batch=True` included, is never
        cut.
    batch_wait: how long a partition's few records wait for more to share their transaction. None: not at all
        while nothing else arrives, a few rounds while there is more to read.
    start: where a partition begins that this group has never read: at the oldest record, behind the newest,
        at the first of this time (with its zone) or later, or nowhere until `outbox-relay consumers seek`
        says where. Later the database's offset decides. A partition that is added to a topic which the group
        reads already always begins with its oldest record.
    positions: what becomes of a partition whose stored offset cannot be read from; see Positions.
    unknown: what becomes of a record whose type has no handler: skip it (said once a type), park it, or stop
        its partition.
    attempts: how often a record is tried, each time alone, before an unexpected exception makes it poison.
        Database failures that pass and `Retry` are tried without limit and do not count.
    poison: what becomes of a record that can never succeed: park it, so that only later records of its key
        wait behind it, or stop its partition.
    max_parked: how many records of one partition may be parked or wait behind parked ones; the next one
        stops the partition, because then the handler is at fault and not a record.
    handler_limit: how long one call of a handler may take before its statement is cancelled and the record
        counts as failed; a call that goes on after twice as long ends the process, and the record is parked
        once it has ended `attempts` of them. None: no limit.
    claim_patience: how long taking over a partition waits for a transaction of its former owner before that
        owner's connection is terminated.
    idle_timeout: how long a batch's transaction may wait for its own process before PostgreSQL ends it, so
        that a frozen process holds nothing for ever. Must exceed a handler's longest pause between
        statements.
    identity_check: how often the topics' ids are compared with those the offsets belong to while reading;
        they are also compared whenever a partition is taken over or repositioned.
    mirror: how often offsets are copied to Kafka for lag tools. Nothing ever reads them back.
    stuck_after: how long a partition may have records to apply and apply none before it is reported as
        stuck.
    wait_for_topics: how long a topic may be missing at the start before that is an error.
    """

    concurrency: int = 1
    batch_size: int = 500
    batch_bytes: int = 4 * 1024 * 1024
    batch_time: timedelta = timedelta(seconds=30)
    batch_wait: timedelta | None = None
    start: Start = "earliest"
    positions: Positions = _STAND_STILL
    unknown: Unknown = "skip"
    attempts: int = 3
    poison: Poison = "park"
    max_parked: int = 1000
    handler_limit: timedelta | None = None
    claim_patience: timedelta = timedelta(seconds=2)
    idle_timeout: timedelta = timedelta(seconds=60)
    identity_check: timedelta = timedelta(seconds=5)
    mirror: timedelta = timedelta(seconds=1)
    stuck_after: timedelta = timedelta(seconds=60)
    wait_for_topics: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        for name in ("concurrency", "batch_size", "batch_bytes", "attempts", "max_parked"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; it must be an integer from 1 on")
        for name, allowed in (
            ("unknown", ("skip", "park", "stop")),
            ("poison", ("park", "stop")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, allowed))}"
                )
        if not isinstance(self.positions, Positions):
            raise ConfigurationError(f"positions is {self.positions!r}; write Positions(below='earliest')")
        _check_start(self.start)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("handler_limit", "batch_wait") and value is None:
                continue
            if isinstance(field.default, timedelta | None) and not (
                isinstance(value, timedelta) and value > timedelta(0)
            ):
                raise ConfigurationError(f"{field.name} is {value!r}; it must be a positive timedelta")


def _check_start(start: object) -> None:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError(f"start={start!r} has no time zone; write datetime(..., tzinfo=UTC)")
    elif start not in ("earliest", "latest", "stop"):
        raise ConfigurationError(f"start={start!r} is none of 'earliest', 'latest', 'stop', a datetime")


def owner(member: int) -> str:
    """Who we are, for people reading the table: host, process, thread."""
    return f"{socket.gethostname()}/{os.getpid()}/{member}"


def batch_time(settings: Settings, properties: Mapping[str, Any]) -> float:
    """Seconds after which a batch takes no other record: Kafka wants to hear from us before its own limit."""
    limit = float(properties.get("max.poll.interval.ms", 300_000)) / 1000
    return min(settings.batch_time.total_seconds(), limit / 3)
