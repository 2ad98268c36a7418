"""A producer that is not ours: it knows no `outbox-seq`, and sends again what it is not sure of."""

from random import Random
from typing import Any

from confluent_kafka import Producer

from tests.consumer.stage import Stage

Headers = list[tuple[str, str | bytes | None]]


class PlainProducer:
    """Sends values of its own with an `id` header, the same id and value again whenever it likes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.sent: dict[int, list[str]] = {p: [] for p in range(stage.partitions)}
        # It may not fold its own repeats.
        settings: dict[str, Any] = {"bootstrap.servers": stage.bootstrap, "linger.ms": 1}
        self._producer = Producer(settings)

    def put(
        self,
        value: str | bytes | None,
        *,
        headers: Headers | None = None,
        key: str | None = None,
        partition: int = 0,
    ) -> None:
        self._producer.produce(self.stage.topic, value, key, partition=partition, headers=headers or [])

    def event(self, name: str, *, partition: int = 0, key: str | None = None) -> None:
        """One event of that name; sent once more if it was sent before."""
        if name not in self.sent[partition]:
            self.sent[partition].append(name)
        self.put(name, headers=[("id", f"id-of-{name}")], key=key, partition=partition)

    def events(self, count: int, random: Random) -> None:
        """So many new ones on each partition, with repeats of earlier ones between them."""
        for partition, sent in self.sent.items():
            first = len(sent)
            for n in range(first, first + count):
                self.event(f"{partition}.{n}", partition=partition)
                while random.random() < 0.4:
                    self.event(random.choice(sent[-30:]), partition=partition)
        self.flush()

    def flush(self) -> None:
        assert self._producer.flush(20) == 0

    def faults(self) -> list[str]:
        """What was not applied exactly once and in order, in words."""
        return [
            f"[{partition}] {len(found)} effects of {len(sent)} events, doubled "
            f"{sorted({v for v in found if found.count(v) > 1})[:5]}"
            for partition, sent in self.sent.items()
            if (found := self.stage.effects(partition)) != sent
        ]

    def all_there(self) -> bool:
        """Is every partition read to what was sent last?"""
        return all(
            not sent or sent[-1] in self.stage.effects(partition) for partition, sent in self.sent.items()
        )
