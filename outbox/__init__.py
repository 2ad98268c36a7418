"""Transactional outbox and exactly-once consumer for SQLAlchemy, PostgreSQL and Kafka.

    outbox = Outbox(sessionmaker(engine))

    @outbox.transaction
    def place_order(session: Session, customer_id: UUID, total: Decimal) -> UUID: ...

The consumer stands in outbox.consumer, which alone needs a Kafka client.
"""

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
from outbox.transaction import AsyncOutbox, Outbox

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
