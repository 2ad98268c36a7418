"""Judge what happened from what is there: four numbers that must be zero, and none that can hide.

Four sources are held against each other: what the customers were told (`Notes`), the rows of the services,
the committed events (`outbox_event`), and every record on the topics. A breach is counted where the chain
breaks, not again at the links behind it.

lost        an acknowledged request that its database does not know; a change without its event; a committed
            event that is not on its topic; an event on its topic that was not booked or not acted on; an
            invoice or shipment that is not what its order asks for although every event was applied
ghosts      a record on a topic whose event was never committed, or whose key or content is not what was
            committed; an event without its change; any trace of an order that was rolled back or never
            placed; an effect that no committed event asks for
duplicates  an event applied more than once; an order placed, invoiced or announced more than once
inversions  first occurrences of one key on the wire out of the order in which they were committed, or spread
            over two partitions; bookings of one order out of the order of its revisions
repeats     records on the wire beyond the first of an event: allowed after a crash, and counted only

This module is pure and imports nothing of the framework that it judges.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from relay.demo.evidence import Effect, Event, Evidence, Notes, Order, Record

Kind = Literal["lost", "ghosts", "duplicates", "inversions"]
KINDS: tuple[Kind, ...] = ("lost", "ghosts", "duplicates", "inversions")

PLACED, CHANGED, CANCELLED = "order.placed.v1", "order.changed.v1", "order.cancelled.v1"
ISSUED, AMENDED, VOIDED = "invoice.issued.v1", "invoice.amended.v1", "invoice.voided.v1"

BOOKED = {PLACED: {"issue"}, CHANGED: {"amend"}, CANCELLED: {"void"}}
"""What the invoice service may do about an order's event."""

ANNOUNCED = {"issue": ISSUED, "amend": AMENDED, "void": VOIDED}
"""What it says about what it did."""

SHIPPED = {ISSUED: {"ship", "withhold"}, CANCELLED: {"stop", "recall"}}
"""What shipping may do about either piece of news."""

KEPT_BACK = {"stopped", "recalled"}


@dataclass(slots=True)
class Verdict:
    """The numbers, each breach in words, and the orders whose chain is broken."""

    published: int = 0
    repeats: int = 0
    breaches: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    broken: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        return not any(self.breaches.values())

    def count(self, kind: Kind) -> int:
        return len(self.breaches[kind])

    def add(self, kind: Kind, order: str | None, what: str, times: int = 1) -> None:
        self.breaches[kind] += [what] * times
        if order is not None:
            self.broken.add(order)

    def expect(self, order: str, what: str, found: int, wanted: int) -> None:
        """Fewer than wanted are lost; more are duplicates, or ghosts where there should be none."""
        if found != wanted:
            kind: Kind = "lost" if found < wanted else "duplicates" if wanted else "ghosts"
            self.add(
                kind, order, f"order {order} has {found} {what} instead of {wanted}", abs(found - wanted)
            )


def judge(evidence: Evidence) -> Verdict:
    """Hold the sources against each other, along an order's way."""
    verdict = Verdict()
    committed = [*evidence.order_events, *evidence.invoice_events]
    _judge_requests(verdict, evidence.notes, evidence.orders)
    _judge_order_events(verdict, evidence.orders, evidence.order_events)
    seen = _judge_topics(verdict, committed, evidence.records)
    _judge_effects(verdict, "booked", evidence.bookings, committed, seen, BOOKED)
    _judge_announcements(verdict, evidence.bookings, evidence.invoice_events)
    _judge_effects(verdict, "acted on by shipping", evidence.actions, committed, seen, SHIPPED)
    _judge_journal_order(verdict, evidence.bookings)
    _judge_results(verdict, evidence)
    return verdict


def _judge_requests(verdict: Verdict, told: Mapping[str, Notes], orders: Mapping[str, Order]) -> None:
    """Each order is what its customer was told, and no other order exists."""
    for order_id, notes in told.items():
        order = orders.get(order_id)
        if not notes.placed:
            continue
        if order is None:
            verdict.add("lost", order_id, f"order {order_id} was acknowledged and does not exist")
            continue
        verdict.expect(order_id, "revisions", order.revision, notes.revision)
        if order.cancelled != notes.cancelled and order.revision == notes.revision:
            verdict.add("lost", order_id, f"order {order_id}: its cancellation is not what was acknowledged")
    for order_id in orders:
        if order_id not in told or not told[order_id].placed:
            verdict.add("ghosts", order_id, f"order {order_id} exists, but was rolled back or never placed")


