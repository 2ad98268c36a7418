"""Act on each piece of news once, though the news of one order comes over two topics.

Two consumers may hold the two records of one order at the same moment. Both go through the order's row,
which the first one creates if need be: the second waits there for the first one's commit, then decides on
what it left. Each takes the rows of its whole batch at once and in the order of their ids, so that two
batches that share several orders queue up instead of deadlocking.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from examples.order_service.events import InvoiceIssued, OrderCancelled
from examples.order_service.shipping.domain import Action, LogEntry, Shipment, Standing
from outbox.consumer import Record


def ship(session: Session, events: Sequence[InvoiceIssued], records: Sequence[Record]) -> None:
    """Ship each invoiced order, or withhold it when its cancellation came first."""
    shipments = _locked(session, (event.order_id for event in events))
    for event, record in zip(events, records, strict=True):
        action = shipments[event.order_id].invoiced()
        session.add(_entry(event.order_id, action, event.placed_at, record))


def stop(session: Session, events: Sequence[OrderCancelled], records: Sequence[Record]) -> None:
    """Never ship a cancelled order; recall each whose invoice came first."""
    shipments = _locked(session, (event.order_id for event in events))
    for event, record in zip(events, records, strict=True):
        action = shipments[event.order_id].cancelled()
        session.add(_entry(event.order_id, action, event.cancelled_at, record))


# Promise: returns the rows as last committed, all locked until this transaction ends. A row is created when
# nothing was heard of its order yet; setting it to what it was takes the lock where it exists. Served by the
# primary key.
TOUCH = (
    insert(Shipment)
    .on_conflict_do_update(index_elements=[Shipment.order_id], set_={"standing": Shipment.standing})
    .returning(Shipment)
)


def _locked(session: Session, order_ids: Iterable[UUID]) -> dict[UUID, Shipment]:
    news = [{"order_id": order_id, "standing": Standing.EXPECTED} for order_id in sorted(set(order_ids))]
    shipments = session.scalars(TOUCH, news, execution_options={"populate_existing": True})
    return {shipment.order_id: shipment for shipment in shipments}


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
