"""A consumer of the framework that says how fast it was and how much memory it took."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.events import OrderPlaced, store, store_one
from outbox import hooks
from outbox.consumer import Consumer


def main(url: str, bootstrap: str, topic: str, expected: int, work: str) -> None:
    """Print `events`, `seconds`, `cpu` of the stretch between the first commit and the last, and `peak_mb`.

    `work`: "bulk" stores a batch in one statement, "orm" has a handler that is called for each record.
    """
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    consumer = Consumer(
        group="bench",
        sessions=sessionmaker(sqlalchemy.create_engine(address)),
        kafka={"bootstrap.servers": bootstrap},
        batch_size=500,
    )
    if work == "bulk":

        @consumer.on(OrderPlaced, topic=topic, batch=True)
        def record_orders(session: Session, events: list[OrderPlaced]) -> None:
            store(session, events)

    else:

        @consumer.on(OrderPlaced, topic=topic)
        def record_order(session: Session, event: OrderPlaced) -> None:
            store_one(session, event)

    done = first = 0
    began = used = 0.0

    def watch(point: str, facts: dict[str, Any]) -> None:
        nonlocal done, first, began, used
        if point != "consumer.batch.committed":
            return
        done += facts["next"] - facts["first"]
        if not first:
            first, began, used = done, time.monotonic(), time.process_time()
        if done >= expected:
            found = {
                "events": done - first,
                "seconds": time.monotonic() - began,
                "cpu": time.process_time() - used,
                "peak_mb": peak_mb(),
            }
            print(json.dumps(found), flush=True)
            consumer.stop()

    hooks.subscribe(watch)
    consumer.run()


def peak_mb() -> float:
    """The most memory this process ever had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
