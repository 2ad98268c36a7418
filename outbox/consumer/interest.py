"""Read the topics that handlers name, and of those they name by a pattern whichever are there.

Patterns are Python's and match a topic's whole name, under every group protocol alike: the brokers of KIP-848
and librdkafka have two other dialects, and tell nobody what they matched. Topics are listed as often as the
client refreshes its metadata (`topic.metadata.refresh.interval.ms`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException

from outbox.consumer.handlers import Handlers
from outbox.consumer.notice import Notice
from outbox.consumer.place.beginning import TIMEOUT

log = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds before brokers that gave no list are asked again."""

ABSENT = 2
"""In how many lists in a row a topic is missing before it counts as deleted: a broker that has just started
may not know it yet."""


class Interest:
    """What one member's group reads at the moment."""

    def __init__(self, client: KafkaConsumer, handlers: Handlers, properties: Mapping[str, Any]) -> None:
        self._client = client
        self._named = frozenset(handlers.topics)
        self._patterns = handlers.patterns
        self._every = float(properties["topic.metadata.refresh.interval.ms"]) / 1000
        self._due = 0.0
        self._absent: dict[str, int] = {}
        self._told: list[str] | None = None
        self.notice = Notice()

    @property
    def topics(self) -> list[str]:
        """What to subscribe to."""
        return sorted({*self._named, *self._absent})

    def together(self, topic: str) -> tuple[Iterable[str], Callable[[str], object]]:
        """The topics that begin with this one, and a test for those that once did."""
        for pattern in self._patterns:
            if topic not in self._named and pattern.fullmatch(topic):
                return [name for name in self._absent if pattern.fullmatch(name)], pattern.fullmatch
        return [topic], topic.__eq__

    def tick(self) -> list[str] | None:
        """Look which topics are there, when it is time; what to read from now on, if that changed."""
        if self._patterns and not self._look():
            return None
        topics = self.topics
        if topics == self._told:
            return None
        if topics and self._told is not None:
            log.info("reading %s", ", ".join(topics))
        self._told = topics
        return topics

    def _look(self) -> bool:
        """Ask which topics there are, if it is time to; True if there was an answer."""
        if time.monotonic() < self._due:
            return False
        try:
            found = self._client.list_topics(timeout=TIMEOUT).topics
        except KafkaException as error:
            log.debug("the brokers do not list their topics: %s", error)
            self._due = time.monotonic() + AGAIN
            return False
        self._due = time.monotonic() + self._every
        self._see({name for name, topic in found.items() if self._is_there(name, topic.error)})
        if self.topics:
            self.notice.over("there are topics to read")
        else:
            self.notice.trouble(f"no topic matches {', '.join(p.pattern for p in self._patterns)} yet")
        return True

    def _see(self, found: set[str]) -> None:
        for name in found:
            self._absent[name] = 0
        for name in [name for name in self._absent if name not in found]:
            self._absent[name] += 1
            if self._absent[name] >= ABSENT:
                del self._absent[name]
                log.warning("topic %s is gone", name)
            else:
                self._due = min(self._due, time.monotonic() + AGAIN)

    def _is_there(self, topic: str, error: KafkaError | None) -> bool:
        """Kafka's own topics (`__…`) are meant by no pattern. A topic in trouble is still there."""
        if topic.startswith("__") or not any(pattern.fullmatch(topic) for pattern in self._patterns):
            return False
        if error is None:
            return True
        return topic in self._absent and error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART
