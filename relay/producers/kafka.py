"""Make the producer of either mode from the same settings."""

from collections.abc import Callable, Mapping
from typing import Any

from relay.envelope import Envelope, headers
from relay.producers.delivery import Names
from relay.producers.sequenced import SequencedProducer
from relay.producers.transactional import TOGETHER, TransactionalProducer


class Kafka:
    """`properties`: librdkafka's own, as `[kafka]` gives them. `stopping`: when not to wait for answers.

    `together`: seconds for which a Kafka transaction takes in further chunks of a backlog. `envelope`: the
    headers of the records.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        stopping: Callable[[], bool] = lambda: False,
        together: float = TOGETHER,
        envelope: Envelope = headers,
    ) -> None:
        self._envelope = envelope
        self._properties = properties
        self._stopping = stopping
        self._together = together

    def sequenced(self) -> SequencedProducer:
        return SequencedProducer(self._properties, stopping=self._stopping, envelope=self._envelope)

    def transactional(self, names: Names) -> TransactionalProducer:
        return TransactionalProducer(
            self._properties,
            names,
            stopping=self._stopping,
            together=self._together,
            envelope=self._envelope,
        )
