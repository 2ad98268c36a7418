"""A small domain with events, and what the outbox holds of them."""

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import Event, catalog


class OrderPlaced(
    Event, name="tests.order.placed", version=1, topic="orders", aggregate="order", key="order_id"
):
    order_id: UUID
    total: Decimal


class StepTaken(Event, name="tests.step.taken", version=1, aggregate="step", key="key"):
    key: str
    number: int


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    total: Mapped[Decimal]


class Zone(Base):
    """An aggregate that several transactions change."""

    __tablename__ = "zones"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


def place(total: str = "9.90") -> tuple[Order, OrderPlaced]:
    """An order and what announces it."""
    order = Order(id=uuid4(), total=Decimal(total))
    return order, OrderPlaced(order_id=order.id, total=order.total)


def stored(at: Engine | Connection) -> list[dict[str, Any]]:
    """The committed rows of the outbox, in the order in which they will be published."""
    if isinstance(at, Engine):
        with at.connect() as connection:
            return stored(connection)
    rows = at.execute(text("SELECT * FROM outbox_event ORDER BY position")).mappings()
    return [dict(row) for row in rows]


def published(at: Engine | Connection) -> list[Event]:
    """The same as events."""
    return [catalog.decode(row["type"], row["payload"]) for row in stored(at)]


def steps(at: Engine | Connection) -> list[int]:
    """The numbers of the stored StepTaken events, in order."""
    return [event.number for event in published(at) if isinstance(event, StepTaken)]


def step(number: int, key: str = "k") -> StepTaken:
    return StepTaken(key=key, number=number)


def order_ids(engine: Engine) -> set[UUID]:
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT id FROM orders")))
