"""The broker settings that tests and docker-compose share, for one broker or several."""

from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("broker.env")

REPLICATED = (
    "default.replication.factor",
    "offsets.topic.replication.factor",
    "transaction.state.log.replication.factor",
    "share.coordinator.state.topic.replication.factor",
)
IN_SYNC = (
    "min.insync.replicas",
    "transaction.state.log.min.isr",
    "share.coordinator.state.topic.min.isr",
)


def read(path: Path = FILE) -> dict[str, str]:
    """The properties in a file of KAFKA_… variables, by the apache/kafka image's rule for names."""
    properties: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            properties[property_of(name)] = value
    return properties


def property_of(variable: str) -> str:
    """KAFKA_LOG_CLEANER_BACKOFF_MS is log.cleaner.backoff.ms; a double underscore is one underscore."""
    parts = variable.removeprefix("KAFKA_").lower().split("__")
    return "_".join(part.replace("_", ".") for part in parts)


def for_brokers(count: int, changes: Mapping[str, str]) -> dict[str, str]:
    """The settings of each of `count` brokers: everything lives on up to three, two of which must agree."""
    replicas = min(count, 3)
    properties = read()
    properties |= dict.fromkeys(REPLICATED, str(replicas))
    properties |= dict.fromkeys(IN_SYNC, str(max(1, replicas - 1)))
    return properties | dict(changes)
