"""What a Pipe's handler hands on: events and raw records, in order, sent with the offset or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from outbox.consumer.record import Polled, headers_of
from outbox.errors import EventRejected
from outbox.event import Event
from outbox.preflight import topic_fault
from outbox.record import REPLAY, SEQ
from outbox.row import row
from outbox.tombstone import Tombstone

Header = tuple[str, str | bytes | None]


@dataclass(frozen=True, slots=True)
class Output:
    """One record to send."""

    topic: str
    key: str | bytes | None
    value: str | bytes | None
    headers: Sequence[Header]


class Out:
    """Collects what handlers send; nothing leaves before they have returned."""

    def __init__(self) -> None:
        self.records: list[Output] = []

    def emit(
        self,
        event: Event | Tombstone,
        *,
        topic: str | None = None,
        key: str | UUID | date | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send an event under its key to its topic (or `topic`), with the headers that an outbox gives it,
        but for `outbox-seq`: what is sent in a Kafka transaction has no repeats to be known by.

        Raises EventRejected or EventNotSerialisable.
        """
        made = row(event, topic=topic, key=None if key is None else str(key), headers=headers)
        cls = event.event if isinstance(event, Tombstone) else type(event)
        self.records.append(
            Output(
                made.topic or cls.__topic__,
                made.aggregateid,
                made.payload,
                [("id", str(made.id)), ("type", made.type), *(headers or {}).items()],
            )
        )

    def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: str | bytes | None,
        headers: Mapping[str, str | bytes | None] | None = None,
    ) -> None:
        """Send a record as it is. Raises EventRejected for what is no topic's name."""
        if fault := topic_fault(topic):
            raise EventRejected(f"a record was not sent: {fault}")
        self.records.append(Output(topic, key, value, list((headers or {}).items())))


def dead_letter(topic: str, message: Polled, reason: str) -> Output:
    """The record as it came, and why nobody could handle it. Its number is left out: it counts what its
    relay sent to the topic it comes from."""
    kept: list[Header] = [(name, value) for name, value in headers_of(message) if name not in (SEQ, REPLAY)]
    origin = f"{message.topic()}[{message.partition()}]@{message.offset()}"
    return Output(
        topic,
        message.key(),
        message.value(),
        [*kept, ("dead-letter-reason", reason), ("dead-letter-origin", origin)],
    )
