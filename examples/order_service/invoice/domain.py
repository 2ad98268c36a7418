"""One invoice per order, and the journal of everything that was ever booked on it.

    placed → issue        changed → amend        cancelled → void

The journal takes every booking and asks nothing: no unique key and no look whether an event was seen
before stand in its way. That each event is booked exactly once is the consumer's promise; were it broken,
the same event would stand in the journal twice and the balance would be wrong, where anybody can see it.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Enum, ForeignKey, Identity, Numeric, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NOTHING = Decimal("0.00")


class Booking(StrEnum):
    """What happened to an invoice."""

    ISSUE = "issue"
    AMEND = "amend"
    VOID = "void"


class NoInvoice(Exception):
    """An order changed before it was placed: its events came out of order, and nothing can be booked."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"Order {order_id} has no invoice yet that could be amended or voided.")


class Base(DeclarativeBase):
    """The invoice service's own tables."""


class Invoice(Base):
    """What an order still asks for. The order's id is its identity, so there is never a second one.

    Each verb returns the amount to book, so that `balance` is the sum of the journal at any time.
    """

    __tablename__ = "invoice"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID]
    balance: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    voided_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    @classmethod
    def open(cls, order_id: UUID, customer_id: UUID) -> "Invoice":
        return cls(order_id=order_id, customer_id=customer_id, balance=NOTHING)

    def issue(self, total: Decimal) -> Decimal:
        return self._add(total)

    def amend(self, total: Decimal) -> Decimal:
        return self._add(total - self.balance)

    def void(self, at: datetime) -> Decimal:
        self.voided_at = at
        return self._add(-self.balance)

    def _add(self, amount: Decimal) -> Decimal:
        self.balance += amount
        return amount


class JournalEntry(Base):
    """One booking: what the order service asked for and when, which record said so, when it was done."""

    __tablename__ = "invoice_journal"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey("invoice.order_id"), index=True)
    booking: Mapped[Booking] = mapped_column(
        Enum(Booking, native_enum=False, length=8, values_callable=lambda kinds: [k.value for k in kinds])
    )
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    order_revision: Mapped[int]
    requested_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    event_id: Mapped[UUID]
    kafka_partition: Mapped[int]
    kafka_offset: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )
