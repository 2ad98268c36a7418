"""The contract between the services: what each announces, to which topic, under which key.

Both topics are keyed by the order's id, so each order's own story stays in order within a topic. Nothing
orders the two topics against each other: a cancellation and the invoice it crosses may arrive either way
round, and shipping decides for both.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from examples.order_service.settings import shared_name
from outbox import Event

ORDERS = shared_name("orders")
INVOICES = shared_name("invoices")


class OrderPlaced(Event, name="order.placed", version=1, topic=ORDERS, aggregate="order", key="order_id"):
    """A customer ordered, and credit was granted."""

    order_id: UUID
    customer_id: UUID
    total: Decimal
    revision: int
    placed_at: datetime


class OrderChanged(Event, name="order.changed", version=1, topic=ORDERS, aggregate="order", key="order_id"):
    """An open order has a new total; `revision` counts the changes of one order, without gaps."""

    order_id: UUID
    total: Decimal
    revision: int
    changed_at: datetime


class OrderCancelled(
    Event, name="order.cancelled", version=1, topic=ORDERS, aggregate="order", key="order_id"
):
    """The last event of an order: nothing may be charged or shipped for it."""

    order_id: UUID
    revision: int
    cancelled_at: datetime


class InvoiceIssued(
    Event, name="invoice.issued", version=1, topic=INVOICES, aggregate="invoice", key="order_id"
):
    """The order has its one invoice and may be shipped."""

    order_id: UUID
    customer_id: UUID
    amount: Decimal
    placed_at: datetime


class InvoiceAmended(
    Event, name="invoice.amended", version=1, topic=INVOICES, aggregate="invoice", key="order_id"
):
    """The invoice now asks for `amount`."""

    order_id: UUID
    amount: Decimal
    changed_at: datetime


class InvoiceVoided(
    Event, name="invoice.voided", version=1, topic=INVOICES, aggregate="invoice", key="order_id"
):
    """The invoice asks for nothing any more."""

    order_id: UUID
    cancelled_at: datetime
