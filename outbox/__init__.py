"""Transactional outbox and exactly-once consumer for SQLAlchemy, PostgreSQL and Kafka.

    outbox = Outbox(sessionmaker(engine))

    @outbox.transaction
    def place_order(session: Session, customer_id: UUID, total: Decimal) -> UUID: ...

The consumer stands in outbox.consumer, which alone needs a Kafka client. Each name is loaded when it is first
asked for: the relay imports parts of this package and needs no SQLAlchemy (30 MB, a third of a second), and
AsyncOutbox needs greenlet, which SQLAlchemy 2.1 no longer brings along.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.async_transaction import AsyncOutbox
    from outbox.cancellation import cancel
    from outbox.emission import emit
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
    from outbox.tombstone import Tombstone
    from outbox.transaction import Outbox

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
    "Tombstone",
    "UndecodableRecord",
    "cancel",
    "ddl",
    "emit",
    "roles",
    "tables",
]

_HOMES = {
    "AsyncOutbox": "outbox.async_transaction",
    "Event": "outbox.event",
    "Outbox": "outbox.transaction",
    "Serializer": "outbox.serializers",
    "Tombstone": "outbox.tombstone",
    "cancel": "outbox.cancellation",
    "emit": "outbox.emission",
}
_MODULES = {"ddl", "roles", "tables"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: Any
    if name in _MODULES:
        found = import_module(f"outbox.storage.{name}")
    else:
        found = getattr(import_module(_HOMES.get(name, "outbox.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
