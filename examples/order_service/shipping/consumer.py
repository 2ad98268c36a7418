"""Which news leads to what, from both topics: invoices to ship, cancellations to stop or recall."""

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import InvoiceIssued, OrderCancelled
from examples.order_service.settings import database_url, kafka, shared_name
from examples.order_service.shipping import services
from outbox.consumer import Consumer, Record

engine = create_engine(database_url("SHIPPING_DATABASE_URL"))
consumer = Consumer(group=shared_name("shipping"), sessions=sessionmaker(engine), kafka=kafka())


@consumer.on(InvoiceIssued)
def invoice_issued(session: Session, event: InvoiceIssued, record: Record) -> None:
    services.ship(session, event, record)


@consumer.on(OrderCancelled)
def order_cancelled(session: Session, event: OrderCancelled, record: Record) -> None:
    services.stop(session, event, record)
