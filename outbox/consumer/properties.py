"""librdkafka's properties as the user gave them, or a refusal that says which guarantee would break."""

import re
from collections.abc import Mapping
from typing import Any

from outbox import kafka_log
from outbox.errors import ConfigurationError

DEFAULTS: dict[str, Any] = {
    "client.id": "outbox-consumer",
    "partition.assignment.strategy": "cooperative-sticky",
    # The default of 1,000 ms stalls a consumer whenever its queue was full once.
    "fetch.queue.backoff.ms": 5,
    # What is read ahead in memory, per member; 64 MB by default. Over a backlog of 1 kB records in 24
    # partitions a process of 76 MB grows to 130 with 16 MB, to 100 with 4, to 87 with 1, and is not slower.
    "queued.max.messages.kbytes": 1_024,
    # 1 MB by default, by which the queue is exceeded for each partition: of 330 byte records in 6 of them a
    # process took 25 MB more, at the same speed. Raise it where the brokers are far away.
    "max.partition.fetch.bytes": 131_072,
    # A new partition or a deleted topic is noticed after this long; 5 minutes by default.
    "topic.metadata.refresh.interval.ms": 30_000,
    # A broker that comes back is found within 2 s instead of 10.
    "reconnect.backoff.max.ms": 2_000,
    # How old the lag in Consumer.health() may be; 0, librdkafka's default, would leave it unknown.
    "statistics.interval.ms": 5_000,
}

FIXED: dict[str, tuple[Any, str]] = {
    "auto.offset.reset": (
        "error",
        "an offset that Kafka no longer has would silently become another one: events lost or applied anew",
    ),
    "enable.auto.commit": (False, "offsets live in your database, in the transaction of the results"),
    "enable.auto.offset.store": (False, "offsets live in your database, in the transaction of the results"),
    "isolation.level": ("read_committed", "records of aborted Kafka transactions would be applied"),
    "enable.partition.eof": (False, "the end of a partition is no event"),
}
"""Property → the only value it may have, and why."""

REFUSED: dict[str, str] = {
    "group.id": "the group is an argument of its own: Consumer(group=...)",
    "default.topic.config": "it can override what keeps offsets right; give the properties directly",
    "auto.commit.enable": "offsets live in your database, in the transaction of the results",
    "on_commit": "offsets in Kafka are a copy for lag tools only",
    "error_cb": "the client's errors are in Consumer.health() and the log",
    "stats_cb": "the client's statistics are at hook point consumer.statistics (outbox.hooks)",
    "logger": "the client logs to outbox.consumer.kafka; configure that logger",
}

_SHARED = re.compile(
    r"(bootstrap\.servers|metadata\.broker\.list|client\.(id|dns\.lookup)|(security|sasl|ssl|socket|broker|"
    r"reconnect|https|api|log|enable\.(ssl|sasl|metrics))\..*|oauth_cb|enable\.sasl.*|test\.mock\..*)"
)
"""What a consumer and an administration client of the same cluster have in common."""

_SERVER = re.compile(r"(\w+://)?(\[[0-9a-fA-F:.]+\]|[^\s:,/\[\]]+)(:(?P<port>\d+))?")


def consumer_properties(given: Mapping[str, Any], group: str) -> dict[str, Any]:
    """All properties of the group's Kafka clients. Raises ConfigurationError."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"kafka is a {type(given).__name__}; give properties: {{'bootstrap.servers': 'host:9092'}}"
        )
    for name, reason in REFUSED.items():
        if name in given:
            raise ConfigurationError(f"kafka[{name!r}] cannot be set: {reason}")
    for name, (value, reason) in FIXED.items():
        if name in given and _plain(given[name]) != _plain(value):
            raise ConfigurationError(
                f"kafka[{name!r}]={given[name]!r} is refused: {reason}. Leave it out (it is {value!r})"
            )
    _check_servers(given)
    _check_protocol(given)
    defaults = dict(DEFAULTS)
    if _plain(given.get("group.protocol", "classic")) == "consumer":
        del defaults["partition.assignment.strategy"]
    fixed = {name: value for name, (value, _) in FIXED.items()}
    return {
        **defaults,
        **given,
        **fixed,
        "group.id": group,
        "logger": kafka_log.quiet("outbox.consumer.kafka"),
    }


def member_properties(properties: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Those of the `number`-th member of a process: a static one has a `group.instance.id` of its own."""
    if "group.instance.id" not in properties:
        return dict(properties)
    return {**properties, "group.instance.id": f"{properties['group.instance.id']}-{number}"}


def admin_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The connection part of `properties`, for a client that only asks questions."""
    return {name: value for name, value in properties.items() if name == "logger" or _SHARED.fullmatch(name)}


def credentials(properties: Mapping[str, Any]) -> tuple[str, str]:
    """User and password as the client has them, "" for none."""
    user, password = (properties.get(f"sasl.{name}") for name in ("username", "password"))
    return "" if user is None else str(user), "" if password is None else str(password)


def is_incremental(properties: Mapping[str, Any]) -> bool:
    """Does the group's protocol hand out changes (cooperative, KIP-848) instead of whole assignments?"""
    if _plain(properties.get("group.protocol", "classic")) == "consumer":
        return True
    return "cooperative" in _plain(properties["partition.assignment.strategy"])


_OF_BROKERS = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy")
"""What the brokers decide under KIP-848."""


def _check_protocol(given: Mapping[str, Any]) -> None:
    """What librdkafka would refuse too, or never do, with the way that there is."""
    if _plain(given.get("group.protocol", "classic")) == "consumer":
        unfit = [name for name in _OF_BROKERS if name in given]
        if unfit:
            raise ConfigurationError(
                f"kafka[{unfit[0]!r}] is the brokers' to say with group.protocol=consumer; leave it out "
                "(brokers: group.consumer.session.timeout.ms, group.consumer.heartbeat.interval.ms; "
                "client: group.remote.assignor)"
            )
        return
    strategies = _plain(given.get("partition.assignment.strategy", "cooperative-sticky")).split(",")
    if len({"cooperative" in strategy for strategy in strategies}) > 1:
        raise ConfigurationError(
            f"kafka['partition.assignment.strategy']={given['partition.assignment.strategy']!r} mixes eager "
            "and cooperative, which librdkafka cannot do. To change while running, give all members "
            "group.protocol=consumer first (Kafka 4), then the other strategy; or stop them all for a moment"
        )


def _check_servers(given: Mapping[str, Any]) -> None:
    if "test.mock.num.brokers" in given:
        return
    servers = given.get("bootstrap.servers") or given.get("metadata.broker.list")
    if not servers:
        raise ConfigurationError("kafka names no server; give kafka={'bootstrap.servers': 'host:9092'}")
    for server in str(servers).split(","):
        match = _SERVER.fullmatch(server.strip())
        if match is None or not 0 < int(match["port"] or 9092) < 65536:
            raise ConfigurationError(
                f"kafka['bootstrap.servers'] holds {server.strip()!r}, which is not host:port"
            )


def _plain(value: object) -> str:
    return str(value).strip().lower()
