"""Tell from the databases how far everything is and who carries a shard, cheaply enough to ask always."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg

from relay.demo.failure import DemoFailed
from relay.demo.services import Addresses, Role

Row = tuple[Any, ...]

PUBLISHED: LiteralString = """
(SELECT count(*) FROM outbox_event e, outbox_shard s
 WHERE pg_visible_in_snapshot(e.xid, s.done) OR e.position <= s.low)
"""
"""Acknowledged by the broker, as far as the relays have written it down."""

ORDER: LiteralString = f"""
SELECT (SELECT count(*) FROM orders), count(*), {PUBLISHED},
       count(*) FILTER (WHERE type = 'order.cancelled.v1') FROM outbox_event
"""
INVOICE: LiteralString = f"""
SELECT (SELECT count(*) FROM invoice), (SELECT count(DISTINCT event_id) FROM invoice_journal),
       count(*), {PUBLISHED}, count(*) FILTER (WHERE type = 'invoice.issued.v1') FROM outbox_event
"""
SHIPPING: LiteralString = """
SELECT (SELECT count(*) FROM shipment WHERE standing = 'shipped'),
       (SELECT count(DISTINCT event_id) FROM shipment_log)
"""
OFFSETS: LiteralString = "SELECT topic, partition, next_offset FROM consumer_offset"
OWNER: LiteralString = "SELECT owner FROM outbox_lease WHERE lease_until > clock_timestamp()"
MIGRATED: LiteralString = "SELECT to_regclass('alembic_version') IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each there are at one moment."""

    orders: int = 0
    order_events: int = 0
    orders_published: int = 0
    cancellations: int = 0
    invoices: int = 0
    booked: int = 0
    invoice_events: int = 0
    invoices_published: int = 0
    issued: int = 0
    shipped: int = 0
    acted: int = 0

    @property
    def published(self) -> int:
        return self.orders_published + self.invoices_published

    @property
    def behind(self) -> Role | None:
        """The first on an order's way whose work is not done; None when everything has arrived."""
        if self.orders_published < self.order_events:
            return Role.ORDER_RELAY
        if self.booked < self.order_events:
            return Role.INVOICE
        if self.invoices_published < self.invoice_events:
            return Role.INVOICE_RELAY
        if self.acted < self.issued + self.cancellations:
            return Role.SHIPPING
        return None


class Gauge:
    """Holds one connection to each service's database."""

    def __init__(self, at: Addresses) -> None:
        self._at = at
        self._connections: dict[str, psycopg.Connection[Row]] = {}

    def migrated(self) -> bool:
        """Has every service brought its database up to date?"""
        return all(self._ask(service, MIGRATED)[0] for service in self._at.databases)

    def counts(self) -> Counts:
        return Counts(
            *self._ask("order", ORDER), *self._ask("invoice", INVOICE), *self._ask("shipping", SHIPPING)
        )

    def carrier(self, role: Role) -> str | None:
        """The relay that holds the lease."""
        found = self._query("order" if role is Role.ORDER_RELAY else "invoice", OWNER)
        return found[0][0] if found else None

    def offsets(self, service: str) -> dict[tuple[str, int], int]:
        """How far the consumers of `service` have read, by topic and partition."""
        return {(topic, partition): offset for topic, partition, offset in self._query(service, OFFSETS)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.close()

    def _ask(self, service: str, query: LiteralString) -> Row:
        return self._query(service, query)[0]

    def _query(self, service: str, query: LiteralString) -> list[Row]:
        try:
            if service not in self._connections:
                self._connections[service] = psycopg.connect(
                    self._at.databases[service], autocommit=True, connect_timeout=10
                )
            return self._connections[service].execute(query).fetchall()
        except psycopg.Error as error:
            raise DemoFailed(f"the database of {service} does not answer: {error}") from error
