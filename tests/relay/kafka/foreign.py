"""What readers of other makes see: a topic's records as (partition, offset, id), in the order of each."""

import asyncio
import re
import subprocess

from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as Place

from outbox.testing.servers import jvm

Seen = list[tuple[int, int, str]]

_LINE = re.compile(r"Partition:(\d+)\tOffset:(\d+)\t.*?\bid:([0-9a-f-]{36})")


def java(bootstrap: str, topic: str, count: int) -> Seen:
    """The first `count` records that Kafka's own console consumer sees."""
    options = {
        "isolation-level": "read_committed",
        "max-messages": str(count),
        "timeout-ms": "30000",
        "topic": topic,
    }
    shown = ("print.headers=true", "print.partition=true", "print.offset=true", "print.value=false")
    done = subprocess.run(
        jvm.command(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            "--bootstrap-server",
            bootstrap,
            "--from-beginning",
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            *(word for setting in shown for word in ("--formatter-property", setting)),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return sorted((int(p), int(o), id_) for p, o, id_ in _LINE.findall(done.stdout))


def aiokafka(bootstrap: str, topic: str) -> Seen:
    """A client that shares no code with librdkafka."""

    async def read() -> Seen:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False
        )
        await consumer.start()
        try:
            await consumer._client.set_topics([topic])
            places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            consumer.assign(places)
            await consumer.seek_to_beginning()
            ends = await consumer.end_offsets(places)
            found: Seen = []
            while [place for place in places if await consumer.position(place) < ends[place]]:
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += [(r.partition, r.offset, dict(r.headers)["id"].decode()) for r in batch]
            return sorted(found)
        finally:
            await consumer.stop()

    return asyncio.run(asyncio.wait_for(read(), 60))


def open_transactions(bootstrap: str, topic: str) -> bool:
    """Does any partition end, for a read_committed reader, before it ends?"""
    ends = []
    for isolation in ("read_committed", "read_uncommitted"):
        consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "looks", "isolation.level": isolation}
        )
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            ends.append([consumer.get_watermark_offsets(Place(topic, p), timeout=10)[1] for p in partitions])
        finally:
            consumer.close()
    return ends[0] != ends[1]
