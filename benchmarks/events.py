"""The event and the tables of all benchmarks."""

from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, Column, MetaData, Numeric, Table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import Event

NOTE = "0123456789abcdef" * 14


class OrderPlaced(Event, name="benchmark.order.placed", version=1, aggregate="order", key="order_id"):
    """About 330 bytes of JSON."""

    order_id: UUID
    number: int
    total: Decimal
    note: str


class Base(DeclarativeBase):
    pass


class Order(Base):
    """The domain row of a writing service."""

    __tablename__ = "bench_order"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    order_id: Mapped[UUID]
    total: Mapped[Decimal]
    note: Mapped[str]


result = Table(
    "bench_result",
    MetaData(),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("total", Numeric, nullable=False),
)
"""What a consumer writes."""

STORE = text("""
INSERT INTO bench_result (number, total)
SELECT * FROM unnest(CAST(:numbers AS bigint[]), CAST(:totals AS numeric[]))
""")


def store(session: Session, events: list[OrderPlaced]) -> None:
    """The work of every consumer here: one statement for a whole batch."""
    session.execute(
        STORE, {"numbers": [event.number for event in events], "totals": [event.total for event in events]}
    )


class Result(Base):
    """The same through the ORM."""

    __tablename__ = "bench_result_orm"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    total: Mapped[Decimal] = mapped_column(Numeric)


def store_one(session: Session, event: OrderPlaced) -> None:
    """The work of a handler that gets one event at a time."""
    session.add(Result(number=event.number, total=event.total))


def create_tables(url: str) -> None:
    """In a database that has the outbox already."""
    from benchmarks.place import engine  # not in what is measured: it brings the servers along, 2 MB

    fresh = engine(url)
    Base.metadata.create_all(fresh)
    result.metadata.create_all(fresh)
