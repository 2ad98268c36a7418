"""Read the outbox and send it, as fast as Python can, with the relay's headers and none of its promises.

The yardstick of the relay: a reader thread, a plain idempotent producer, nothing written down, no reports,
no repeat after a failure, rows of late transactions lost.
"""

import json
import queue
import sys
import threading

import psycopg
from confluent_kafka import Producer
from psycopg.types.string import ByteaBinaryLoader

Headers = list[tuple[str, str | bytes | None]]
Row = tuple[int, int, bytes, bytes, bytes, bytes]

CHUNK = """
SELECT position, (date_part('epoch', occurred_at) * 1000)::bigint, aggregateid, payload, id::text, type
FROM outbox_event WHERE position > %s ORDER BY position LIMIT 2000
"""

PRODUCER = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    "linger.ms": 5,
    "batch.size": 262_144,
    "queue.buffering.max.messages": 20_000,
}


def main(url: str, bootstrap: str, topic: str, warm: int) -> None:
    """Send `warm` records, say so, wait for a line, send the whole table, say so."""
    producer = Producer({**PRODUCER, "bootstrap.servers": bootstrap})
    producer.list_topics(topic, 10)
    for number in range(warm):
        producer.produce(topic, b"warm", str(number).encode())
    producer.flush(30)
    with psycopg.connect(url, autocommit=True) as connection:
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.readline()
        rows = send(producer, topic, connection)
        print(json.dumps({"rows": rows}), flush=True)
        sys.stdin.readline()


def send(producer: Producer, topic: str, connection: psycopg.Connection) -> int:
    chunks: queue.Queue[list[Row]] = queue.Queue(maxsize=2)
    threading.Thread(target=read, args=(connection, chunks), daemon=True).start()
    stream, count, produce = b"0123456789ab/1/0:1700000000000.", 0, producer.produce
    while chunk := chunks.get():
        for position, ms, key, payload, id_, type_ in chunk:
            headers: Headers = [("id", id_), ("type", type_), ("outbox-seq", stream + b"%d" % position)]
            while True:
                try:
                    # By position: (…, partition, callback, on_delivery, timestamp, headers).
                    produce(topic, payload, key, -1, None, None, ms, headers)
                    break
                except BufferError:
                    producer.poll(0.01)
        count += len(chunk)
    producer.flush(60)
    return count


def read(connection: psycopg.Connection, chunks: "queue.Queue[list[Row]]") -> None:
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_loader("text", ByteaBinaryLoader)
    last = 0
    while True:
        chunk = cursor.execute(CHUNK, (last,), prepare=True).fetchall()
        chunks.put(chunk)
        if not chunk:
            return
        last = chunk[-1][0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
