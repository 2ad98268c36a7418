"""The order and its event, or neither."""

import json
import threading
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from examples.order_service.order import services
from examples.order_service.order.domain import (
    CREDIT_LIMIT,
    AlreadyCancelled,
    AlreadyPlaced,
    CreditExceeded,
    Order,
    UnknownOrder,
)
from examples.order_service.order.services import cancel_order, change_order, find_order, place_order
from outbox.storage.tables import outbox_event

ANN = uuid4()


def announced(engine: Engine) -> list[tuple[str, str]]:
    """What was announced, in order: (order, type)."""
    query = select(outbox_event.c.aggregateid, outbox_event.c.type).order_by(outbox_event.c.position)
    with engine.connect() as connection:
        return [(key, type_) for key, type_ in connection.execute(query)]


def test_an_order_announces_its_whole_life_in_order(orders: Engine) -> None:
    order_id = place_order(ANN, Decimal("9.90"))
    change_order(order_id, Decimal("12.50"))
    cancel_order(order_id)
    assert announced(orders) == [
        (str(order_id), "order.placed.v1"),
        (str(order_id), "order.changed.v1"),
        (str(order_id), "order.cancelled.v1"),
    ]
    order = find_order(order_id)
    assert (order.total, order.revision) == (Decimal("12.50"), 3)
    assert order.cancelled_at is not None


def test_an_order_refused_for_credit_leaves_neither_row_nor_event(orders: Engine) -> None:
    refused = uuid4()
    with pytest.raises(CreditExceeded):
        place_order(ANN, CREDIT_LIMIT + 1, order_id=refused)
    assert announced(orders) == []
    with pytest.raises(UnknownOrder):
        find_order(refused)


def test_a_change_refused_for_credit_leaves_the_order_as_it_was(orders: Engine) -> None:
    order_id = place_order(ANN, Decimal("9.90"))
    with pytest.raises(CreditExceeded):
        change_order(order_id, CREDIT_LIMIT + 1)
    assert find_order(order_id).total == Decimal("9.90")
    assert announced(orders) == [(str(order_id), "order.placed.v1")]


def test_asking_again_for_an_order_that_exists_places_nothing_twice(orders: Engine) -> None:
    order_id = place_order(ANN, Decimal("9.90"), order_id=uuid4())
    with pytest.raises(AlreadyPlaced):
        place_order(ANN, Decimal("9.90"), order_id=order_id)
    assert len(announced(orders)) == 1


def test_cancelling_twice_is_refused_and_announced_once(orders: Engine) -> None:
    order_id = place_order(ANN, Decimal("9.90"))
    cancel_order(order_id)
    with pytest.raises(AlreadyCancelled):
        cancel_order(order_id)
    assert [type_ for _, type_ in announced(orders)] == ["order.placed.v1", "order.cancelled.v1"]


@pytest.mark.parametrize("act", [lambda unknown: change_order(unknown, Decimal(1)), cancel_order])
def test_an_unknown_order_is_named(orders: Engine, act: Any) -> None:
    unknown = uuid4()
    with pytest.raises(UnknownOrder, match=str(unknown)):
        act(unknown)


def test_changes_of_one_order_at_the_same_time_are_announced_in_the_order_they_took_effect(
    orders: Engine,
) -> None:
    order_id = place_order(ANN, Decimal("1.00"))
    totals = [Decimal(n) for n in range(2, 10)]
    threads = [threading.Thread(target=change_order, args=(order_id, total)) for total in totals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert [revision for revision, _ in history(orders, order_id)] == list(range(1, 10))
    assert history(orders, order_id)[-1][1] == find_order(order_id).total


def history(engine: Engine, order_id: UUID) -> list[tuple[int, Decimal]]:
    """(revision, total) as announced."""
    query = (
        select(outbox_event.c.payload)
        .where(outbox_event.c.aggregateid == str(order_id))
        .order_by(outbox_event.c.position)
    )
    with engine.connect() as connection:
        values = [json.loads(payload) for payload in connection.scalars(query)]
    return [(value["revision"], Decimal(value["total"])) for value in values]


def test_a_service_joins_the_transaction_of_its_caller(orders: Engine) -> None:
    with services.sessions() as session:
        transaction = session.begin()
        order_id = place_order(ANN, Decimal("9.90"), session=session)
        assert session.get(Order, order_id) is not None
        transaction.rollback()
    assert announced(orders) == []
    with Session(orders) as session:
        assert session.get(Order, order_id) is None
