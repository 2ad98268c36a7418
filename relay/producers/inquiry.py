"""What the brokers say of themselves and their topics, and what the client last complained of."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource

from relay.producers.delivery import Interrupted, Target, TopicRefused

log = logging.getLogger("relay.producer")

METADATA_TIMEOUT = 5.0

HURRIED = 1.0
"""Seconds that an answer may still take once we are told to stop."""

T = TypeVar("T")

REFUSALS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError._INVALID_ARG,
    }
)
"""Codes with which the broker says that trying again cannot help. An outage never uses them, nor does a
topic that is gone (_UNKNOWN_TOPIC, _UNKNOWN_PARTITION)."""

FORBIDDEN = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})

SILENCE = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
"""Codes of a question that nobody answered."""

UNKNOWN = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})

OF_TOPIC = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED})
"""Refusals that are no fault of the row: whoever may change the broker's settings can mend them."""

GRAVE = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._SSL,
    KafkaError._RESOLVE,
    KafkaError._ALL_BROKERS_DOWN,
)
"""What the client says when it cannot work at all, the most telling first; a lost connection to one of
several brokers is none of these."""

REMEDIES = {
    KafkaError.MSG_SIZE_TOO_LARGE: "raise the topic's max.message.bytes, and message.max.bytes in [kafka]",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant DESCRIBE and WRITE on the topic",
}

ALL_DOWN = "all brokers are down"


class Complaints(deque[KafkaError]):
    """The newest ones; `heard` says how many there ever were."""

    heard = 0

    def append(self, complaint: KafkaError, /) -> None:
        self.heard += 1
        super().append(complaint)


