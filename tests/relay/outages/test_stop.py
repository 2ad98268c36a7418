"""A stop in the middle of an outage waits for nobody's answer."""

import time

import pytest
from confluent_kafka import Producer

from outbox.testing.servers import start_mock_kafka
from relay.producers import Interrupted
from relay.producers.inquiry import METADATA_TIMEOUT, Inquiry


@pytest.mark.parametrize("question", ["metadata", "policies", "topic"])
def test_a_question_to_frozen_brokers_is_dropped_when_told_to_stop(question: str) -> None:
    with start_mock_kafka() as mock:
        properties = {"bootstrap.servers": mock.bootstrap, "log_level": 0}
        client = Producer(properties)
        inquiry = Inquiry(properties, listen=lambda: None, stopping=lambda: True)
        mock.pause()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="told to stop"):
            if question == "metadata":
                inquiry.metadata(client, None)
            elif question == "topic":
                inquiry.topic(inquiry.admin(), "orders")
            else:
                inquiry.policies(["orders"])
        assert time.monotonic() - began < METADATA_TIMEOUT - 1
        mock.resume()
