"""Which news leads to what, from both topics: invoices to ship, cancellations to stop or recall.

Handlers of whole batches: each gets all the news of its kind that was read together, and locks it together.
"""

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import InvoiceIssued, OrderCancelled
from examples.order_service.settings import database_url, kafka, shared_name
from examples.order_service.shipping import services
from outbox.consumer import Consumer, Record

engine = create_engine(database_url("SHIPPING_DATABASE_URL"))
consumer = Consumer(group=shared_name("shipping"), sessions=sessionmaker(engine), kafka=kafka())


@consumer.on(InvoiceIssued, batch=True)
def invoices_issued(session: Session, events: list[InvoiceIssued], records: list[Record]) -> None:
    services.ship(session, events, records)


@consumer.on(OrderCancelled, batch=True)
def orders_cancelled(session: Session, events: list[OrderCancelled], records: list[Record]) -> None:
    services.stop(session, events, records)
