"""Make the producer of either mode from the same settings."""

from collections.abc import Mapping
from typing import Any

from relay.producers.delivery import Names
from relay.producers.sequenced import SequencedProducer
from relay.producers.transactional import TransactionalProducer


class Kafka:
    """`properties`: librdkafka's own, as `[kafka]` gives them."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = properties

    def sequenced(self) -> SequencedProducer:
        return SequencedProducer(self._properties)

    def transactional(self, names: Names) -> TransactionalProducer:
        return TransactionalProducer(self._properties, names)
