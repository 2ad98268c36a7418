"""A real Apache Kafka of one's own, of one broker or three, with topics for the asking."""

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from outbox.testing.servers import broker_settings, jars, jvm, kafka_archive, kafka_storage, workspace
from outbox.testing.servers.failure import ServerFailed, ServerUnavailable
from outbox.testing.servers.kafka_broker import KafkaBroker


class Partition(Protocol):
    """What a cluster tells about one partition."""

    leader: int
    replicas: list[int]
    isrs: list[int]


class KafkaServer:
    """A cluster with topics for the asking. Closing it removes every trace."""

    bootstrap: str
    """As in "127.0.0.1:9092"; several brokers with commas."""

    _admin: AdminClient | None = None

    @property
    def brokers(self) -> list[KafkaBroker]:
        """Each node, to be killed and frozen."""
        raise ServerUnavailable(
            "kafka",
            "cannot kill or freeze brokers that were given by OUTBOX_KAFKA_BOOTSTRAP_SERVERS; unset it to "
            "let the test start its own",
        )

    @property
    def admin(self) -> AdminClient:
        """A client for what a test asks of the cluster itself."""
        if self._admin is None:
            # Quiet: failures are raised, and an address without a broker would be logged 20 times a second.
            self._admin = AdminClient(
                {"bootstrap.servers": self.bootstrap, "socket.timeout.ms": 10_000, "log_level": 2}
            )
        return self._admin

    def create_topic(self, name: str, partitions: int = 6, **config: str) -> str:
        """Create topic `name`, a leader for each partition included; underscores in `config` are dots.

        One that is there already is taken for this one's: a busy broker's answer comes too late for the
        client, which asks again.
        """
        changes = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=changes)
        try:
            self.admin.create_topics([topic], operation_timeout=20)[name].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        self._await(name, lambda p: p.leader >= 0, "a leader for each partition", 20)
        return name

    def await_in_sync(self, name: str, *, within: float = 60) -> None:
        """Return when every replica of topic `name` is in sync, as after the loss of a broker.

        Until then the loss of a second one can leave a partition with fewer than its minimum.
        """
        self._await(name, lambda p: len(p.isrs) == len(p.replicas), "all replicas in sync", within)

    def delete_topic(self, name: str) -> None:
        """Delete topic `name`, unless it is gone already; returns when the controller has agreed."""
        try:
            self.admin.delete_topics([name], operation_timeout=20)[name].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise

    def close(self) -> None:
        """Done with it."""
        self._admin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await(self, name: str, reached: Callable[[Partition], bool], what: str, within: float) -> None:
        until = time.monotonic() + within
        while True:
            found = self.admin.list_topics(name, timeout=10).topics[name].partitions.values()
            if found and all(reached(partition) for partition in found):
                return
            if time.monotonic() > until:
                raise ServerFailed(f"topic {name} has not got {what} within {within:g} s")
            time.sleep(0.02)


class GivenKafka(KafkaServer):
    """The cluster behind an address. It is left running."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        try:
            self.admin.list_topics(timeout=10)
        except KafkaException as error:
            raise ServerFailed(
                f"OUTBOX_KAFKA_BOOTSTRAP_SERVERS names {bootstrap}, which does not answer: "
                f"{error.args[0].str()}"
            ) from error


class OwnKafka(KafkaServer):
    """A cluster started here, on 127.0.0.1 without authentication."""

    def __init__(self, count: int, settings: Mapping[str, str]) -> None:
        jars.java()
        jars.resolve()
        kafka_archive.write()
        self._directory = workspace.create("kafka")
        self._brokers: list[KafkaBroker] = []
        try:
            self._launch(count, settings)
        except BaseException:
            self.close()
            raise
        self.bootstrap = ",".join(broker.address for broker in self._brokers)

    @property
    def brokers(self) -> list[KafkaBroker]:
        return self._brokers

    def close(self) -> None:
        super().close()
        for broker in self._brokers:
            broker.close()
        workspace.remove(self._directory)

    def _launch(self, count: int, settings: Mapping[str, str]) -> None:
        cluster = kafka_storage.new_id()
        for node in range(1, count + 1):
            directory = self._directory / str(node)
            directory.mkdir()
            self._brokers.append(KafkaBroker(node, directory))
        voters = ",".join(broker.voter for broker in self._brokers)
        for broker in self._brokers:
            broker.configure(
                cluster=cluster,
                voters=voters,
                settings=broker_settings.for_brokers(count, settings),
                flags=jvm.sharing(),
            )
            broker.launch()
        for broker in self._brokers:
            broker.wait()


def start_kafka(
    brokers: int = 1, *, settings: Mapping[str, str] | None = None, own: bool = False
) -> KafkaServer:
    """A running cluster: the one OUTBOX_KAFKA_BOOTSTRAP_SERVERS names, else a new one.

    More than one broker, `settings` (which an address cannot promise) and `own` each mean: a new one. With
    three brokers everything is replicated three times, two of which must agree. The first call on a machine
    downloads Kafka. Raises ServerUnavailable, with what to install, when Java or Maven is missing.
    """
    address = os.environ.get("OUTBOX_KAFKA_BOOTSTRAP_SERVERS")
    if address and brokers == 1 and not (settings or own):
        return GivenKafka(address)
    return OwnKafka(brokers, settings or {})
