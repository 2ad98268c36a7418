"""How long an event is under way: from the answer to its COMMIT to a consumer that has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import quantiles

from benchmarks import child, load
from benchmarks.child import Child
from benchmarks.events import create_tables
from benchmarks.held import held_open
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_most

PACE = 600.0
"""Transactions a second."""

FAST = 3_000.0

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
    free, held, exact = [], [], []
    for _ in range(sizes.rounds):
        free.append(phase(place, sizes.seconds))
        held.append(phase(place, sizes.seconds, hold=True))
        exact.append(phase(place, sizes.seconds, exactly_once=True))
    both = list(zip(free, held, strict=True))
    return Report(
        "latency",
        f"Latency at {PACE:.0f} transactions/s: commit of the event to its arrival at a consumer",
        [
            Figure("p50", "ms", [f.p50 for f in free], at_most(3)),
            Figure("p99", "ms", [f.p99 for f in free], at_most(12)),
            Figure("p50, transactions held open / none", "×", [h.p50 / f.p50 for f, h in both], at_most(1.1)),
            Figure("p99, transactions held open / none", "×", [h.p99 / f.p99 for f, h in both]),
            Figure("p50 to the commit of an exactly-once consumer", "ms", [e.p50 for e in exact]),
            Figure("p99 to the commit of an exactly-once consumer", "ms", [e.p99 for e in exact]),
            Figure("CPU of the relay", "% of a core", [f.cpu for f in free]),
            Figure("CPU of the relay, held open", "% of a core", [h.cpu for h in held]),
            Figure("pace reached", "transactions/s", [f.pace for f in free]),
        ],
    )


def measure_fast(place: Place, sizes: Sizes) -> Report:
    fast = [phase(place, sizes.seconds, pace=FAST) for _ in range(sizes.rounds)]
    return Report(
        "fast",
        f"Latency at {FAST:,.0f} transactions/s",
        [
            Figure("p99", "ms", [f.p99 for f in fast], at_most(40)),
            Figure("p50", "ms", [f.p50 for f in fast]),
            Figure("CPU of the relay", "% of a core", [f.cpu for f in fast]),
            Figure("pace reached", "transactions/s", [f.pace for f in fast]),
        ],
    )


def phase(
    place: Place, seconds: float, *, pace: float = PACE, hold: bool = False, exactly_once: bool = False
) -> Phase:
    """A load, a relay and a consumer, each a process, on a fresh database."""
    transactions = int(pace * (WARM + seconds)) // load.CLIENTS * load.CLIENTS
    bootstrap = place.kafka.bootstrap
    with place.database() as url, place.topic() as topic:
        create_tables(url)
        if exactly_once:
            consuming = Child.python("exactly_once", url, bootstrap, topic, transactions)
        else:
            consuming = Child.python("arrivals", bootstrap, topic, transactions, "read_committed")
        with child.relay(url, bootstrap) as relay, consuming as consumer, held_open(url, hold=hold):
            consumer.hear()
            used = relay.cpu()
            wrote = load.run(url, topic, pace=pace, transactions=transactions)
            used = relay.cpu() - used
            arrived = consumer.hear()["arrived"]
    return _phase(wrote, arrived, used)


def _phase(wrote: load.Load, arrived: Mapping[str, float], used: float) -> Phase:
    began = min(wrote.committed.values())
    whole = max(wrote.committed.values()) - began
    late = [
        (arrived[str(number)] - at) * 1_000 for number, at in wrote.committed.items() if at >= began + WARM
    ]
    cuts = quantiles(late, n=100, method="inclusive")
    return Phase(cuts[49], cuts[98], used / whole * 100, wrote.pace)
