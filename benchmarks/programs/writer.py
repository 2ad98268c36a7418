"""A service that commits orders at a steady pace, each with its event, and notes when each was committed."""

import json
import sys
import threading
import time
from decimal import Decimal
from uuid import uuid4

import psycopg

from benchmarks.events import NOTE, OrderPlaced
from outbox import emit

THREADS = 2
"""Connections that commit in turn: a commit waits for the disk."""

INSERT = "INSERT INTO bench_order (number, order_id, total, note) VALUES (%s, %s, %s, %s)"


def main(url: str, topic: str, pace: float, seconds: float) -> None:
    """Print {"began", "committed": [monotonic time at which each COMMIT returned, by number]}."""
    count = int(pace * seconds)
    committed = [0.0] * count
    began = time.monotonic() + 0.2

    def write(start: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for number in range(start, count, THREADS):
                time.sleep(max(0.0, began + number / pace - time.monotonic()))
                event = OrderPlaced(order_id=uuid4(), number=number, total=Decimal("19.90"), note=NOTE)
                with connection.transaction():
                    connection.execute(INSERT, (number, event.order_id, event.total, event.note))
                    emit(connection, event, topic=topic)
                committed[number] = time.monotonic()

    writers = [threading.Thread(target=write, args=(start,)) for start in range(THREADS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    print(json.dumps({"began": began, "committed": committed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
