"""What an order is, and what may be done to it. Needs no session and no clock of its own."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import DateTime, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CREDIT_LIMIT = Decimal("10000.00")
"""The most that one order may come to."""


class OrderError(Exception):
    """What the customer asked for is not possible; the order stays as it was."""


class UnknownOrder(OrderError):
    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"There is no order {order_id}.")


class AlreadyPlaced(OrderError):
    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"Order {order_id} has been placed already.")


class AlreadyCancelled(OrderError):
    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"Order {order_id} is cancelled; that is final.")


class CreditExceeded(OrderError):
    def __init__(self, total: Decimal) -> None:
        super().__init__(f"An order of {total} is above the credit limit of {CREDIT_LIMIT}.")


class Base(DeclarativeBase):
    """The order service's own tables."""


class Order(Base):
    """Open until cancelled. `revision` grows by one with everything that happens to the order."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID]
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    revision: Mapped[int]
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    cancelled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    @classmethod
    def place(cls, order_id: UUID, customer_id: UUID, total: Decimal, at: datetime) -> "Order":
        return cls(id=order_id, customer_id=customer_id, total=total, revision=1, placed_at=at)

    def change(self, total: Decimal) -> None:
        self._require_open()
        self.total = total
        self.revision += 1

    def cancel(self, at: datetime) -> None:
        self._require_open()
        self.cancelled_at = at
        self.revision += 1

    def _require_open(self) -> None:
        if self.cancelled_at is not None:
            raise AlreadyCancelled(self.id)


def grant_credit(order: Order) -> None:
    """The last word on an order. Raises CreditExceeded."""
    if order.total > CREDIT_LIMIT:
        raise CreditExceeded(order.total)
