"""How fast a backlog leaves: the relay process against a raw read-and-send loop."""

import time
from dataclasses import dataclass

import psycopg

from benchmarks import child
from benchmarks.backlog import Arrivals, fill
from benchmarks.child import Child
from benchmarks.held import held_open
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
            Figure("events/s, relay / raw loop", "×", [a.rate / b.rate for a, b in both], at_least(0.75)),
            Figure("CPU of the relay", "s per 100,000", [a.cpu for a in relays], at_most(0.55)),
            Figure("CPU of the raw loop", "s per 100,000", [b.cpu for b in raws]),
            Figure("CPU, relay / raw loop", "×", [a.cpu / b.cpu for a, b in both]),
            Figure("relay", "events/s", [a.rate for a in relays]),
            Figure("raw loop", "events/s", [b.rate for b in raws]),
            Figure("peak memory of the relay", "MB", [a.peak_mb for a in relays], at_most(80)),
            Figure("peak memory of the raw loop", "MB", [b.peak_mb for b in raws]),
        ],
    )


def measure_held(place: Place, sizes: Sizes) -> Report:
    free, held = [], []
    for _ in range(sizes.rounds):
        free.append(relay(place, sizes.events))
        held.append(relay(place, sizes.events, hold=True))
    both = list(zip(free, held, strict=True))
    return Report(
        "held",
        "Drain beside a transaction that has written an event and stays open, and one with an old snapshot",
        [
            Figure(
                "time, transactions held open / none", "×", [f.rate / h.rate for f, h in both], at_most(1.1)
            ),
            Figure("CPU, transactions held open / none", "×", [h.cpu / f.cpu for f, h in both], at_most(1.1)),
        ],
    )


def relay(
    place: Place, events: int, *, mode: str = "sequenced", hold: bool = False, **settings: int
) -> Drained:
    """A relay that is warm and idle finds `events` committed at once."""
    with place.database() as url, place.topic() as topic:
        arrivals = Arrivals(place.kafka.bootstrap, topic)
        with child.relay(url, place.kafka.bootstrap, **settings) as running:
            if mode != "sequenced":
                switch(url, mode)
            fill(url, topic, WARM)
            before = arrivals.settled(WARM)
            with held_open(url, hold=hold):
                fill(url, topic, events, first=WARM)
                return watch(running, arrivals, before, events)


def switch(url: str, mode: str) -> None:
    """Ask the running relay for another mode and wait until it has it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE outbox_shard SET wanted_mode = %s", (mode,))
        for _ in range(600):
            if connection.execute("SELECT mode FROM outbox_shard").fetchall() == [(mode,)]:
                return
            time.sleep(0.1)
    raise TimeoutError(f"the relay did not change to mode {mode} within a minute")


def raw(place: Place, events: int) -> Drained:
    """The same for the raw loop."""
    with place.database() as url, place.topic() as topic:
        arrivals = Arrivals(place.kafka.bootstrap, topic)
        with Child.python("raw_loop", url, place.kafka.bootstrap, topic, WARM) as running:
            running.hear()
            fill(url, topic, events)
            running.say()
            return watch(running, arrivals, WARM, events)


def watch(running: Child, arrivals: Arrivals, before: int, events: int) -> Drained:
    """From the first acknowledgement after `before` until a reader that is read_committed can have the last,
    without what the first one brought along."""
    first = arrivals.wait(before + 1, every=0.002)
    began, used = time.monotonic(), running.cpu()
    arrivals.wait(before + events, within=120 + events / 10_000, committed=True)
    seconds, cpu = time.monotonic() - began, running.cpu() - used
    counted = before + events - first
    return Drained(counted / seconds, cpu / counted * 100_000, running.peak_mb())
