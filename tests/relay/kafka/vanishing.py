"""Rows that a broker refuses, topics that vanish, and what then lies in the partitions."""

from collections.abc import Iterator

from outbox.testing.servers import KafkaServer
from relay.producers import Chunk, Producer
from relay.row import POSITION, Row
from tests.relay import wire
from tests.relay.kafka.chunks import Delivery, row
from tests.relay.scene import until

LAST = 200


def positions(kafka: KafkaServer, name: str) -> dict[int, list[int]]:
    """Positions by partition, in the order in which they lie there."""
    found: dict[int, list[int]] = {}
    for record in wire.read(kafka.bootstrap, name):
        found.setdefault(record.partition, []).append(int(record.seq.rpartition(".")[2]))
    return found


def too_large(name: str, position: int) -> Row:
    return row(position, name, size=30_000)


def too_large_for_the_client(name: str, position: int) -> Row:
    return row(position, name, size=11_000_000)


def too_deep(name: str, position: int) -> Row:
    return row(position, name, headers=b'{"h": ' + b"[" * 3000 + b"]" * 3000 + b"}")


def through_a_vanished_topic(
    kafka: KafkaServer, producer: Producer, name: str
) -> tuple[list[Exception], dict[int, list[int]]]:
    """Send 1–20, delete the topic, send on, create it again, send to the end.

    What ended the deliveries, and what lies in the new topic.
    """

    def known() -> bool:
        return producer.partitions(name) is not None

    def interrupted(given: Iterator[Chunk]) -> Iterator[Chunk | None]:
        for chunk in given:
            if chunk.rows[0][POSITION] == 21 and not ends and known():
                yield None
                until(lambda: sum(map(len, positions(kafka, name).values())) == 20, 20, lambda: "not 20")
                kafka.delete_topic(name)
                until(lambda: not known(), 20, lambda: "the topic is still there")
            if chunk.rows[0][POSITION] == 31 and not known():
                create()
            yield chunk

    def create() -> None:
        kafka.create_topic(name, 2)
        until(known, 20, lambda: "the topic is not there")

    ends: list[Exception] = []
    delivery = Delivery(
        producer, [row(n, name) for n in range(1, LAST + 1)], size=5, pass_through=interrupted
    )
    while not ends and (ended := delivery.attempt()):
        ends.append(ended)
    if not known():
        create()
    until(lambda: delivery.attempt() is None, 20, lambda: f"stays at {delivery.low}")
    return ends, positions(kafka, name)


def gaps(arrived: dict[int, list[int]]) -> list[str]:
    """Rows behind the twentieth that a later one of their partition overtook, or that never came."""
    wrong = []
    for partition in (0, 1):
        first = [n for n in dict.fromkeys(arrived.get(partition, [])) if n > 20]
        if first != [n for n in range(21, LAST + 1) if n % 2 == partition]:
            wrong.append(f"partition {partition}: {first[:20]}…")
    return wrong
