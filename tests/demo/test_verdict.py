"""The verdict sees every breach: each test doctors honest evidence and names what must be found."""

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import relay.demo
from relay.demo.evidence import Effect, Event, Evidence, Notes, Order, Record
from relay.demo.verdict import KINDS, Kind, Verdict, judge

Doctor = Callable[[Evidence], Evidence]

PLAIN, CANCELLED, CHANGED = "a-plain", "b-cancelled", "c-changed"


def honest() -> Evidence:
    """Three orders that went well: one plain, one cancelled, one changed once; and one that was refused."""
    order_events = [
        event("placed-a", PLAIN, "order.placed.v1", 1),
        event("placed-b", CANCELLED, "order.placed.v1", 2),
        event("placed-c", CHANGED, "order.placed.v1", 3),
        event("changed-c", CHANGED, "order.changed.v1", 4),
        event("cancelled-b", CANCELLED, "order.cancelled.v1", 5),
    ]
    invoice_events = [
        event("issued-a", PLAIN, "invoice.issued.v1", 1),
        event("issued-b", CANCELLED, "invoice.issued.v1", 2),
        event("issued-c", CHANGED, "invoice.issued.v1", 3),
        event("amended-c", CHANGED, "invoice.amended.v1", 4),
        event("voided-b", CANCELLED, "invoice.voided.v1", 5),
    ]
    return Evidence(
        notes={
            PLAIN: Notes(placed=True),
            CANCELLED: Notes(placed=True, cancelled=True),
            CHANGED: Notes(placed=True, changes=1),
            "d-refused": Notes(),
        },
        orders={
            PLAIN: Order(Decimal(10), 1, cancelled=False),
            CANCELLED: Order(Decimal(20), 2, cancelled=True),
            CHANGED: Order(Decimal(31), 2, cancelled=False),
        },
        order_events=order_events,
        balances={PLAIN: Decimal(10), CANCELLED: Decimal("0.00"), CHANGED: Decimal("31.00")},
        bookings=[
            Effect("placed-a", PLAIN, "issue", 1),
            Effect("placed-b", CANCELLED, "issue", 1),
            Effect("placed-c", CHANGED, "issue", 1),
            Effect("changed-c", CHANGED, "amend", 2),
            Effect("cancelled-b", CANCELLED, "void", 2),
        ],
        invoice_events=invoice_events,
        standings={PLAIN: "shipped", CANCELLED: "recalled", CHANGED: "shipped"},
        actions=[
            Effect("issued-a", PLAIN, "ship"),
            Effect("issued-b", CANCELLED, "ship"),
            Effect("issued-c", CHANGED, "ship"),
            Effect("cancelled-b", CANCELLED, "recall"),
        ],
        records=[record(each, offset) for offset, each in enumerate([*order_events, *invoice_events])],
    )


def event(id_: str, key: str, type_: str, position: int) -> Event:
    topic = "orders" if type_.startswith("order") else "invoices"
    return Event(id_, key, type_, topic, position, payload=id_.encode())


def record(of: Event, offset: int) -> Record:
    return Record(of.topic, 0, offset, of.id, of.key, of.payload)


def without(name: str, id_: str) -> Doctor:
    """The evidence lacks one element of a sequence."""

    def doctor(evidence: Evidence) -> Evidence:
        kept = [each for each in getattr(evidence, name) if _id(each) != id_]
        assert len(kept) < len(getattr(evidence, name))
        return _with(evidence, name, kept)

    return doctor


def added(name: str, *elements: object) -> Doctor:
    """The evidence has more elements at the end of a sequence."""
    return lambda evidence: _with(evidence, name, [*getattr(evidence, name), *elements])


def together(*doctors: Doctor) -> Doctor:
    """One breach leaves traces in several places."""

    def doctor(evidence: Evidence) -> Evidence:
        for each in doctors:
            evidence = each(evidence)
        return evidence

    return doctor


def changed(name: str, id_: str, **values: Any) -> Doctor:
    """One element of a sequence says something else."""

    def doctor(evidence: Evidence) -> Evidence:
        found = getattr(evidence, name)
        return _with(evidence, name, [replace(e, **values) if _id(e) == id_ else e for e in found])

    return doctor


