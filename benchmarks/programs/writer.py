"""A service that commits orders at a steady pace, each with its event, and notes when each was committed."""

import json
import sys
import threading
import time
from decimal import Decimal
from uuid import UUID, uuid4

import sqlalchemy
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.events import NOTE, Order, OrderPlaced
from outbox import Outbox

THREADS = 2
"""Connections that commit in turn: a commit waits for the disk."""


def main(url: str, topic: str, pace: float, seconds: float) -> None:
    """Print {"began", "committed": [monotonic time of each commit's return, by number]}."""
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    outbox = Outbox(sessionmaker(sqlalchemy.create_engine(address, pool_size=THREADS)))

    @outbox.transaction
    def place_order(session: Session, number: int, order_id: UUID) -> None:
        total = Decimal("19.90")
        session.add(Order(number=number, order_id=order_id, total=total, note=NOTE))
        placed = OrderPlaced(order_id=order_id, number=number, total=total, note=NOTE)
        outbox.emit(session, placed, topic=topic)

    count = int(pace * seconds)
    committed = [0.0] * count
    began = time.monotonic() + 0.2

    def write(start: int) -> None:
        for number in range(start, count, THREADS):
            due = began + number / pace
            time.sleep(max(0.0, due - time.monotonic()))
            place_order(number, uuid4())
            committed[number] = time.monotonic()

    writers = [threading.Thread(target=write, args=(start,)) for start in range(THREADS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    print(json.dumps({"began": began, "committed": committed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
