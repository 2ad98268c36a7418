"""Ports to the broker: each mode delivers a planned delta in order and says how far it is acknowledged."""

from relay.producers.delivery import (
    Abandoned,
    Chunk,
    Interrupted,
    Names,
    Producer,
    Producers,
    Recorded,
    RecordingProducer,
    Refused,
    Target,
    TopicRefused,
    Unsettled,
    address,
)
from relay.producers.kafka import Kafka
from relay.producers.sequenced import SequencedProducer
from relay.producers.transactional import TransactionalProducer

__all__ = [
    "Abandoned",
    "Chunk",
    "Interrupted",
    "Kafka",
    "Names",
    "Producer",
    "Producers",
    "Recorded",
    "RecordingProducer",
    "Refused",
    "SequencedProducer",
    "Target",
    "TopicRefused",
    "TransactionalProducer",
    "Unsettled",
    "address",
]
