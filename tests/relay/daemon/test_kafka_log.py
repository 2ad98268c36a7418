"""An outage is told in a few lines, however often the client tries."""

import logging
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException, Producer

from outbox import kafka_log
from relay.producers.properties import checked

REFUSED = "FAIL [outbox-relay#producer-%d] %s failed: Connection refused (after %dms in state CONNECT%s)"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = kafka_log.quiet("tests.kafka_log")
    yield logger
    logger.filters.clear()


def test_a_repeat_is_dropped_whatever_its_counts(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(100):
        logger.error(REFUSED, i, "k:1", i, f", {i} identical error(s) suppressed" if i else "")
        logger.error(REFUSED, i, "k:2", i, "")
    assert len(caplog.messages) == 2


def test_it_is_said_again_while_it_lasts(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.error("down")
    later = time.monotonic() + kafka_log.EVERY
    monkeypatch.setattr("outbox.kafka_log.time.monotonic", lambda: later)
    logger.error("down")
    assert caplog.messages == ["down", "down"]


def test_what_a_person_asked_to_see_is_never_dropped(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger.name):
        for _ in range(3):
            logger.debug("request sent")
    assert len(caplog.messages) == 3


def test_one_filter_serves_all_clients_of_a_process() -> None:
    assert kafka_log.quiet("tests.kafka_log").filters == kafka_log.quiet("tests.kafka_log").filters
    assert len(kafka_log.quiet("tests.kafka_log").filters) == 1


def test_a_client_without_a_broker_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relay.kafka")
    client = Producer(checked({"bootstrap.servers": "127.0.0.1:1"}))
    with pytest.raises(KafkaException):
        client.list_topics(timeout=2)
    client.poll(0)
    assert 0 < len(caplog.messages) < 5
