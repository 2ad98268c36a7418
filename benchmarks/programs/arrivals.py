"""A plain consumer that only notes when each record arrived."""

import json
import sys
import time

from confluent_kafka import Consumer, TopicPartition


def main(bootstrap: str, topic: str, expected: int, isolation: str) -> None:
    """Print {"ready"}, then {"arrived": {event number: seconds since 1970}} once `expected` are there."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "arrivals",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "fetch.queue.backoff.ms": 5,
        }
    )
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    arrived: dict[int, float] = {}
    print(json.dumps({"ready": True}), flush=True)
    while len(arrived) < expected:
        message = consumer.poll(1.0)
        if message is None:
            continue
        now = time.time()
        for record in (message, *consumer.consume(1_000, 0)):
            key = record.key()
            if key is not None:
                arrived.setdefault(int(key), now)
    print(json.dumps({"arrived": arrived}), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
