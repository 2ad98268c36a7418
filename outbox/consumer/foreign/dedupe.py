"""How a foreign record's repeats are known: what of it is the event's id, and for how long that counts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from outbox.consumer.foreign.shapes import event_id
from outbox.consumer.record import Polled, Record, record_of
from outbox.errors import ConfigurationError, Reject

WithoutId = Literal["handle", "park", "stop"]
By = Literal["event_id"] | Callable[[Record], str | bytes | UUID | None]

SHORTEST = timedelta(minutes=1)
LONGEST = timedelta(days=7)
"""A turn of the inbox's ring is eight days: ids kept for longer would meet those of the next turn."""

LONG = 200
"""Bytes above which a digest of an id is stored: an index entry has its limit at 2,704."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedupe:
    """How repeats of a route's records are known.

    identify: a record's id, None if it has none. window: for how long after the first copy was appended a
    repeat is dropped. without_id: what becomes of a record that has no id.
    """

    identify: Callable[[Polled], str | None]
    window: timedelta
    without_id: WithoutId

    def entry(self, topic: str, message: Polled) -> str | None:
        """The id to look for. Raises Reject or ConfigurationError for a record without one, if it must have
        one, and whatever a function of the user's raises."""
        found = self.identify(message)
        if found is None and self.without_id != "handle":
            what = f"a record on topic {topic} has no event id, so a repeat of it could not be known"
            if self.without_id == "park":
                raise Reject(what)
            raise ConfigurationError(f"{what}; let such records pass with without_id='handle'")
        return found


def dedupe(by: By, window: timedelta, without_id: WithoutId, *, name: str) -> Dedupe:
    """What a handler's `dedupe=` means. Raises ConfigurationError."""
    if by != "event_id" and not callable(by):
        raise ConfigurationError(f"{name}: dedupe={by!r} is neither 'event_id' nor a function of the record")
    if not SHORTEST <= window <= LONGEST:
        raise ConfigurationError(
            f"{name}: dedupe_window is {window!r}; it must be a timedelta from one minute to seven days"
        )
    if without_id not in ("handle", "park", "stop"):
        raise ConfigurationError(f"{name}: without_id={without_id!r} is none of 'handle', 'park', 'stop'")
    identify = _standard if by == "event_id" else _of_record(by)
    return Dedupe(identify=identify, window=window, without_id=without_id)


def _standard(message: Polled) -> str | None:
    found = event_id(message)
    return None if found is None else _key(found)


def _of_record(function: Callable[[Record], str | bytes | UUID | None]) -> Callable[[Polled], str | None]:
    def identify(message: Polled) -> str | None:
        found = function(record_of(message))
        if not found:
            return None
        if not isinstance(found, str | bytes | UUID):
            raise ConfigurationError(
                f"dedupe gave {type(found).__name__}; it must give a str, bytes or UUID, or None for no id"
            )
        return _key(found if isinstance(found, bytes) else str(found).encode())

    return identify


def _key(value: bytes) -> str:
    """As it is stored: the text itself, or a digest of what is long or no text."""
    try:
        found = value.decode()
    except UnicodeDecodeError:
        found = ""
    if found and len(value) <= LONG and "\x00" not in found:
        return found
    return f"sha256:{hashlib.sha256(value).hexdigest()}"
