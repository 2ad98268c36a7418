"""Know whether this host reaches the brokers at all: shards belong where their events can be sent from.

One small question every few seconds on a client of its own, never waited for. A client asks none but the
broker that it first heard to be the controller (librdkafka 2.16): if it is gone, another client asks.
Who cannot reach the brokers leaves shards to those who can; while nobody can, everything stays where it is.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, DescribeClusterResult

from outbox.errors import ConfigurationError
from outbox.notice import Notice
from relay.producers.properties import checked, connection_only
from relay.share import Reaching

log = logging.getLogger("relay.reach")

EVERY = 3.0
"""Seconds between two questions."""

ANSWER_WITHIN = 2.0
"""A client tries without a pause to reach a broker that is gone, as long as it has a question for it."""

RECENT = 10.0
"""Seconds for which an answer holds: one question may be lost."""

PATIENCE = 30.0
"""Seconds without an answer until shards are handed over. Much longer than `RECENT`: in an outage of Kafka
all relays know that none of them is able before any of them would give."""

AT_THE_START = 10.0
"""The same for a relay that never had one."""


class Reach:
    """`reaching` at the moment. `run_once` belongs to one thread and returns at once.

    `heard` is called, on whatever thread, when there is an answer that may change that.
    """

    def __init__(self, properties: Mapping[str, Any], *, heard: Callable[[], None]) -> None:
        self._properties = properties
        self._heard = heard
        self._admin: AdminClient | None = None
        self._asked: Future[DescribeClusterResult] | None = None
        self._next = 0.0
        self._began: float | None = None
        self._answered_at: float | None = None
        self._said: KafkaError | None = None
        self._why: str | None = None
        self._notice = Notice(log)

    @property
    def reaching(self) -> Reaching:
        now = time.monotonic()
        if self._answered_at is None:
            began = now if self._began is None else self._began
            return Reaching.NOT_NOW if now - began < AT_THE_START else Reaching.NOT_FOR_LONG
        silent = now - self._answered_at
        if silent < RECENT:
            return Reaching.YES
        return Reaching.NOT_NOW if silent < PATIENCE else Reaching.NOT_FOR_LONG

    @property
    def trouble(self) -> str | None:
        """What keeps us from the brokers, once that is known."""
        return None if self.reaching is Reaching.YES else self._why

    def run_once(self) -> None:
        """Take the answer if there is one, ask if it is time. Raises ConfigurationError for settings with
        which nobody could ever ask."""
        now = time.monotonic()
        if self._admin is None:
            if now < self._next:
                return
            try:
                self._admin = self._client()
            except (ConfigurationError, KafkaException) as error:
                if self._began is None:
                    raise
                # Settings that were right once: a certificate is being replaced, or threads ran out.
                self._why, self._next = f"no client to ask the brokers with: {error}", now + EVERY
                return
            if self._began is None:
                self._began = now
        self._admin.poll(0)
        if self._asked is not None and self._asked.done():
            asked, self._asked = self._asked, None
            if not self._take(asked):
                self._admin = None
                return
        if self._asked is None and now >= self._next:
            self._next = now + EVERY
            self._asked = self._admin.describe_cluster(request_timeout=ANSWER_WITHIN)
            if self.reaching is not Reaching.YES:
                self._asked.add_done_callback(lambda _: self._heard())

    def complain(self) -> None:
        """Say in the log what keeps us from the brokers: nothing else says it while we carry no shard."""
        if self.trouble is not None:
            self._notice.trouble(self.trouble)
        else:
            self._notice.over()

    def close(self) -> None:
        self._admin = self._asked = None

    def _client(self) -> AdminClient:
        properties: dict[str, Any] = {
            **connection_only(checked(self._properties)),
            "error_cb": self._complained,
        }
        return AdminClient(properties)

    def _take(self, answer: "Future[DescribeClusterResult]") -> bool:
        """Was it an answer? An error is not raised: its traceback would hold the client that is let go."""
        error = answer.exception()
        if error is None:
            self._answered_at, self._said, self._why = time.monotonic(), None, None
            return True
        because = (self._said.str() if self._said else str(error)).partition(" (after ")[0]
        self._why = f"no broker answers at {self._properties.get('bootstrap.servers')}: {because}"
        return False

    def _complained(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._said = error
