"""Which order event leads to what: return commits the booking with the offset, raise rolls both back."""

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import OrderCancelled, OrderChanged, OrderPlaced
from examples.order_service.invoice import services
from examples.order_service.settings import database_url, kafka, shared_name
from outbox.consumer import Consumer, Record

engine = create_engine(database_url("INVOICE_DATABASE_URL"))
consumer = Consumer(group=shared_name("invoice"), sessions=sessionmaker(engine), kafka=kafka())


@consumer.on(OrderPlaced)
def order_placed(session: Session, event: OrderPlaced, record: Record) -> None:
    services.issue(session, event, record)


@consumer.on(OrderChanged)
def order_changed(session: Session, event: OrderChanged, record: Record) -> None:
    services.amend(session, event, record)


@consumer.on(OrderCancelled)
def order_cancelled(session: Session, event: OrderCancelled, record: Record) -> None:
    services.void(session, event, record)
