"""Each function is one transaction: the order and its event, or neither.

The domain changes first, the event is recorded beside it, and no function knows about Kafka. A domain
error anywhere inside rolls both back.
"""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import OrderCancelled, OrderChanged, OrderPlaced
from examples.order_service.order.domain import AlreadyPlaced, Order, UnknownOrder, grant_credit
from outbox import Outbox

sessions = sessionmaker()
"""Bound to the database by whoever starts the service: `sessions.configure(bind=engine)`."""

outbox = Outbox(sessions)


@outbox.transaction
def place_order(session: Session, customer_id: UUID, total: Decimal, order_id: UUID | None = None) -> UUID:
    """Place an order. A customer who chooses `order_id` may safely ask again after a lost answer.

    Raises AlreadyPlaced, CreditExceeded.
    """
    order = Order.place(order_id or uuid4(), customer_id, total, at=datetime.now(UTC))
    session.add(order)
    outbox.emit(
        session,
        OrderPlaced(
            order_id=order.id,
            customer_id=order.customer_id,
            total=order.total,
            revision=order.revision,
            placed_at=order.placed_at,
        ),
    )
    try:
        session.flush()
    except IntegrityError as taken:
        raise AlreadyPlaced(order.id) from taken
    # Asked last on purpose: a refusal now takes back the row that is written and the event that is recorded.
    grant_credit(order)
    return order.id


@outbox.transaction
def change_order(session: Session, order_id: UUID, total: Decimal) -> None:
    """Give an open order a new total. Raises UnknownOrder, AlreadyCancelled, CreditExceeded."""
    order = _locked(session, order_id)
    order.change(total)
    outbox.emit(
        session,
        OrderChanged(
            order_id=order.id, total=order.total, revision=order.revision, changed_at=datetime.now(UTC)
        ),
    )
    grant_credit(order)


@outbox.transaction
def cancel_order(session: Session, order_id: UUID) -> None:
    """Cancel an open order. Raises UnknownOrder, AlreadyCancelled."""
    order = _locked(session, order_id)
    now = datetime.now(UTC)
    order.cancel(at=now)
    outbox.emit(session, OrderCancelled(order_id=order.id, revision=order.revision, cancelled_at=now))


def find_order(order_id: UUID) -> Order:
    """The order as it stands, detached from any session. Raises UnknownOrder."""
    with sessions() as session:
        order = session.get(Order, order_id)
    if order is None:
        raise UnknownOrder(order_id)
    return order


def _locked(session: Session, order_id: UUID) -> Order:
    """The order, with its row locked first: whoever changes it next is also announced next."""
    order = session.get(Order, order_id, with_for_update=True)
    if order is None:
        raise UnknownOrder(order_id)
    return order
