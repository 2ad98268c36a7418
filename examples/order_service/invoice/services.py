"""Turn each order event into one booking and one announcement, in the transaction that moves the offset."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy.orm import Session

from examples.order_service.events import (
    InvoiceAmended,
    InvoiceIssued,
    InvoiceVoided,
    OrderCancelled,
    OrderChanged,
    OrderPlaced,
)
from examples.order_service.invoice.domain import Booking, Invoice, JournalEntry, NoInvoice
from outbox import emit
from outbox.consumer import Record


def issue(session: Session, event: OrderPlaced, record: Record) -> None:
    """The order's invoice now asks for its total."""
    invoice = session.get(Invoice, event.order_id)
    if invoice is None:
        invoice = Invoice.open(event.order_id, event.customer_id)
        session.add(invoice)
    amount = invoice.issue(event.total)
    session.add(_entry(Booking.ISSUE, amount, event, event.placed_at, record))
    emit(
        session,
        InvoiceIssued(
            order_id=invoice.order_id,
            customer_id=invoice.customer_id,
            amount=invoice.balance,
            placed_at=event.placed_at,
        ),
    )


def amend(session: Session, event: OrderChanged, record: Record) -> None:
    """The invoice asks for the order's new total. Raises NoInvoice."""
    invoice = _invoice(session, event.order_id)
    amount = invoice.amend(event.total)
    session.add(_entry(Booking.AMEND, amount, event, event.changed_at, record))
    emit(
        session,
        InvoiceAmended(order_id=invoice.order_id, amount=invoice.balance, changed_at=event.changed_at),
    )


def void(session: Session, event: OrderCancelled, record: Record) -> None:
    """The invoice asks for nothing any more. Raises NoInvoice."""
    invoice = _invoice(session, event.order_id)
    amount = invoice.void(at=event.cancelled_at)
    session.add(_entry(Booking.VOID, amount, event, event.cancelled_at, record))
    emit(session, InvoiceVoided(order_id=invoice.order_id, cancelled_at=event.cancelled_at))


def _invoice(session: Session, order_id: UUID) -> Invoice:
    invoice = session.get(Invoice, order_id)
    if invoice is None:
        raise NoInvoice(order_id)
    return invoice


def _entry(
    booking: Booking,
    amount: Decimal,
    event: OrderPlaced | OrderChanged | OrderCancelled,
    requested_at: datetime,
    record: Record,
) -> JournalEntry:
    return JournalEntry(
        order_id=event.order_id,
        booking=booking,
        amount=amount,
        order_revision=event.revision,
        requested_at=requested_at,
        event_id=record.event_id,
        kafka_partition=record.partition,
        kafka_offset=record.offset,
    )
