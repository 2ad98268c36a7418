"""What exactly-once costs a consumer, against at-least-once loops that do the same work."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import uuid4

from confluent_kafka import Producer

from benchmarks.child import Child
from benchmarks.events import NOTE, OrderPlaced, create_tables
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_least, at_most

PLAIN = ("async", "sync")

LARGE_NOTE = NOTE * 4
"""Makes about 1 kB of JSON."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """cpu: core-seconds of its process per 100,000 events. peak_mb: 0 for the plain loop."""

    rate: float
    cpu: float
    peak_mb: float


def measure(place: Place, sizes: Sizes) -> Report:
    exact: list[Consumed] = []
    plain: dict[str, list[Consumed]] = {commits: [] for commits in PLAIN}
    one_by_one: list[Consumed] = []
    plain_one_by_one: list[Consumed] = []
    large: list[Consumed] = []
    with place.topic() as topic, place.topic() as heavy:
        produce(place.kafka.bootstrap, topic, sizes.events)
        produce(place.kafka.bootstrap, heavy, sizes.events // 4, LARGE_NOTE)
        for _ in range(sizes.rounds):
            exact.append(_run(place, topic, sizes.events, "exactly_once_loop", "bulk"))
            for commits in PLAIN:
                plain[commits].append(_run(place, topic, sizes.events, "at_least_once", commits, "bulk"))
            few = sizes.events // 4
            one_by_one.append(_run(place, topic, few, "exactly_once_loop", "orm"))
            plain_one_by_one.append(_run(place, topic, few, "at_least_once", "async", "orm"))
            large.append(_run(place, heavy, few, "exactly_once_loop", "bulk"))
    return Report(
        "consume",
        f"Consumers of {sizes.events:,} records, 500 in one transaction: exactly-once against at-least-once",
        [
            Figure("exactly-once / asynchronous", "×", _ratios(exact, plain["async"]), at_least(0.75)),
            Figure("exactly-once / synchronous", "×", _ratios(exact, plain["sync"]), at_least(1.8)),
            Figure(
                "a handler for each record through the ORM, exactly-once / asynchronous",
                "×",
                _ratios(one_by_one, plain_one_by_one),
                at_least(0.85),
            ),
            Figure("peak memory, records of 1 kB", "MB", [run.peak_mb for run in large], at_most(90)),
            Figure("CPU, exactly-once", "s per 100,000", [e.cpu for e in exact]),
            *(
                Figure(f"CPU, at-least-once, {name}", "s per 100,000", [p.cpu for p in side])
                for name, side in plain.items()
            ),
            Figure("CPU, ORM, exactly-once", "s per 100,000", [e.cpu for e in one_by_one]),
            Figure("CPU, ORM, at-least-once", "s per 100,000", [p.cpu for p in plain_one_by_one]),
            Figure("exactly-once", "events/s", [e.rate for e in exact]),
            *(Figure(f"at-least-once, {name}", "events/s", [p.rate for p in s]) for name, s in plain.items()),
            Figure("ORM, exactly-once", "events/s", [e.rate for e in one_by_one]),
        ],
    )


def _ratios(exact: Sequence[Consumed], plain: Sequence[Consumed]) -> list[float]:
    return [e.rate / p.rate for e, p in zip(exact, plain, strict=True)]


def _run(place: Place, topic: str, events: int, program: str, *arguments: str) -> Consumed:
    with place.database() as url:
        create_tables(url)
        with Child.python(program, url, place.kafka.bootstrap, topic, events, *arguments) as running:
            while "seconds" not in (found := running.hear()):
                pass
    cpu = found["cpu"] / found["events"] * 100_000
    return Consumed(found["events"] / found["seconds"], cpu, found.get("peak_mb", 0.0))


def produce(bootstrap: str, topic: str, events: int, note: str = NOTE) -> None:
    """Records as the relay sends them."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "log_level": 2,
        }
    )
    type_ = OrderPlaced.__wire_type__.encode()
    for number in range(events):
        event = OrderPlaced(order_id=uuid4(), number=number, total=Decimal("19.90"), note=note)
        seq = f"0123456789ab/1/0:1700000000000.{number + 1}".encode()
        producer.produce(
            topic,
            event.model_dump_json().encode(),
            str(event.order_id).encode(),
            headers=[("id", str(uuid4()).encode()), ("type", type_), ("outbox-seq", seq)],
        )
        if number % 1_000 == 0:
            producer.poll(0)
    producer.flush(60)
