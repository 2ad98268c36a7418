"""What `emit` adds to a business transaction of one row."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean, median
from uuid import uuid4

import sqlalchemy
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.events import NOTE, Order, OrderPlaced, create_tables
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_most
from outbox import emit

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one transaction: milliseconds (median), and milliseconds of a core in this process (mean)."""

    ms: float
    cpu: float


def measure(place: Place, sizes: Sizes) -> Report:
    durable, lazy = [], []
    with place.database() as url:
        create_tables(url)
        with _sessions(url) as waiting, _sessions(url, "-c synchronous_commit=off") as hurried:
            for _ in range(sizes.rounds):
                durable.append(_round(waiting, sizes.transactions))
                lazy.append(_round(hurried, sizes.transactions))
    return Report(
        "emit",
        "An ORM transaction that inserts one row, with and without emit, in turn",
        [
            Figure("with / without", "×", [w.ms / wo.ms for w, wo in durable], at_most(1.3)),
            Figure("the same, commits not waiting for the disk", "×", [w.ms / wo.ms for w, wo in lazy]),
            Figure("CPU with / without", "×", [w.cpu / wo.cpu for w, wo in durable]),
            Figure("CPU with", "ms", [w.cpu for w, _ in durable]),
            Figure("CPU without", "ms", [wo.cpu for _, wo in durable]),
            Figure("with", "ms", [w.ms for w, _ in durable]),
            Figure("without", "ms", [wo.ms for _, wo in durable]),
        ],
    )


def _round(sessions: sessionmaker[Session], transactions: int) -> tuple[Cost, Cost]:
    """With and without in turn, one transaction each, so that both meet the same disturbances."""
    samples: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(2 * transactions):
        emits = turn % 2 == 0
        began, used = time.perf_counter(), time.process_time()
        _place_order(sessions, emits=emits)
        samples[emits].append((time.perf_counter() - began, time.process_time() - used))
    return _cost(samples[True]), _cost(samples[False])


def _place_order(sessions: sessionmaker[Session], *, emits: bool) -> None:
    number, order_id, total = next(_numbers), uuid4(), Decimal("19.90")
    with sessions.begin() as session:
        session.add(Order(number=number, order_id=order_id, total=total, note=NOTE))
        if emits:
            emit(session, OrderPlaced(order_id=order_id, number=number, total=total, note=NOTE))


def _cost(samples: list[tuple[float, float]]) -> Cost:
    return Cost(median(s for s, _ in samples) * 1_000, mean(cpu for _, cpu in samples) * 1_000)


@contextmanager
def _sessions(url: str, options: str = "") -> Iterator[sessionmaker[Session]]:
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(address, connect_args={"options": options})
    try:
        yield sessionmaker(engine)
    finally:
        engine.dispose()
