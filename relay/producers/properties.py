"""librdkafka's own properties, with what the guarantees need and without what breaks them."""

import logging
from collections.abc import Mapping
from typing import Any

from outbox.errors import ConfigurationError

REQUIRED: dict[str, tuple[Any, str]] = {
    "enable.idempotence": (True, "without it a retried batch is written twice and out of order"),
    "acks": ("all", "a record acknowledged by one broker is lost with it"),
    "enable.gapless.guarantee": (True, "without it records behind a failed one are written and leave a gap"),
    "message.timeout.ms": (0, "a record that times out in an outage leaves a gap"),
    "topic.metadata.propagation.max.ms": (3_600_000, "a topic missing for a moment would leave a gap"),
}
"""Fixed, with what would go wrong otherwise."""

REFUSED = {
    "transactional.id": "mode `sequenced` sends without transactions",
    "partitioner": "the relay chooses the partition itself, like the Java client (murmur2)",
    "delivery.timeout.ms": "it is message.timeout.ms by another name",
    "delivery.report.only.error": "the relay counts on success reports",
    "error_cb": "the relay needs this callback itself",
    "on_delivery": "the relay needs this callback itself",
    "retries": "a record given up after some retries leaves a gap",
    "message.send.max.retries": "a record given up after some retries leaves a gap",
}

DEFAULTS: dict[str, Any] = {
    "client.id": "outbox-relay",
    "linger.ms": 0,
    "compression.type": "lz4",
    "batch.size": 262_144,
    "batch.num.messages": 10_000,
    "message.max.bytes": 10_000_000,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 65_536,
    # A paused leader stalls us for this long (54 s by default, 7.4 s so).
    "socket.timeout.ms": 6_000,
    "socket.keepalive.enable": True,
    "topic.metadata.refresh.interval.ms": 30_000,
    "reconnect.backoff.max.ms": 2_000,
}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The full configuration of a producer. Raises ConfigurationError naming what breaks a guarantee."""
    for name, value in given.items():
        if name in REFUSED:
            raise ConfigurationError(f"kafka setting {name} is refused: {REFUSED[name]}; remove it")
        if name in REQUIRED and str(value).lower() not in _same(REQUIRED[name][0]):
            fixed, reason = REQUIRED[name]
            raise ConfigurationError(
                f"kafka setting {name}={value} is refused: {reason}; it stays {fixed}, remove it"
            )
    if not given.get("bootstrap.servers"):
        raise ConfigurationError(
            "no Kafka address; set OUTBOX_KAFKA_BOOTSTRAP_SERVERS, for example to localhost:9092"
        )
    fixed_values = {name: value for name, (value, _) in REQUIRED.items()}
    return {"logger": logging.getLogger("relay.kafka"), **DEFAULTS, **given, **fixed_values}


def _same(value: Any) -> set[str]:
    """The spellings librdkafka takes for `value`."""
    return {"all", "-1"} if value == "all" else {str(value).lower()}
