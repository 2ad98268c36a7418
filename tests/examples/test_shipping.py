"""Nothing cancelled stays shipped, whichever news comes first."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from examples.order_service.events import InvoiceIssued, OrderCancelled
from examples.order_service.shipping import services
from examples.order_service.shipping.domain import (
    Action,
    LogEntry,
    Shipment,
    Standing,
    on_cancellation,
    on_invoice,
)
from outbox.consumer import Record

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

Records = Callable[[str], Record]
Sessions = sessionmaker[Session]
News = Callable[[Session, UUID, Record], None]


def invoice_comes(session: Session, order_id: UUID, record: Record) -> None:
    event = InvoiceIssued(order_id=order_id, customer_id=uuid4(), amount=Decimal("9.90"), placed_at=NOON)
    services.ship(session, [event], [record])


def cancellation_comes(session: Session, order_id: UUID, record: Record) -> None:
    services.stop(session, [OrderCancelled(order_id=order_id, revision=2, cancelled_at=NOON)], [record])


def state(sessions: Sessions, order_id: UUID) -> tuple[str, list[str]]:
    """Where the order stands, and the actions taken for it in order."""
    with sessions() as session:
        standing = session.get_one(Shipment, order_id).standing
        log = session.scalars(
            select(LogEntry.action).where(LogEntry.order_id == order_id).order_by(LogEntry.id)
        )
        return standing.value, [action.value for action in log]


def test_an_order_cancelled_before_its_invoice_came_never_ships() -> None:
    standing, _ = on_cancellation(Standing.EXPECTED)
    assert on_invoice(standing) == (Standing.STOPPED, Action.WITHHOLD)


def test_an_order_cancelled_after_it_was_shipped_is_recalled() -> None:
    standing, _ = on_invoice(Standing.EXPECTED)
    assert on_cancellation(standing) == (Standing.RECALLED, Action.RECALL)


@pytest.mark.parametrize("standing", Standing)
def test_every_standing_knows_what_to_do_with_every_piece_of_news(standing: Standing) -> None:
    after_cancellation, _ = on_cancellation(standing)
    assert after_cancellation in {Standing.STOPPED, Standing.RECALLED}
    assert on_invoice(after_cancellation) == (after_cancellation, Action.WITHHOLD)


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        ([invoice_comes], ("shipped", ["ship"])),
        ([cancellation_comes], ("stopped", ["stop"])),
        ([cancellation_comes, invoice_comes], ("stopped", ["stop", "withhold"])),
        ([invoice_comes, cancellation_comes], ("recalled", ["ship", "recall"])),
    ],
)
@pytest.mark.parametrize("transactions", ["one each", "one for all"])
def test_either_order_of_news_ends_right(
    shipments: Sessions,
    record: Records,
    news: list[News],
    expected: tuple[str, list[str]],
    transactions: str,
) -> None:
    order_id = uuid4()
    if transactions == "one for all":
        with shipments.begin() as session:
            for arrives in news:
                arrives(session, order_id, record("any"))
    else:
        for arrives in news:
            with shipments.begin() as session:
                arrives(session, order_id, record("any"))
    assert state(shipments, order_id) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (cancellation_comes, invoice_comes, ("stopped", ["stop", "withhold"])),
        (invoice_comes, cancellation_comes, ("recalled", ["ship", "recall"])),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_news_that_arrives_while_the_other_is_being_decided_waits_for_it(
    shipments: Sessions,
    record: Records,
    first: News,
    second: News,
    expected: tuple[str, list[str]],
    known: bool,
) -> None:
    order_id = uuid4()
    if known:
        with shipments.begin() as session:
            session.add(Shipment(order_id=order_id, standing=Standing.EXPECTED))

    def second_comes() -> None:
        with shipments.begin() as session:
            second(session, order_id, record("invoices"))

    with ThreadPoolExecutor(1) as pool:
        with shipments.begin() as session:
            first(session, order_id, record("orders"))
            session.flush()
            crossing = pool.submit(second_comes)
            wait_until_another_waits(shipments)
        crossing.result(timeout=10)
    assert state(shipments, order_id) == expected


def test_a_first_decision_that_is_rolled_back_leaves_the_second_alone(
    shipments: Sessions, record: Records
) -> None:
    order_id = uuid4()

    def second_comes() -> None:
        with shipments.begin() as session:
            invoice_comes(session, order_id, record("invoices"))

    with ThreadPoolExecutor(1) as pool:
        with shipments() as session:
            cancellation_comes(session, order_id, record("orders"))
            session.flush()
            crossing = pool.submit(second_comes)
            wait_until_another_waits(shipments)
            session.rollback()
        crossing.result(timeout=10)
    assert state(shipments, order_id) == ("shipped", ["ship"])


def test_batches_that_share_orders_queue_up_whatever_order_they_list_them_in(
    shipments: Sessions, record: Records
) -> None:
    order_ids = [uuid4() for _ in range(50)]
    invoices = [
        InvoiceIssued(order_id=order_id, customer_id=uuid4(), amount=Decimal("9.90"), placed_at=NOON)
        for order_id in order_ids
    ]
    cancellations = [
        OrderCancelled(order_id=order_id, revision=2, cancelled_at=NOON) for order_id in reversed(order_ids)
    ]

    def ship_all() -> None:
        with shipments.begin() as session:
            services.ship(session, invoices, [record("invoices") for _ in invoices])

    def stop_all() -> None:
        with shipments.begin() as session:
            services.stop(session, cancellations, [record("orders") for _ in cancellations])

    with ThreadPoolExecutor(2) as pool:
        for round_ in [pool.submit(ship_all), pool.submit(stop_all)]:
            round_.result(timeout=30)
    assert {state(shipments, order_id)[0] for order_id in order_ids} <= {"stopped", "recalled"}
    assert {len(state(shipments, order_id)[1]) for order_id in order_ids} == {2}


def test_two_orders_locked_crosswise_do_not_deadlock(shipments: Sessions, record: Records) -> None:
    low, high = sorted([uuid4(), uuid4()])

    def both(news: list[UUID]) -> None:
        events = [OrderCancelled(order_id=order_id, revision=2, cancelled_at=NOON) for order_id in news]
        with shipments.begin() as session:
            services.stop(session, events, [record("orders") for _ in events])

    with ThreadPoolExecutor(1) as pool:
        with shipments.begin() as session:
            invoice_comes(session, low, record("invoices"))
            crossing = pool.submit(both, [high, low])
            wait_until_another_waits(shipments)
            invoice_comes(session, high, record("invoices"))
        crossing.result(timeout=10)
    assert state(shipments, low)[0] == state(shipments, high)[0] == "recalled"


ANOTHER_WAITS = text("""
DO $$ BEGIN
    FOR attempt IN 1..1000 LOOP
        PERFORM pg_stat_clear_snapshot();
        IF EXISTS (SELECT FROM pg_stat_activity
                   WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0) THEN
            RETURN;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RAISE EXCEPTION 'nobody waits for a lock';
END $$
""")
"""Returns when somebody in this database waits for a lock; fails after ten seconds."""


def wait_until_another_waits(sessions: Sessions) -> None:
    with sessions() as session:
        session.execute(ANOTHER_WAITS)
