"""Tell whether the brokers are reached, as one member's Kafka clients say it; count what they complain of."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException

from outbox.consumer.assignment import describe
from outbox.consumer.figures import Figures
from outbox.consumer.notice import Notice
from outbox.errors import ConfigurationError

NewClient = Callable[[dict[str, Any]], KafkaConsumer]

log = logging.getLogger(__name__)

LOUD = {KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE}
"""Errors of the client that need a person or a broker; it mends all others by itself."""


def opened(new_client: NewClient, properties: Mapping[str, Any], whose: str) -> KafkaConsumer:
    """A Kafka client. Raises ConfigurationError for properties that it does not take."""
    try:
        return new_client(dict(properties))
    except KafkaException as error:
        raise ConfigurationError(f"Kafka client of {whose}: {describe(error)}") from error


class Reach:
    """Across the clients that replace each other. failed: told of what a callback may not raise.

    The client calls inside poll() and close(), which nothing may leave: it would come out as a class that
    nothing catches.
    """

    def __init__(self, group: str, member: int, failed: Callable[[Exception], None]) -> None:
        self.figures = Figures(group, member)
        self.notice = Notice()
        self._failed = failed

    @property
    def callbacks(self) -> dict[str, Any]:
        """Properties of a client that reports to us."""
        return {"error_cb": self._on_error, "stats_cb": self._on_statistics}

    @property
    def lost(self) -> bool:
        """Are the brokers away?"""
        return self.notice.text is not None

    def works(self) -> None:
        """An answer of the brokers is there."""
        self.notice.over("the Kafka brokers are reached again")

    def _on_error(self, error: KafkaError) -> None:
        try:
            self.figures.error(error.name(), error.str(), fatal=error.fatal())
            if error.code() in LOUD or error.fatal():
                self.notice.trouble(f"Kafka reports {error.name()}: {error.str()}")
            else:
                log.debug("Kafka reports %s: %s", error.name(), error.str())
        except Exception as failure:
            self._failed(failure)

    def _on_statistics(self, document: str) -> None:
        try:
            self.figures.report(document)
        except Exception as failure:
            self._failed(failure)
