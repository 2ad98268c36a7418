"""librdkafka's own properties, with what the guarantees need and without what breaks them."""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException, Producer

from outbox import kafka_log
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
    "transactional.id": "the relay names each shard itself",
    "partitioner": "the relay chooses the partition itself, like the Java client (murmur2)",
    "request.required.acks": "it is acks by another name",
    "delivery.timeout.ms": "it is message.timeout.ms by another name",
    "default.topic.config": "it could change what the relay has to set itself",
    "delivery.report.only.error": "the relay counts on success reports",
    "on_delivery": "the relay needs this callback itself",
    "error_cb": "the relay needs this callback itself",
    "retries": "a record given up after some retries leaves a gap",
    "message.send.max.retries": "a record given up after some retries leaves a gap",
    "test.mock.num.brokers": "events would go to a cluster in the relay's own memory and be lost with it",
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
    # A small request behind another one would wait for the first one's answer, or 40 ms for its ACK.
    "socket.nagle.disable": True,
    "topic.metadata.refresh.interval.ms": 30_000,
    "reconnect.backoff.max.ms": 2_000,
}

_ALIASES = {
    "metadata.broker.list": "bootstrap.servers",
    "queue.buffering.max.ms": "linger.ms",
    "compression.codec": "compression.type",
}
"""Old names for what the defaults set: two names of one property would overwrite each other by chance."""


def named(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` under librdkafka's names.

    A TOML file may write `sasl.username = "…"` without quotes, which is a table in a table; an environment
    variable cannot hold dots: OUTBOX_KAFKA__SASL_USERNAME is sasl.username.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found |= named({f"{name}.{inner}": deep for inner, deep in value.items()})
        elif name == "on_delivery" or name.endswith("_cb"):
            found[name] = value
        else:
            plain = name.lower().replace("_", ".")
            found[_ALIASES.get(plain, plain)] = value
    return found


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The full configuration of a producer. Raises ConfigurationError naming what cannot work or must not."""
    for name, value in given.items():
        if name in REFUSED:
            raise ConfigurationError(f"kafka setting {name} is refused: {REFUSED[name]}; remove it")
        if name in REQUIRED and str(value).lower() not in _same(REQUIRED[name][0]):
            fixed, reason = REQUIRED[name]
            raise ConfigurationError(
                f"kafka setting {name}={value} is refused: {reason}; it stays {fixed}, remove it"
            )
        if name != "logger" and not (callable(value) or isinstance(value, str | int | float)):
            raise ConfigurationError(
                f"kafka setting {name} is a {type(value).__name__}; it must be one text, number or true/false"
            )
    if not given.get("bootstrap.servers"):
        raise ConfigurationError(
            "no Kafka address; set OUTBOX_KAFKA_BOOTSTRAP_SERVERS, for example to localhost:9092"
        )
    fixed_values = {name: value for name, (value, _) in REQUIRED.items()}
    whole = {"logger": _logger(), **DEFAULTS, **given, **fixed_values}
    _tried(whole)
    return whole


TRANSACTION_TIMEOUT = 20_000
"""Milliseconds after which the broker ends a transaction that nobody goes on with: until then, or until a
successor fences, readers that are read_committed wait at it."""


def transactional(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a transactional producer but for its name. Raises what `checked` raises."""
    whole = checked(given)
    timeout = int(given.get("transaction.timeout.ms", TRANSACTION_TIMEOUT))
    if not 1_000 <= timeout <= 60_000:
        raise ConfigurationError(
            f"kafka setting transaction.timeout.ms={timeout} cannot work: shorter than 1000 ends what is "
            "only slow, longer than 60000 keeps readers waiting for a dead relay; correct it"
        )
    # An error ends the whole transaction, so there is no gap to guard against.
    del whole["enable.gapless.guarantee"]
    return whole | {
        "message.timeout.ms": timeout,
        "transaction.timeout.ms": timeout,
        "socket.timeout.ms": min(int(whole["socket.timeout.ms"]), timeout),
        "linger.ms": given.get("linger.ms", 5),
        "delivery.report.only.error": True,
    }


def _same(value: Any) -> set[str]:
    """The spellings librdkafka takes for `value`."""
    return {"all", "-1"} if value == "all" else {str(value).lower()}


def _tried(whole: Mapping[str, Any]) -> None:
    """Let librdkafka itself judge names and values: a producer without an address costs less than 1 ms."""
    try:
        Producer({name: value for name, value in whole.items() if name != "bootstrap.servers"})
    except (KafkaException, TypeError, ValueError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise ConfigurationError(
            f"the Kafka client refuses its settings: {said}; correct [kafka] or OUTBOX_KAFKA__…"
        ) from error


class _Known(logging.Filter):
    """Drops one line that librdkafka warns of at every start, about a setting that is here on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not ("CONFWARN" in said and "enable.gapless.guarantee is experimental" in said)


def _logger() -> logging.Logger:
    """Where librdkafka's own log lines go."""
    logger = kafka_log.quiet("relay.kafka")
    if not any(isinstance(known, _Known) for known in logger.filters):
        logger.addFilter(_Known())
    return logger


_CONNECTION = (
    "bootstrap.servers",
    "client.",
    "security.",
    "sasl.",
    "ssl.",
    "socket.",
    "broker.",
    "enable.ssl.",
    "oauth",
    "https.",
    "log",
    "reconnect.",
)


def connection_only(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Where the brokers are, who we are and how to reach them; for clients that only read or ask."""
    return {name: value for name, value in properties.items() if name.startswith(_CONNECTION)}
