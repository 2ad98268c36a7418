"""Say that there is nothing more under a key: a record without a value, in the key's order like any event."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from outbox.errors import ConfigurationError, EventRejected
from outbox.event import Event, is_named, key_text


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record of `event`'s topic and type whose value is null.

        outbox.emit(session, Tombstone(CustomerChanged, key=customer.id))

    A compacted topic forgets the key's earlier records after it. Handlers registered with `tombstones=True`
    get None for it, and the key from their record; others skip it.

    Raises ConfigurationError for what is no event class with a name, EventRejected without a key.
    """

    event: type[Event]
    key: str | int | UUID | date

    def __post_init__(self) -> None:
        given: object = self.event
        if not (isinstance(given, type) and issubclass(given, Event) and is_named(given)):
            raise ConfigurationError(
                f"Tombstone takes an event class that has a name, not {self.event!r}: "
                "Tombstone(CustomerChanged, key=...)"
            )
        if self.key is None:
            raise EventRejected(f"a tombstone of {self.event.__qualname__} needs the key that it ends")
        object.__setattr__(self, "key", key_text(self.key, self.event))  # equal to what arrives
