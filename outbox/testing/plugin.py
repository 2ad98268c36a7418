"""See in a test which events the code under test announced, without a relay and without Kafka.

    def test_placing_an_order_announces_it(outbox_events):
        order_id = place_order(ANN, Decimal("9.90"))
        assert outbox_events() == [OrderPlaced(order_id=order_id, customer_id=ANN, total=Decimal("9.90"))]

pytest finds the fixture by itself where the package is installed.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from outbox.event import Event
    from outbox.pending import Pending

OutboxEvents = Callable[[], "list[Event]"]


@pytest.fixture
def outbox_events() -> Iterator[OutboxEvents]:
    """A function that returns the events emitted since the test began, as a consumer would decode them.

    What a rollback took back is not among them, whether of a transaction or of a savepoint. What a
    transaction holds that is still open is: a test may roll back everything around the code it tests. On a
    raw psycopg connection rollbacks cannot be seen, and its events stay listed.
    """
    # Imported here: pytest loads this module in every run, also where no test is about events.
    from outbox import catalog, hooks

    seen: list[Pending] = []

    def observe(point: str, facts: dict[str, Any]) -> None:
        if point == "outbox.opened":
            seen.append(facts["pending"])

    def events() -> "list[Event]":
        rows = (row for pending in seen for row in pending.rows)
        return [catalog.decode(row.type, row.payload) for row in rows if row.payload is not None]

    unsubscribe = hooks.subscribe(observe)
    yield events
    unsubscribe()
