"""Read what a service needs from its environment, and say plainly what is missing.

`ORDER_DATABASE_URL`, `INVOICE_DATABASE_URL`, `SHIPPING_DATABASE_URL`: PostgreSQL, one database a service.
`KAFKA_BOOTSTRAP_SERVERS`: for the two that consume. They also heed `KAFKA_GROUP_PROTOCOL`,
`KAFKA_SESSION_TIMEOUT_MS` and `KAFKA_HEARTBEAT_INTERVAL_MS`, which decide how soon a group notices a death,
and `KAFKA_FETCH_WAIT_MAX_MS`, which some brokers always wait for.
`KAFKA_PREFIX`: for all three, what topics and groups begin with on a cluster that is shared with others.
"""

import os

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from outbox.errors import ConfigurationError

OPTIONAL = ("group.protocol", "session.timeout.ms", "heartbeat.interval.ms", "fetch.wait.max.ms")


class SettingError(ConfigurationError):
    """A variable is missing or cannot be meant; the message says which and shows an example."""


def database_url(variable: str) -> URL:
    """The database that `variable` names, reached through psycopg 3."""
    value = _required(variable, example="postgresql://localhost/orders")
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.get_backend_name() not in {"postgresql", "postgres"}:
        raise SettingError(f"{variable} is not a PostgreSQL URL such as postgresql://user@host:5432/orders")
    return url.set(drivername="postgresql+psycopg")


def kafka() -> dict[str, str]:
    """The client properties: which cluster, and how patient its groups are."""
    properties = {"bootstrap.servers": _required("KAFKA_BOOTSTRAP_SERVERS", example="localhost:9092")}
    for name in OPTIONAL:
        if value := os.environ.get("KAFKA_" + name.upper().replace(".", "_")):
            properties[name] = value
    return properties


def shared_name(name: str) -> str:
    """What the topic or group `name` is called on this cluster."""
    return os.environ.get("KAFKA_PREFIX", "") + name


def _required(variable: str, *, example: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SettingError(f"{variable} is not set; give it a value such as {example}")
    return value
