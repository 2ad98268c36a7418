"""Kafka → handlers → PostgreSQL, exactly once. The door of the consuming half."""

from outbox.consumer.consumer import Consumer
from outbox.consumer.figures import ClientFigures
from outbox.consumer.health import Health, MemberHealth, PartitionHealth
from outbox.consumer.partition import Status
from outbox.consumer.record import Record
from outbox.consumer.settings import Settings
from outbox.consumer.state import State, StateHealth

__all__ = [
    "ClientFigures",
    "Consumer",
    "Health",
    "MemberHealth",
    "PartitionHealth",
    "Record",
    "Settings",
    "State",
    "StateHealth",
    "Status",
]
