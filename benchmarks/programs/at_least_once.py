"""The plain consumer loop: the same decoding and the same work, the offset in Kafka.

After a crash it applies again what it had not committed to Kafka yet; nothing notices.
"""

import json
import sys
import time
from uuid import uuid4

import sqlalchemy
from confluent_kafka import Consumer
from sqlalchemy.orm import sessionmaker

from benchmarks.events import OrderPlaced, store, store_one

BATCH = 500


def main(url: str, bootstrap: str, topic: str, expected: int, commits: str, work: str) -> None:
    """Print `events`, `seconds` and `cpu` of the stretch between the first commit and the last.

    `commits`: "async" goes on while Kafka stores the offset, "sync" waits for its answer.
    `work`: "bulk" stores a batch in one statement, "orm" calls a handler for each record.
    """
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    sessions = sessionmaker(sqlalchemy.create_engine(address))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"bench-{uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "queued.max.messages.kbytes": 16_384,
        }
    )
    consumer.subscribe([topic])
    done = first = 0
    began = used = 0.0
    while done < expected:
        message = consumer.poll(0.1)
        if message is None:
            continue
        messages = [message, *consumer.consume(BATCH - 1, 0)]
        events = [OrderPlaced.model_validate_json(value) for m in messages if (value := m.value())]
        with sessions.begin() as session:
            if work == "bulk":
                store(session, events)
            else:
                for event in events:
                    store_one(session, event)
        if commits == "async":
            consumer.commit(asynchronous=True)
        else:
            consumer.commit(asynchronous=False)
        done += len(messages)
        if not first:
            first, began, used = done, time.monotonic(), time.process_time()
    found = {
        "events": done - first,
        "seconds": time.monotonic() - began,
        "cpu": time.process_time() - used,
    }
    print(json.dumps(found), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
