"""Act on each piece of news once, one order at a time, though the news comes over two topics.

Two consumers may hold the two records of one order at the same moment. Both go through the order's row,
which the first one creates if need be: the second waits there for the first one's commit, then decides
on what it left. Two batches that cross each other's orders may deadlock; PostgreSQL then rolls one back,
offset included, and the consumer runs it again.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from examples.order_service.events import InvoiceIssued, OrderCancelled
from examples.order_service.shipping.domain import Action, LogEntry, Shipment, Standing
from outbox.consumer import Record


def ship(session: Session, event: InvoiceIssued, record: Record) -> None:
    """Ship an invoiced order, or withhold it when its cancellation came first."""
    action = _locked(session, event.order_id).invoiced()
    session.add(_entry(event.order_id, action, event.placed_at, record))


def stop(session: Session, event: OrderCancelled, record: Record) -> None:
    """Never ship a cancelled order; recall it when its invoice came first."""
    action = _locked(session, event.order_id).cancelled()
    session.add(_entry(event.order_id, action, event.cancelled_at, record))


def _locked(session: Session, order_id: UUID) -> Shipment:
    """The order's row, locked until commit; created when this is the first that is heard of the order."""
    session.execute(
        insert(Shipment).values(order_id=order_id, standing=Standing.EXPECTED).on_conflict_do_nothing()
    )
    return session.get_one(Shipment, order_id, with_for_update=True)


def _entry(order_id: UUID, action: Action, requested_at: datetime, record: Record) -> LogEntry:
    return LogEntry(
        order_id=order_id,
        action=action,
        requested_at=requested_at,
        event_id=record.event_id,
        kafka_topic=record.topic,
        kafka_partition=record.partition,
        kafka_offset=record.offset,
    )
