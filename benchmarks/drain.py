"""How fast a backlog leaves: the relay process against a raw read-and-send loop."""

import time
from dataclasses import dataclass

from benchmarks import child
from benchmarks.backlog import Arrivals, fill
from benchmarks.child import Child
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_least, at_most

WARM = 100
"""Records acknowledged before the clock starts: a new idempotent producer can wait 500 ms for its first."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One side of one round. cpu: core-seconds of its process per 100,000 events."""

    rate: float
    cpu: float
    peak_mb: float


def measure(place: Place, sizes: Sizes) -> Report:
    relays, raws = [], []
    for _ in range(sizes.rounds):
        relays.append(relay(place, sizes.events))
        raws.append(raw(place, sizes.events))
    both = list(zip(relays, raws, strict=True))
    return Report(
        "drain",
        f"Drain of {sizes.events:,} events: outbox-relay against a raw read-and-send loop",
        [
            Figure("events/s, relay / raw loop", "×", [a.rate / b.rate for a, b in both], at_least(0.6)),
            Figure("CPU of the relay", "s per 100,000", [a.cpu for a in relays], at_most(0.8)),
            Figure("CPU of the raw loop", "s per 100,000", [b.cpu for b in raws]),
            Figure("CPU, relay / raw loop", "×", [a.cpu / b.cpu for a, b in both]),
            Figure("relay", "events/s", [a.rate for a in relays]),
            Figure("raw loop", "events/s", [b.rate for b in raws]),
            Figure("peak memory of the relay", "MB", [a.peak_mb for a in relays], at_most(100)),
            Figure("peak memory of the raw loop", "MB", [b.peak_mb for b in raws]),
        ],
    )


def relay(place: Place, events: int) -> Drained:
    """A relay that is warm and idle finds `events` committed at once."""
    with place.database() as url, place.topic() as topic:
        arrivals = Arrivals(place.kafka.bootstrap, topic)
        with child.relay(url, place.kafka.bootstrap) as running:
            fill(url, topic, WARM)
            arrivals.wait(WARM)
            fill(url, topic, events, first=WARM)
            return _watch(running, arrivals, events)


def raw(place: Place, events: int) -> Drained:
    """The same for the raw loop."""
    with place.database() as url, place.topic() as topic:
        arrivals = Arrivals(place.kafka.bootstrap, topic)
        with Child.python("raw_loop", url, place.kafka.bootstrap, topic, WARM) as running:
            running.hear()
            fill(url, topic, events)
            running.say()
            return _watch(running, arrivals, events)


def _watch(running: Child, arrivals: Arrivals, events: int) -> Drained:
    """From the first acknowledgement to the last, without what the first one brought along."""
    first = arrivals.wait(WARM + 1, every=0.002)
    began, used = time.monotonic(), running.cpu()
    arrivals.wait(WARM + events)
    seconds, cpu = time.monotonic() - began, running.cpu() - used
    counted = WARM + events - first
    return Drained(counted / seconds, cpu / counted * 100_000, running.peak_mb())
