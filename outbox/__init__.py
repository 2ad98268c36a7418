"""Transactional outbox and exactly-once consumer for SQLAlchemy, PostgreSQL and Kafka.

    outbox = Outbox(sessionmaker(engine))

    @outbox.transaction
    def place_order(session: Session, customer_id: UUID, total: Decimal) -> UUID: ...

The consumer stands in outbox.consumer, which alone needs a Kafka client.
"""

from typing import TYPE_CHECKING, Any

from outbox.emit import emit
from outbox.errors import (
    CatalogError,
    ConfigurationError,
    EmitError,
    EventNotSerialisable,
    EventRejected,
    NoTransaction,
    OutboxError,
    Reject,
    Retry,
    SchemaError,
    UndecodableRecord,
)
from outbox.event import Event
from outbox.serializers import Serializer
from outbox.storage import ddl, roles, tables
from outbox.transaction import Outbox

if TYPE_CHECKING:
    from outbox.async_transaction import AsyncOutbox

__all__ = [
    "AsyncOutbox",
    "CatalogError",
    "ConfigurationError",
    "EmitError",
    "Event",
    "EventNotSerialisable",
    "EventRejected",
    "NoTransaction",
    "Outbox",
    "OutboxError",
    "Reject",
    "Retry",
    "SchemaError",
    "Serializer",
    "UndecodableRecord",
    "ddl",
    "emit",
    "roles",
    "tables",
]


def __getattr__(name: str) -> Any:
    """AsyncOutbox when it is asked for: it needs greenlet, which SQLAlchemy 2.1 no longer brings along."""
    if name == "AsyncOutbox":
        from outbox.async_transaction import AsyncOutbox

        return AsyncOutbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