class Inquiry:
    """Asks through whatever client a producer has at the moment. `complaints` outlives the clients.

    `listen` lets that client report what it complains of, unless records are on their way: whoever sends
    them has to see their reports. `stopping` says when not to wait for answers any more.
    """

    def __init__(
        self, properties: Mapping[str, Any], *, listen: Callable[[], None], stopping: Callable[[], bool]
    ) -> None:
        self._properties = properties
        self._listen = listen
        self.stopping = stopping
        self._secret: set[str] = set()
        self.complaints = Complaints(maxlen=16)

    def metadata(self, client: Producer, topic: str | None) -> Any:
        """Raises Interrupted while no broker answers."""
        try:
            found = self.answer(_asked(lambda: client.list_topics(topic, METADATA_TIMEOUT)))
        except KafkaException as error:
            self._listen()
            raise self._silence() from error
        self.complaints.clear()
        return found

    def partitions(self, client: Producer, topic: str) -> int | None:
        """See `Producer.partitions`."""
        found = self.metadata(client, topic).topics.get(topic)
        if found is None or (found.error is None and not found.partitions):
            return None
        if found.error is None:
            return len(found.partitions)
        if found.error.code() in UNKNOWN:
            return None
        if found.error.code() in REFUSALS:
            raise TopicRefused(topic, explained(found.error), mendable=found.error.code() in OF_TOPIC)
        raise Interrupted(f"topic {topic!r}: {found.error.str()}")

    def topic(self, client: AdminClient, name: str) -> Any:
        """What the brokers know of one topic. Raises KafkaException while none answers."""
        return self.answer(_asked(lambda: client.list_topics(name, METADATA_TIMEOUT))).topics[name]

    def make_sure(self, client: Producer, seen: dict[str, int], targets: Iterable[Target]) -> None:
        """Send nothing to a topic before it was `seen` by this client with all the partitions needed.

        The client would keep records for it until it appears, or fail them one by one while it does.
        """
        for topic, partition in set(targets):
            if topic not in seen:
                try:
                    seen[topic] = self.partitions(client, topic) or 0
                except TopicRefused as refused:
                    raise Interrupted(str(refused)) from refused
            if partition >= seen[topic]:
                found = seen.pop(topic)
                state = f"has {found} partitions" if found else "is gone from the broker"
                raise Interrupted(
                    f"topic {topic!r} {state}, but events are on their way to its partition {partition}; "
                    f"create it with at least {partition + 1} partitions and they will go out in order"
                )

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        """See `Producer.compacted`."""
        return frozenset(topic for topic, policy in self.policies(topics).items() if "compact" in policy)

    def policies(self, topics: Collection[str]) -> dict[str, frozenset[str]]:
        """What the broker's cleaner does (`compact`, `delete`) to each topic of which we may know."""
        admin = self.admin()  # its answers end with it
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        found = {}
        try:
            answers = admin.describe_configs(resources, request_timeout=METADATA_TIMEOUT)
            for resource, answer in answers.items():
                policy = self._policy(resource.name, answer)
                if policy is not None:
                    found[resource.name] = policy
        except KafkaException as error:
            admin.poll(0)
            if error.args[0].code() in SILENCE:
                raise self._silence() from error
            raise Interrupted(f"the topics' settings are not to be had: {error.args[0].str()}") from error
        return found

    def _policy(self, topic: str, answer: Future[dict[str, ConfigEntry]]) -> frozenset[str] | None:
        try:
            value = self.answer(answer)["cleanup.policy"].value
        except KafkaException as error:
            if error.args[0].code() in UNKNOWN:
                return None
            if error.args[0].code() not in FORBIDDEN:
                raise
            if topic not in self._secret:
                self._secret.add(topic)
                log.warning(
                    "whether topic %s is compacted may not be asked; grant DESCRIBE_CONFIGS on it, for in "
                    "mode sequenced a late record of a stalled relay could stay as a key's last value",
                    topic,
                )
            return None
        return frozenset(str(value).replace(" ", "").split(","))

    def admin(self) -> AdminClient:
        """A client for questions that a producer cannot ask; let it go after use."""
        properties: dict[str, Any] = {**self._properties, "error_cb": self.complaints.append}
        return AdminClient(properties)

    def trouble(self) -> str | None:
        """The gravest complaint since a broker last answered."""
        for code in GRAVE:
            for complaint in reversed(self.complaints):
                if complaint.code() == code:
                    # Without counts and times, so that it is the same complaint each time.
                    said = complaint.str().partition(" (after ")[0]
                    return ALL_DOWN if code == KafkaError._ALL_BROKERS_DOWN else said
        return None

    def answer(self, future: "Future[T]") -> T:
        """Waits for it. Raises Interrupted soon after we are told to stop: it may take long to come."""
        until = math.inf
        while True:
            try:
                error = future.exception(0.1)
                if error is None:
                    return future.result()
                # Not the one that the future holds: its traceback would hold the client that was asked.
                raise KafkaException(*error.args) if isinstance(error, KafkaException) else error
            except TimeoutError:
                if self.stopping():
                    until = min(until, time.monotonic() + HURRIED)
                if time.monotonic() > until:
                    raise Interrupted("told to stop while the brokers were asked") from None

    def _silence(self) -> Interrupted:
        """An outage, with what the client says of it."""
        reason = self.trouble()
        because = f": {reason}" if reason not in {None, ALL_DOWN} else ""
        return Interrupted(f"no broker answers at {self._properties['bootstrap.servers']}{because}")

    def forget_fatal(self) -> None:
        """A new session begins without the fatal complaints of the last one."""
        for fatal in [complaint for complaint in self.complaints if complaint.fatal()]:
            self.complaints.remove(fatal)


def _asked(question: Callable[[], T]) -> "Future[T]":
    """Ask on a thread that may be left behind: the client's own call cannot be interrupted."""
    future: Future[T] = Future()

    def ask() -> None:
        try:
            future.set_result(question())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=ask, name="outbox-ask", daemon=True).start()
    return future


def explained(error: KafkaError) -> str:
    """What the broker says, with what mends it where we know."""
    remedy = REMEDIES.get(error.code())
    return f"{error.str()} ({remedy})" if remedy else error.str()
