"""Kafka → handlers → PostgreSQL, exactly once. The door of the consuming half.

AsyncConsumer is loaded when it is first asked for: it needs greenlet, which SQLAlchemy 2.1 no longer brings.
"""

from typing import TYPE_CHECKING, Any

from outbox.consumer.consumer import Consumer
from outbox.consumer.figures import ClientFigures
from outbox.consumer.health import Health, MemberHealth, PartitionHealth
from outbox.consumer.partition import Status
from outbox.consumer.pipe.out import Out
from outbox.consumer.pipe.pipe import Pipe
from outbox.consumer.place.position import Positions
from outbox.consumer.record import Record
from outbox.consumer.settings import Settings
from outbox.consumer.state.state import State, StateHealth

if TYPE_CHECKING:
    from outbox.consumer.async_consumer import AsyncConsumer

__all__ = [
    "AsyncConsumer",
    "ClientFigures",
    "Consumer",
    "Health",
    "MemberHealth",
    "Out",
    "PartitionHealth",
    "Pipe",
    "Positions",
    "Record",
    "Settings",
    "State",
    "StateHealth",
    "Status",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncConsumer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outbox.consumer.async_consumer import AsyncConsumer

    return AsyncConsumer
