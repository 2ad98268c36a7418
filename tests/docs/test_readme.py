"""What the README shows runs as it stands there."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import catalog
from outbox.storage import tables
from outbox.testing.servers import KafkaServer

README = Path(__file__).parents[2] / "README.md"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID]
    total: Mapped[Decimal]


class Invoice(Base):
    __tablename__ = "invoices"
    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    amount: Mapped[Decimal]


def test_the_service_in_the_readme_records_its_order_and_its_event_together(
    engine: Engine, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_classes", {})  # the example services claim the same event names
    Base.metadata.create_all(engine)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    shown: dict[str, Any] = {
        "sessions": sessionmaker(engine),
        "Order": Order,
        "Invoice": Invoice,
        "kafka_address": kafka.bootstrap,
    }
    exec(compile(code, str(README), "exec"), shown)

    order_id = shown["place_order"](uuid4(), Decimal("9.90"))

    with Session(engine) as session:
        assert session.get_one(Order, order_id).total == Decimal("9.90")
        (event,) = session.execute(select(tables.outbox_event)).all()
        assert (event.type, event.aggregateid, event.topic) == ("order.placed.v1", str(order_id), "orders")
        shown["open_invoice"](session, shown["OrderPlaced"].model_validate_json(event.payload))
        session.flush()
        assert session.get_one(Invoice, order_id).amount == Decimal("9.90")


def test_the_readme_is_at_most_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 110
