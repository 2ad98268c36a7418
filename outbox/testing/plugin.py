"""See in a test which events the code under test announced, without a relay and without Kafka.

    def test_placing_an_order_announces_it(outbox_events):
        order_id = place_order(ANN, Decimal("9.90"))
        assert outbox_events() == [OrderPlaced(order_id=order_id, customer_id=ANN, total=Decimal("9.90"))]
        assert outbox_events.scheduled() == [Scheduled(due=TOMORROW, event=PaymentReminded(order_id))]

pytest finds the fixture by itself where the package is installed.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from outbox.event import Event
    from outbox.pending import Pending
    from outbox.row import Row
    from outbox.tombstone import Tombstone


class Scheduled(NamedTuple):
    """An event that waits, and for which moment (in UTC)."""

    due: datetime
    event: "Event | Tombstone"


class OutboxEvents:
    """What the code under test announced so far, as a consumer would decode it."""

    def __init__(self) -> None:
        self._seen: list[Pending] = []

    def __call__(self) -> "list[Event | Tombstone]":
        """The events that leave with their transaction, in order; none that waits for a moment."""
        return _decoded(row for pending in self._seen for row in pending.rows if row.due is None)

    def scheduled(self) -> list[Scheduled]:
        """The events that wait for their moment and were not cancelled, the earliest first."""
        waiting: dict[Any, Row] = {}
        for pending in self._seen:
            for event_id in pending.cancelled:
                waiting.pop(event_id, None)
            waiting |= {row.id: row for row in pending.rows if row.due is not None}
        found = [
            Scheduled(row.due, event)
            for row in waiting.values()
            if row.due is not None
            for event in _decoded([row])
        ]
        return sorted(found, key=lambda scheduled: scheduled.due)


def _decoded(rows: "Iterable[Row]") -> "list[Event | Tombstone]":
    from outbox import catalog
    from outbox.tombstone import Tombstone

    return [
        Tombstone(catalog.lookup(row.type), key=row.aggregateid or "")
        if row.payload is None
        else catalog.decode(row.type, row.payload)
        for row in rows
    ]


@pytest.fixture
def outbox_events() -> Iterator[OutboxEvents]:
    """Called, it returns the events emitted since the test began, as a consumer would decode them;
    `outbox_events.scheduled()` returns those that wait for their moment.

    What a rollback took back is not among them, whether of a transaction or of a savepoint. What a
    transaction holds that is still open is: a test may roll back everything around the code it tests. On a
    raw psycopg connection rollbacks cannot be seen, and its events stay listed.
    """
    # Imported here: pytest loads this module in every run, also where no test is about events.
    from outbox import hooks

    events = OutboxEvents()

    def observe(point: str, facts: dict[str, Any]) -> None:
        if point == "outbox.opened":
            events._seen.append(facts["pending"])

    unsubscribe = hooks.subscribe(observe)
    yield events
    unsubscribe()