def _judge_order_events(verdict: Verdict, orders: Mapping[str, Order], events: Iterable[Event]) -> None:
    """Each revision of an order has its one event."""
    found = Counter((event.key, event.type) for event in events)
    for order_id in orders.keys() | {key for key, _ in found}:
        order = orders.get(order_id)
        cancelled = int(order is not None and order.cancelled)
        changes = 0 if order is None else order.revision - 1 - cancelled
        for type_, wanted in ((PLACED, int(order is not None)), (CHANGED, changes), (CANCELLED, cancelled)):
            verdict.expect(order_id, f"events {type_}", found[order_id, type_], wanted)


def _judge_topics(verdict: Verdict, committed: list[Event], records: Iterable[Record]) -> set[str]:
    """Each committed event is on its topic, nothing else is, each key in order. Returns the ids found."""
    events = {event.id: event for event in committed}
    firsts: dict[tuple[str, str], list[tuple[Record, Event]]] = defaultdict(list)
    seen: set[str] = set()
    for record in records:
        event = events.get(record.id or "")
        if event is None:
            verdict.add("ghosts", record.key, f"{record}: event {record.id} was never committed")
            continue
        if (record.topic, record.key, record.value) != (event.topic, event.key, event.payload):
            verdict.add("ghosts", event.key, f"{record}: event {event.id} does not say what was committed")
        if event.id in seen:
            verdict.repeats += 1
        else:
            seen.add(event.id)
            firsts[event.topic, event.key].append((record, event))
    verdict.published = len(seen)
    for event in events.values():
        if event.id not in seen:
            verdict.add("lost", event.key, f"{_name(event)} is not on topic {event.topic}")
    for found in firsts.values():
        for (earlier, before), (later, after) in pairwise(found):
            if earlier.partition != later.partition or before.position > after.position:
                verdict.add("inversions", after.key, f"{later}: {_name(after)} belongs before {earlier}")
    return seen


def _judge_effects(
    verdict: Verdict,
    verb: str,
    effects: Iterable[Effect],
    committed: Iterable[Event],
    seen: set[str],
    answers: Mapping[str, set[str]],
) -> None:
    """Each event that reached its topic was applied once, as it should be, and nothing else was."""
    events = {event.id: event for event in committed if event.type in answers}
    times: Counter[str] = Counter()
    for effect in effects:
        event = events.get(effect.event)
        if event is None or event.key != effect.order or effect.action not in answers[event.type]:
            what = f"order {effect.order}: {effect.action} {verb} for event {effect.event}"
            verdict.add("ghosts", effect.order, f"{what}, which does not ask for it")
        else:
            times[event.id] += 1
    for event in events.values():
        if times[event.id] > 1:
            what = f"{_name(event)} was {verb} {times[event.id]} times"
            verdict.add("duplicates", event.key, what, times[event.id] - 1)
        elif times[event.id] == 0 and event.id in seen:
            verdict.add("lost", event.key, f"{_name(event)} was never {verb}")


def _judge_announcements(verdict: Verdict, bookings: Iterable[Effect], events: Iterable[Event]) -> None:
    """Each booking has its one event, and no event speaks of a booking that is not there."""
    booked = Counter((booking.order, ANNOUNCED[booking.action]) for booking in bookings)
    told = Counter((event.key, event.type) for event in events)
    for order_id, type_ in booked.keys() | told.keys():
        verdict.expect(order_id, f"events {type_}", told[order_id, type_], booked[order_id, type_])


def _judge_journal_order(verdict: Verdict, bookings: Iterable[Effect]) -> None:
    """Each order was booked revision by revision."""
    journal: dict[str, dict[str, int]] = defaultdict(dict)
    for booking in bookings:
        journal[booking.order].setdefault(booking.event, booking.revision)
    for order_id, revisions in journal.items():
        for before, after in pairwise(revisions.values()):
            if before > after:
                what = f"order {order_id}: revision {after} was booked after revision {before}"
                verdict.add("inversions", order_id, what)


def _judge_results(verdict: Verdict, evidence: Evidence) -> None:
    """Where every link held, the sum must be right too."""
    for order_id in evidence.balances.keys() | evidence.standings.keys():
        if order_id not in evidence.orders and order_id not in verdict.broken:
            verdict.add("ghosts", order_id, f"order {order_id} has an invoice or shipment and does not exist")
    for order_id, order in evidence.orders.items():
        if order_id in verdict.broken:
            continue
        asks = 0 if order.cancelled else order.total
        balance = evidence.balances.get(order_id)
        if balance != asks:
            verdict.add(
                "lost", order_id, f"the invoice of order {order_id} asks for {balance} instead of {asks}"
            )
        standing = evidence.standings.get(order_id)
        if standing not in (KEPT_BACK if order.cancelled else {"shipped"}):
            cancelled = "cancelled " if order.cancelled else ""
            verdict.add("lost", order_id, f"the {cancelled}order {order_id} is {standing} for shipping")


def _name(event: Event) -> str:
    return f"{event.type} {event.id} of order {event.key}"
