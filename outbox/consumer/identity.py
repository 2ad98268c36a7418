"""Offsets mean something in one topic of one cluster only: which one it is, asked from the brokers."""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from outbox.consumer.told import UNKNOWN

MOCK = "mockCluster"
"""How librdkafka's mock clusters name themselves. They cannot describe topics, so ids stay unknown there."""

QUICKLY = 1.0
"""Seconds within which a broker answers that lives. The client asks none but the one it knows as controller,
tries to reach it without a pause until the question's time is over, and learns of another from metadata
only, which nothing makes it ask for (librdkafka 2.16, `rd_kafka_broker_controller_async`)."""


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """Which topic a name means now, and how many partitions it has. None is unknown and equals everything."""

    cluster_id: str | None
    topic_id: str | None
    partitions: int | None = None

    def agrees(self, other: "TopicIdentity") -> bool:
        return _agree(self.cluster_id, other.cluster_id) and _agree(self.topic_id, other.topic_id)

    def difference(self, topic: str, *, cluster_id: str | None, topic_id: str | None) -> str:
        """In words, what is not as it was."""
        if not _agree(self.cluster_id, cluster_id):
            return f"topic {topic} was read from Kafka cluster {cluster_id}, this is {self.cluster_id}."
        return f"topic {topic} was deleted and made again (its id was {topic_id}, it is {self.topic_id})."


class TopicMissing(Exception):
    """The brokers do not know this topic."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} does not exist")
        self.topic = topic


class Identities(Protocol):
    """Who can tell which topics these are."""

    def look(self, topics: Iterable[str]) -> dict[str, TopicIdentity | TopicMissing]:
        """Ask the brokers now; a topic that they will not describe is left out. Raises KafkaException."""

    def ask(self, topics: Iterable[str]) -> bool:
        """Begin to ask; False while an earlier question has no answer. Waits for none, but for up to a second
        where the broker that was asked before is silent and another has to be found."""

    def answers(self) -> dict[str, TopicIdentity | TopicMissing]:
        """What came back since `ask`, without waiting."""

    def refusal(self) -> str | None:
        """Why the brokers will not talk to us, if they refused our credentials or certificate."""


class BrokerIdentities:
    """Asks through an administration client."""

    def __init__(self, properties: Mapping[str, Any], *, timeout: float = 5.0) -> None:
        self._refusal: str | None = None
        self._admin = AdminClient(dict[str, Any](properties, error_cb=self._on_error))
        self._timeout = timeout
        self._cluster_id: str | None = None
        self._asked: dict[str, Future[Any]] = {}
        self._silent = False
        """Is the broker that we ask perhaps gone?"""

    def look(self, topics: Iterable[str]) -> dict[str, TopicIdentity | TopicMissing]:
        names = sorted(set(topics))
        self._admin.poll(0)  # serves the log and the error callback
        end = time.monotonic() + self._timeout
        while True:
            try:
                return self._look(names)
            except KafkaException:
                if not self._silent or time.monotonic() > end:
                    raise

    def _look(self, names: list[str]) -> dict[str, TopicIdentity | TopicMissing]:
        if self._cluster_id is None or self._silent or self._cluster_id.startswith(MOCK):
            # Whichever broker answers names a controller; just after a death it may still name the dead.
            self._silent = False
            self._cluster_id = self._admin.list_topics(timeout=self._timeout).cluster_id
            return self._collect(self._describe(names), patient=True)
        cluster = self._admin.describe_cluster(request_timeout=QUICKLY)
        asked = self._describe(names)
        self._cluster_id = self._result(cluster).cluster_id
        return self._collect(asked, patient=True)

    def ask(self, topics: Iterable[str]) -> bool:
        if self._asked or self._cluster_id is None or self._cluster_id.startswith(MOCK):
            return False
        if self._silent:
            try:
                self._admin.list_topics(timeout=QUICKLY)
            except KafkaException:
                return True  # asked, and nobody answers
            self._silent = False
        self._asked = self._describe(sorted(set(topics)))
        return True

    def answers(self) -> dict[str, TopicIdentity | TopicMissing]:
        if not self._asked or not all(future.done() for future in self._asked.values()):
            return {}
        asked, self._asked = self._asked, {}
        return self._collect(asked, patient=False)

    def refusal(self) -> str | None:
        self._admin.poll(0)
        return self._refusal

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in {KafkaError._AUTHENTICATION, KafkaError._SSL}:
            self._refusal = error.str()

    def _describe(self, names: list[str]) -> dict[str, Future[Any]]:
        assert self._cluster_id is not None
        if not names:
            return {}
        if self._cluster_id.startswith(MOCK):
            return {name: self._touch(name) for name in names}
        return dict(self._admin.describe_topics(TopicCollection(names), request_timeout=QUICKLY))

    def _touch(self, name: str) -> Future[Any]:
        """A mock cluster makes a topic when somebody asks for it by name, and gives it no id."""
        future: Future[Any] = Future()
        future.set_result(self._admin.list_topics(name, timeout=self._timeout).topics[name])
        return future

    def _collect(
        self, asked: Mapping[str, Future[Any]], *, patient: bool
    ) -> dict[str, TopicIdentity | TopicMissing]:
        """Topics that we may not see are left out; if not `patient`, whatever has no answer is."""
        found: dict[str, TopicIdentity | TopicMissing] = {}
        for topic, future in asked.items():
            try:
                described = self._result(future)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    found[topic] = TopicMissing(topic)
                elif patient and code != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise
                continue
            topic_id = str(getattr(described, "topic_id", UNKNOWN))
            found[topic] = TopicIdentity(
                self._cluster_id, None if topic_id == UNKNOWN else topic_id, len(described.partitions)
            )
        return found

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result(self._timeout + 1)
        except TimeoutError as error:
            self._silent = True
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        except KafkaException as error:
            self._silent |= error.args[0].code() == KafkaError._TIMED_OUT
            raise


def _agree(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other
