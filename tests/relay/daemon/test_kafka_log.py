"""An outage is told in a few lines, however often the client tries."""

import gc
import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from outbox import kafka_log
from relay.database import Database
from relay.ends import Ends
from relay.producers.properties import checked

REFUSED = "FAIL [outbox-relay#producer-%d] %s failed: Connection refused (after %dms in state CONNECT%s)"

TIMED_OUT = (
    "REQTMOUT [outbox-relay#producer-%d] k:1: Timed out ProduceRequest in flight (after %dms, timeout #%d)"
)
"""Of a broker that is frozen, at level INFO, every six seconds."""


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = kafka_log.quiet("tests.kafka_log")
    yield logger
    logger.filters.clear()


def test_a_repeat_is_dropped_whatever_its_counts(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger.name)
    for i in range(100):
        logger.error(REFUSED, i, "k:1", i, f", {i} identical error(s) suppressed" if i else "")
        logger.error(REFUSED, i, "k:2", i, "")
        logger.info(TIMED_OUT, i, i, i)
    assert len(caplog.messages) == 3


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


def test_who_asked_in_vain_where_partitions_end_leaves_no_client_that_tries_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made: list[weakref.ref[AdminClient]] = []

    class Watched(AdminClient):
        def __init__(self, properties: dict[str, Any]) -> None:
            super().__init__(properties)
            made.append(weakref.ref(self))

    monkeypatch.setattr("relay.ends.AdminClient", Watched)
    monkeypatch.setattr("relay.ends.ANSWER_WITHIN", 0.3)
    ends = Ends(Database("postgresql://127.0.0.1:1/nowhere"), properties={"bootstrap.servers": "127.0.0.1:1"})
    gc.disable()
    try:
        assert ends._read({"orders": 2}) == {}
        assert [client() for client in made] == [None]
    finally:
        gc.enable()
    assert "FAIL" not in capfd.readouterr().err, "its log goes where everything goes"
