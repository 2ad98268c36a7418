"""Read what the services and the outbox tables hold, by SQL alone, and how long an invoice took."""

from collections.abc import Mapping
from typing import Any

import psycopg

from relay.demo.evidence import Effect, Event, Evidence, Notes, Order, Record

ORDERS = "SELECT id::text, total, revision, cancelled_at IS NOT NULL FROM orders"
EVENTS = "SELECT id::text, aggregateid, type, topic, position, payload FROM outbox_event ORDER BY position"
BALANCES = "SELECT order_id::text, balance FROM invoice"
BOOKINGS = "SELECT event_id::text, order_id::text, booking, order_revision FROM invoice_journal ORDER BY id"
STANDINGS = "SELECT order_id::text, standing FROM shipment"
ACTIONS = "SELECT event_id::text, order_id::text, action FROM shipment_log ORDER BY id"

COMMIT_TIMES = "SELECT current_setting('track_commit_timestamp')::boolean"

WAITS = """
SELECT 1000 * extract(epoch FROM {committed} - requested_at)::float8
FROM invoice_journal WHERE booking = 'issue' ORDER BY 1
"""
"""Milliseconds from the customer's order to its invoice. Where the server keeps no commit times, to the
insertion of the invoice, a little earlier in the same transaction."""


def gather(urls: Mapping[str, str], notes: Mapping[str, Notes], records: list[Record]) -> Evidence:
    """The evidence, from the databases of `order`, `invoice` and `shipping`."""
    with (
        psycopg.connect(urls["order"]) as order,
        psycopg.connect(urls["invoice"]) as invoice,
        psycopg.connect(urls["shipping"]) as shipping,
    ):
        return Evidence(
            notes=notes,
            orders={id_: Order(*rest) for id_, *rest in order.execute(ORDERS)},
            order_events=_events(order),
            balances=_mapping(invoice, BALANCES),
            bookings=[Effect(*row) for row in invoice.execute(BOOKINGS)],
            invoice_events=_events(invoice),
            standings=_mapping(shipping, STANDINGS),
            actions=[Effect(*row) for row in shipping.execute(ACTIONS)],
            records=records,
        )


def waits(url: str) -> list[float]:
    """Milliseconds from each order to its invoice, ascending."""
    with psycopg.connect(url) as connection:
        known = connection.execute(COMMIT_TIMES).fetchone() == (True,)
        committed = "pg_xact_commit_timestamp(xmin)" if known else "created_at"
        rows = connection.execute(WAITS.format(committed=committed).encode())
        return [max(0.0, milliseconds) for (milliseconds,) in rows]


def _events(connection: psycopg.Connection[tuple[Any, ...]]) -> list[Event]:
    return [Event(*row) for row in connection.execute(EVENTS)]


def _mapping(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> dict[str, Any]:
    return dict(connection.execute(query.encode()).fetchall())


def percentile(ascending: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 when there is none."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
