"""What may be done to an order, without any database."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from examples.order_service.order.domain import (
    CREDIT_LIMIT,
    AlreadyCancelled,
    CreditExceeded,
    Order,
    grant_credit,
)

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def an_order(total: str = "9.90") -> Order:
    return Order.place(uuid4(), uuid4(), Decimal(total), at=NOON)


def test_everything_that_happens_to_an_order_gets_the_next_revision() -> None:
    order = an_order()
    revisions = [order.revision]
    order.change(Decimal("12.50"))
    revisions.append(order.revision)
    order.cancel(at=NOON)
    revisions.append(order.revision)
    assert revisions == [1, 2, 3]
    assert (order.total, order.cancelled_at) == (Decimal("12.50"), NOON)


def test_a_cancelled_order_is_final() -> None:
    order = an_order()
    order.cancel(at=NOON)
    with pytest.raises(AlreadyCancelled, match="final"):
        order.cancel(at=NOON)
    with pytest.raises(AlreadyCancelled, match=str(order.id)):
        order.change(Decimal(1))
    assert order.revision == 2


def test_credit_ends_just_above_the_limit() -> None:
    grant_credit(an_order(str(CREDIT_LIMIT)))
    with pytest.raises(CreditExceeded, match="above the credit limit"):
        grant_credit(an_order(str(CREDIT_LIMIT + Decimal("0.01"))))