def with_value(name: str, key: str, value: object) -> Doctor:
    """A mapping says something else; None removes."""

    def doctor(evidence: Evidence) -> Evidence:
        values = {**getattr(evidence, name), key: value}
        return _with(evidence, name, {k: v for k, v in values.items() if v is not None})

    return doctor


def swapped(name: str, one: str, other: str) -> Doctor:
    """Two elements of a sequence have changed places."""

    def doctor(evidence: Evidence) -> Evidence:
        found = list(getattr(evidence, name))
        i, j = (next(n for n, each in enumerate(found) if _id(each) == id_) for id_ in (one, other))
        found[i], found[j] = found[j], found[i]
        return _with(evidence, name, found)

    return doctor


def _with(evidence: Evidence, name: str, value: Any) -> Evidence:
    changes: dict[str, Any] = {name: value}
    return replace(evidence, **changes)


def _id(element: Event | Record | Effect) -> str | None:
    return element.event if isinstance(element, Effect) else element.id


def numbers(verdict: Verdict) -> dict[str, int]:
    return {kind: verdict.count(kind) for kind in KINDS if verdict.count(kind)}


def test_honest_evidence_passes() -> None:
    verdict = judge(honest())
    assert verdict.passed, verdict.breaches
    assert (verdict.published, verdict.repeats) == (10, 0)


def test_evidence_of_nothing_passes() -> None:
    empty: dict[str, Any] = {field.name: [] for field in dataclasses.fields(Evidence)}
    mappings: dict[str, Any] = {name: {} for name in ("notes", "orders", "balances", "standings")}
    assert judge(Evidence(**{**empty, **mappings})).passed


NEW = "e-new"
STRANGER = event("stranger", NEW, "order.placed.v1", 9)
PLACED_AGAIN = event("placed-again", PLAIN, "order.placed.v1", 9)
ISSUED_AGAIN = event("issued-again", PLAIN, "invoice.issued.v1", 9)

