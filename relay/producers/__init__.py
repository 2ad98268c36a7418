"""Ports to the broker: each mode delivers a planned delta in order and says how far it is acknowledged."""

from relay.producers.delivery import (
    Abandoned,
    Chunk,
    Interrupted,
    Producer,
    Recorded,
    Refused,
    Target,
    TopicRefused,
    Unsettled,
    address,
)
from relay.producers.sequenced import SequencedProducer

__all__ = [
    "Abandoned",
    "Chunk",
    "Interrupted",
    "Producer",
    "Recorded",
    "Refused",
    "SequencedProducer",
    "Target",
    "TopicRefused",
    "Unsettled",
    "address",
]
