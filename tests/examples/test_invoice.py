"""One invoice per order, and a journal that hides nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import OrderCancelled, OrderChanged, OrderPlaced
from examples.order_service.invoice import services
from examples.order_service.invoice.domain import NOTHING, Invoice, JournalEntry, NoInvoice
from outbox.consumer import Record
from outbox.storage.tables import outbox_event

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

Records = Callable[[str], Record]
Sessions = sessionmaker[Session]


def placed(order_id: UUID, total: str = "9.90") -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id, customer_id=uuid4(), total=Decimal(total), revision=1, placed_at=NOON
    )


def changed(order_id: UUID, total: str, revision: int = 2) -> OrderChanged:
    return OrderChanged(order_id=order_id, total=Decimal(total), revision=revision, changed_at=NOON)


def cancelled(order_id: UUID, revision: int = 2) -> OrderCancelled:
    return OrderCancelled(order_id=order_id, revision=revision, cancelled_at=NOON)


def journal(session: Session) -> list[tuple[str, Decimal, int]]:
    entries = session.scalars(select(JournalEntry).order_by(JournalEntry.id))
    return [(entry.booking.value, entry.amount, entry.order_revision) for entry in entries]


def announced(session: Session) -> list[str]:
    return list(session.scalars(select(outbox_event.c.type).order_by(outbox_event.c.position)))


@pytest.fixture
def invoice() -> Invoice:
    return Invoice.open(uuid4(), uuid4())


def test_what_is_booked_always_adds_up_to_what_the_invoice_asks_for(invoice: Invoice) -> None:
    booked = [invoice.issue(Decimal("9.90")), invoice.amend(Decimal("12.50")), invoice.amend(Decimal(4))]
    assert booked == [Decimal("9.90"), Decimal("2.60"), Decimal("-8.50")]
    assert sum(booked) == invoice.balance == Decimal(4)


def test_a_void_invoice_asks_for_nothing(invoice: Invoice) -> None:
    invoice.issue(Decimal("9.90"))
    assert invoice.void(at=NOON) == Decimal("-9.90")
    assert (invoice.balance, invoice.voided_at) == (NOTHING, NOON)


def test_an_event_applied_twice_would_show_as_money(invoice: Invoice) -> None:
    invoice.issue(Decimal("9.90"))
    invoice.issue(Decimal("9.90"))
    assert invoice.balance == Decimal("19.80")


def test_an_orders_life_becomes_one_invoice_and_three_bookings(invoices: Sessions, record: Records) -> None:
    order_id = uuid4()
    with invoices.begin() as session:
        services.issue(session, placed(order_id, "9.90"), record("orders"))
    with invoices.begin() as session:
        services.amend(session, changed(order_id, "12.50"), record("orders"))
        services.void(session, cancelled(order_id, revision=3), record("orders"))
    with invoices() as session:
        assert journal(session) == [
            ("issue", Decimal("9.90"), 1),
            ("amend", Decimal("2.60"), 2),
            ("void", Decimal("-12.50"), 3),
        ]
        assert announced(session) == ["invoice.issued.v1", "invoice.amended.v1", "invoice.voided.v1"]
        assert session.scalars(select(Invoice)).one().balance == 0


def test_each_booking_names_the_record_it_came_from(invoices: Sessions, record: Records) -> None:
    source = record("orders")
    with invoices.begin() as session:
        services.issue(session, placed(uuid4()), source)
    with invoices() as session:
        entry = session.scalars(select(JournalEntry)).one()
        assert (entry.event_id, entry.kafka_partition, entry.kafka_offset) == (
            source.event_id,
            source.partition,
            source.offset,
        )
        assert entry.requested_at == NOON < entry.created_at


def test_a_rolled_back_batch_leaves_no_invoice_no_booking_and_no_event(
    invoices: Sessions, record: Records
) -> None:
    with invoices() as session:
        services.issue(session, placed(uuid4()), record("orders"))
        session.flush()
        session.rollback()
    with invoices() as session:
        assert (journal(session), announced(session)) == ([], [])
        assert session.scalar(select(func.count()).select_from(Invoice)) == 0


def test_a_change_that_overtook_its_order_is_refused(invoices: Sessions, record: Records) -> None:
    order_id = uuid4()
    with invoices() as session:
        with pytest.raises(NoInvoice, match=str(order_id)):
            services.amend(session, changed(order_id, "1.00"), record("orders"))
        with pytest.raises(NoInvoice, match=str(order_id)):
            services.void(session, cancelled(order_id), record("orders"))
