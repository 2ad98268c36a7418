"""A consumer of the framework that notes when each event's results were committed."""

import json
import sys
import threading
import time
from typing import Any

import sqlalchemy
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.events import OrderPlaced, store
from outbox import hooks
from outbox.consumer import Consumer


def main(url: str, bootstrap: str, topic: str, expected: int) -> None:
    """Print {"ready"} once partitions are claimed, then one line when `expected` events are committed.

    That line holds `arrived` (event number → time of the COMMIT's return, since 1970), and for the stretch
    between the first and the last COMMIT `events`, `seconds` and `cpu` (core-seconds of this process).
    """
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    consumer = Consumer(
        group="bench",
        sessions=sessionmaker(sqlalchemy.create_engine(address)),
        kafka={"bootstrap.servers": bootstrap},
    )
    batch: list[int] = []
    committed: dict[int, float] = {}
    first: list[tuple[int, float, float]] = []
    ready = threading.Event()

    @consumer.on(OrderPlaced, topic=topic, batch=True)
    def record_orders(session: Session, events: list[OrderPlaced]) -> None:
        store(session, events)
        batch.extend(event.number for event in events)

    def watch(point: str, _facts: dict[str, Any]) -> None:
        if point == "consumer.batch.begin":
            batch.clear()
        elif point == "consumer.batch.committed":
            committed.update(dict.fromkeys(batch, time.time()))
            if not first:
                first.append((len(committed), time.monotonic(), time.process_time()))
            if len(committed) >= expected:
                count, began, used = first[0]
                found = {
                    "events": len(committed) - count,
                    "seconds": time.monotonic() - began,
                    "cpu": time.process_time() - used,
                    "arrived": committed,
                }
                print(json.dumps(found), flush=True)
                consumer.stop()
        elif point == "consumer.assigned" and not ready.is_set():
            ready.set()
            print(json.dumps({"ready": True}), flush=True)

    hooks.subscribe(watch)
    consumer.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
