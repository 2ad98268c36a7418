"""What exactly-once costs a consumer, against at-least-once loops that do the same work."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import uuid4

from confluent_kafka import Producer

from benchmarks.child import Child
from benchmarks.events import NOTE, OrderPlaced, create_tables
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_least

PLAIN = ("async", "sync")


@dataclass(frozen=True, slots=True)
class Consumed:
    """cpu: core-seconds of its process per 100,000 events."""

    rate: float
    cpu: float


def measure(place: Place, sizes: Sizes) -> Report:
    with place.topic() as topic:
        produce(place.kafka.bootstrap, topic, sizes.events)
        exact: list[Consumed] = []
        plain: dict[str, list[Consumed]] = {commits: [] for commits in PLAIN}
        for _ in range(sizes.rounds):
            exact.append(_run(place, topic, sizes.events, "exactly_once"))
            for commits in PLAIN:
                plain[commits].append(_run(place, topic, sizes.events, "at_least_once", commits))
    return Report(
        "consume",
        f"Consumers of {sizes.events:,} records, 500 in one statement: exactly-once against at-least-once",
        [
            Figure("exactly-once / asynchronous", "×", _ratios(exact, plain["async"]), at_least(0.8)),
            Figure("exactly-once / synchronous", "×", _ratios(exact, plain["sync"])),
            Figure("CPU, exactly-once", "s per 100,000", [e.cpu for e in exact]),
            *(
                Figure(f"CPU, at-least-once, {name}", "s per 100,000", [p.cpu for p in side])
                for name, side in plain.items()
            ),
            Figure("exactly-once", "events/s", [e.rate for e in exact]),
            *(Figure(f"at-least-once, {name}", "events/s", [p.rate for p in s]) for name, s in plain.items()),
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
    return Consumed(found["events"] / found["seconds"], found["cpu"] / found["events"] * 100_000)


def produce(bootstrap: str, topic: str, events: int) -> None:
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
        event = OrderPlaced(order_id=uuid4(), number=number, total=Decimal("19.90"), note=NOTE)
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
