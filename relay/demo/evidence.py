"""What is there in the end, as plain values: the verdict's only input.

Nothing here, nor in the modules that gather it (`databases`, `wire`), comes from the framework.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(slots=True)
class Notes:
    """What a customer was told about one order. Unless it was placed it must not exist at all."""

    placed: bool = False
    changes: int = 0
    cancelled: bool = False

    @property
    def revision(self) -> int:
        return 1 + self.changes + self.cancelled


@dataclass(frozen=True, slots=True)
class Order:
    """A row of the order service."""

    total: Decimal
    revision: int
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `outbox_event`: committed, so it must be published."""

    id: str
    key: str
    type: str
    topic: str
    position: int
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Record:
    """What a plain reader found on a topic."""

    topic: str
    partition: int
    offset: int
    id: str | None
    key: str | None
    value: bytes | None

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Effect:
    """A line of a service's journal: what it did about one event. `revision`: of the order, if kept."""

    event: str
    order: str
    action: str
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything, by order id where it is a mapping; journals in the order in which they were written."""

    notes: Mapping[str, Notes]
    orders: Mapping[str, Order]
    order_events: Sequence[Event]
    balances: Mapping[str, Decimal]
    bookings: Sequence[Effect]
    invoice_events: Sequence[Event]
    standings: Mapping[str, str]
    actions: Sequence[Effect]
    records: Sequence[Record]
    """Each partition's in the order of their offsets."""