CASES: dict[Kind, dict[str, Doctor]] = {
    "lost": {
        "an acknowledged order has no row": with_value("notes", NEW, Notes(placed=True)),
        "an order was committed without its event": together(
            with_value("notes", NEW, Notes(placed=True)),
            with_value("orders", NEW, Order(Decimal(1), 1, cancelled=False)),
        ),
        "a committed event is on no topic": without("records", "placed-a"),
        "a committed event without effects is on no topic": together(
            without("records", "changed-c"),
            without("bookings", "changed-c"),
            without("invoice_events", "amended-c"),
            without("records", "amended-c"),
            with_value("balances", CHANGED, Decimal(30)),
        ),
        "an event was never booked": together(
            without("bookings", "changed-c"),
            without("invoice_events", "amended-c"),
            without("records", "amended-c"),
            with_value("balances", CHANGED, Decimal(30)),
        ),
        "a booking was made without its event": together(
            without("invoice_events", "amended-c"), without("records", "amended-c")
        ),
        "an invoice was never acted on": without("actions", "issued-a"),
        "a cancellation never reached shipping": without("actions", "cancelled-b"),
        "an invoice is missing though its event was booked": with_value("balances", PLAIN, None),
        "an invoice asks for the amount before the change": with_value("balances", CHANGED, Decimal(30)),
        "a cancelled order is still charged": with_value("balances", CANCELLED, Decimal(20)),
        "a shipment is missing though shipping acted": with_value("standings", PLAIN, None),
        "a cancelled order stays shipped": with_value("standings", CANCELLED, "shipped"),
        "an acknowledged change was not made": with_value("notes", PLAIN, Notes(placed=True, changes=1)),
        "an acknowledged cancellation was not made": with_value(
            "notes", CHANGED, Notes(placed=True, cancelled=True)
        ),
    },
    "ghosts": {
        "a record's event was never committed": added("records", record(STRANGER, 99)),
        "a record has no id": added("records", Record("orders", 0, 99, None, NEW, b"")),
        "a record does not say what was committed": changed("records", "issued-c", value=b"forged"),
        "a record has another key than was committed": changed("records", "issued-c", key=PLAIN),
        "a record is on another topic than was committed": changed("records", "issued-c", topic="orders"),
        "an order that was rolled back exists": together(
            with_value("orders", "d-refused", Order(Decimal(1), 1, cancelled=False)),
            added("order_events", event("d", "d-refused", "order.placed.v1", 9)),
            added("records", record(event("d", "d-refused", "order.placed.v1", 9), 99)),
            added("bookings", Effect("d", "d-refused", "issue", 1)),
            added("invoice_events", event("issued-d", "d-refused", "invoice.issued.v1", 9)),
            added("records", record(event("issued-d", "d-refused", "invoice.issued.v1", 9), 100)),
            added("actions", Effect("issued-d", "d-refused", "ship")),
        ),
        "an event of an order that was rolled back went out": together(
            added("order_events", STRANGER),
            added("records", record(STRANGER, 99)),
            added("bookings", Effect("stranger", NEW, "issue", 1)),
            added("invoice_events", event("issued-e", NEW, "invoice.issued.v1", 9)),
            added("records", record(event("issued-e", NEW, "invoice.issued.v1", 9), 100)),
            added("actions", Effect("issued-e", NEW, "ship")),
        ),
        "an invoice exists for no order": with_value("balances", NEW, Decimal(1)),
        "a shipment exists for no order": with_value("standings", NEW, "shipped"),
        "an action answers no committed event": added("actions", Effect("stranger", NEW, "ship")),
    },
    "duplicates": {
        "an event was booked twice": together(
            added("bookings", Effect("placed-a", PLAIN, "issue", 1)),
            added("invoice_events", ISSUED_AGAIN),
            added("records", record(ISSUED_AGAIN, 99)),
            added("actions", Effect("issued-again", PLAIN, "ship")),
            with_value("balances", PLAIN, Decimal(20)),
        ),
        "an event was acted on twice": added("actions", Effect("cancelled-b", CANCELLED, "recall")),
        "a booking was announced twice": together(
            added("invoice_events", ISSUED_AGAIN),
            added("records", record(ISSUED_AGAIN, 99)),
            added("actions", Effect("issued-again", PLAIN, "ship")),
        ),
        "an order was placed twice": together(
            added("order_events", PLACED_AGAIN),
            added("records", record(PLACED_AGAIN, 99)),
            added("bookings", Effect("placed-again", PLAIN, "issue", 1)),
            added("invoice_events", ISSUED_AGAIN),
            added("records", record(ISSUED_AGAIN, 100)),
            added("actions", Effect("issued-again", PLAIN, "ship")),
        ),
        "an order was changed once more than acknowledged": with_value("notes", CHANGED, Notes(placed=True)),
    },
    "inversions": {
        "two events of a key stand in the wrong order": swapped("records", "placed-c", "changed-c"),
        "the events of a key are on two partitions": changed("records", "changed-c", partition=1),
        "a change was booked before its order": swapped("bookings", "placed-c", "changed-c"),
    },
}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind in KINDS for case in CASES[kind]])
def test_a_breach_is_counted_once_under_its_name(kind: Kind, case: str) -> None:
    verdict = judge(CASES[kind][case](honest()))
    assert numbers(verdict) == {kind: 1}, verdict.breaches
    assert not verdict.passed


def test_repeats_on_the_wire_are_counted_and_forgiven() -> None:
    events = honest().order_events
    late = [record(events[0], 90), record(events[2], 91), record(events[0], 92)]
    verdict = judge(added("records", *late)(honest()))
    assert verdict.passed, verdict.breaches
    assert (verdict.published, verdict.repeats) == (10, 3)


def test_a_repeat_that_says_something_else_is_a_ghost() -> None:
    changed_repeat = replace(record(honest().order_events[0], 90), value=b"forged")
    assert numbers(judge(added("records", changed_repeat)(honest()))) == {"ghosts": 1}


def test_each_of_many_breaches_is_counted() -> None:
    bad = together(*(CASES[kind][next(iter(CASES[kind]))] for kind in ("lost", "ghosts")))(honest())
    assert numbers(judge(bad)) == {"lost": 1, "ghosts": 1}


@pytest.mark.parametrize("module", ["verdict", "evidence", "wire", "databases"])
def test_the_verdict_shares_no_code_with_the_framework(module: str) -> None:
    """Nothing of `outbox`, and of `relay` only the demo's own values and its way to fail."""
    tree = ast.parse(Path(relay.demo.__path__[0], f"{module}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    own = {"relay.demo.evidence", "relay.demo.failure"}
    assert {name for name in imported - own if name.split(".")[0] in {"outbox", "relay", "examples"}} == set()
