"""How long an event is under way: from the commit that wrote it to the commit of the consumer's results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles

import psycopg

from benchmarks import child
from benchmarks.child import Child
from benchmarks.events import create_tables
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_most

PACE = 600.0
"""Transactions a second."""

WARM = 1.0
"""Seconds at the start that do not count: first acknowledgement, first plans."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Milliseconds, and what the relay used in percent of one core."""

    p50: float
    p99: float
    cpu: float
    pace: float


def measure(place: Place, sizes: Sizes) -> Report:
    free, held = [], []
    for _ in range(sizes.rounds):
        free.append(phase(place, sizes.seconds, hold=False))
        held.append(phase(place, sizes.seconds, hold=True))
    both = list(zip(free, held, strict=True))
    return Report(
        "latency",
        f"Latency at {PACE:.0f} transactions/s: commit of the event to commit of the consumer's results",
        [
            Figure("p50", "ms", [f.p50 for f in free], at_most(8)),
            Figure("p99", "ms", [f.p99 for f in free], at_most(30)),
            Figure("p50, a transaction held open / none", "×", [h.p50 / f.p50 for f, h in both]),
            Figure("p99, a transaction held open / none", "×", [h.p99 / f.p99 for f, h in both]),
            Figure("p50 with transactions held open", "ms", [h.p50 for h in held]),
            Figure("p99 with transactions held open", "ms", [h.p99 for h in held]),
            Figure("CPU of the relay", "% of a core", [f.cpu for f in free]),
            Figure("CPU of the relay, held open", "% of a core", [h.cpu for h in held]),
            Figure("pace reached", "transactions/s", [f.pace for f in free]),
        ],
    )


def phase(place: Place, seconds: float, *, hold: bool) -> Phase:
    """A writer, a relay and an exactly-once consumer, each a process, on a fresh database."""
    total = WARM + seconds
    expected = int(PACE * total)
    bootstrap = place.kafka.bootstrap
    with place.database() as url, place.topic() as topic:
        create_tables(url)
        with (
            child.relay(url, bootstrap) as relay,
            Child.python("exactly_once", url, bootstrap, topic, expected) as consumer,
            _held_open(url, hold=hold),
        ):
            consumer.hear()
            with Child.python("writer", url, topic, PACE, total) as writer:
                used = relay.cpu()
                wrote = writer.hear(total + 60)
                arrived = {int(number): at for number, at in consumer.hear()["committed"].items()}
                used = relay.cpu() - used
    sent = wrote["committed"]
    began = wrote["began"] + WARM
    late = [(arrived[number] - at) * 1_000 for number, at in enumerate(sent) if at >= began]
    cuts = quantiles(late, n=100, method="inclusive")
    return Phase(cuts[49], cuts[98], used / total * 100, len(late) / (max(sent) - began))


@contextmanager
def _held_open(url: str, *, hold: bool) -> Iterator[None]:
    """One transaction that has written an event and does not end, and one that keeps an old snapshot."""
    if not hold:
        yield
        return
    with psycopg.connect(url) as writing, psycopg.connect(url) as reading:
        writing.execute(
            "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type) "
            "VALUES (gen_random_uuid(), 'order', 'held', 'order.placed.v1')"
        )
        reading.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reading.execute("SELECT count(*) FROM outbox_event")
        yield
        writing.rollback()
        reading.rollback()
