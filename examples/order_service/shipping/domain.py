"""Decide about an order on two pieces of news that nobody orders against each other.

    known so far │ invoice issued       │ order cancelled
    ─────────────┼──────────────────────┼──────────────────────
    nothing      │ ship     → shipped   │ stop     → stopped
    shipped      │ ship     → shipped   │ recall   → recalled
    stopped      │ withhold → stopped   │ stop     → stopped
    recalled     │ withhold → recalled  │ recall   → recalled

Either way round ends without the goods at the customer: "stopped" when the cancellation won the race,
"recalled" when the parcel had left. The log keeps every action and has no unique key: an action
taken twice would stand there twice.
"""

from datetime import datetime
from enum import StrEnum
from typing import assert_never
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Enum, ForeignKey, Identity, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Standing(StrEnum):
    """Where an order stands for the warehouse."""

    EXPECTED = "expected"
    SHIPPED = "shipped"
    STOPPED = "stopped"
    RECALLED = "recalled"


class Action(StrEnum):
    """What the warehouse does about a piece of news."""

    SHIP = "ship"
    WITHHOLD = "withhold"
    STOP = "stop"
    RECALL = "recall"


def on_invoice(standing: Standing) -> tuple[Standing, Action]:
    """The order is paid for: ship it unless it is cancelled."""
    match standing:
        case Standing.EXPECTED | Standing.SHIPPED:
            return Standing.SHIPPED, Action.SHIP
        case Standing.STOPPED | Standing.RECALLED:
            return standing, Action.WITHHOLD
        case _:
            assert_never(standing)


def on_cancellation(standing: Standing) -> tuple[Standing, Action]:
    """The order is cancelled: keep the goods, or call them back."""
    match standing:
        case Standing.EXPECTED | Standing.STOPPED:
            return Standing.STOPPED, Action.STOP
        case Standing.SHIPPED | Standing.RECALLED:
            return Standing.RECALLED, Action.RECALL
        case _:
            assert_never(standing)


class Base(DeclarativeBase):
    """The shipping service's own tables."""


class Shipment(Base):
    """One row per order: what both topics' news meet at, and the lock that lets one of them go first."""

    __tablename__ = "shipment"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    standing: Mapped[Standing] = mapped_column(
        Enum(Standing, native_enum=False, length=8, values_callable=lambda kinds: [k.value for k in kinds])
    )

    def invoiced(self) -> Action:
        self.standing, action = on_invoice(self.standing)
        return action

    def cancelled(self) -> Action:
        self.standing, action = on_cancellation(self.standing)
        return action


class LogEntry(Base):
    """One action: which record asked for it, when the customer did, when it was taken."""

    __tablename__ = "shipment_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey("shipment.order_id"), index=True)
    action: Mapped[Action] = mapped_column(
        Enum(Action, native_enum=False, length=8, values_callable=lambda kinds: [k.value for k in kinds])
    )
    requested_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    event_id: Mapped[UUID]
    kafka_topic: Mapped[str]
    kafka_partition: Mapped[int]
    kafka_offset: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )
