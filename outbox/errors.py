"""Say what happened, carry its data, and name the remedy: every error of the library stands here.

OutboxError
├── ConfigurationError        a setting, URL or definition that cannot work
├── SchemaError               the database lacks a table, column or right, or holds another version
├── EmitError                 an event could not be recorded; the business transaction fails with it
│   ├── NoTransaction         emit() outside a transaction
│   ├── EventNotSerialisable  a field has no representation on the wire
│   └── EventRejected         too large, bad topic or header name: would be refused later, so refused now
├── CatalogError              two classes claim one event name and version, or none does
├── UndecodableRecord         a record that no registered event class can read
├── GuardViolation            the database or cluster is not the one whose events were numbered
│   └── WrongDatabase         and that is so for each of its shards
├── Fenced                    somebody else owns the shard or partition now; nothing was changed
└── HandlerSignal             raised by handlers to steer the consumer
    ├── Retry                 roll back, keep the record, try again later
    └── Reject                roll back; this record can never succeed
"""

from datetime import timedelta


class OutboxError(Exception):
    """Root of every error that the framework raises on purpose."""


class ConfigurationError(OutboxError):
    """A setting, URL or definition cannot work; the message says which and how to mend it."""


class SchemaError(OutboxError):
    """The database lacks a table, column or right, or holds another schema version."""


class EmitError(OutboxError):
    """An event could not be recorded, so the transaction it belongs to must not commit."""


class NoTransaction(EmitError):
    """emit() was called where no transaction is open: the event would belong to nothing."""


class EventNotSerialisable(EmitError):
    """A field of the event has no representation on the wire."""


class EventRejected(EmitError):
    """The broker would refuse this event later, so the caller hears of it now."""


class CatalogError(OutboxError):
    """An event name and version has no class, or more than one."""


class UndecodableRecord(OutboxError):
    """A record's bytes are not what its event type promises."""


class GuardViolation(OutboxError):
    """The database or Kafka cluster is not the one whose events were numbered so far."""


class WrongDatabase(GuardViolation):
    """What is wrong is wrong for every shard: none of them may be carried."""


class Fenced(OutboxError):
    """Somebody else owns the shard or partition now. Nothing was changed."""


class HandlerSignal(OutboxError):
    """Raised by a handler to steer the consumer instead of failing."""


class Retry(HandlerSignal):
    """Roll back, keep the record and try it again.

    `after`: how long to wait at least; None leaves it to the consumer's backoff.
    """

    def __init__(self, reason: str = "", *, after: timedelta | None = None) -> None:
        super().__init__(reason or "the handler asked for another attempt")
        self.after = after


class Reject(HandlerSignal):
    """Roll back: this record can never succeed. `reason` is shown to the operator."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
