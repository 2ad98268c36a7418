"""A broker that makes the progress topic and then says nothing keeps nobody from stopping."""

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from relay.producers import Interrupted
from relay.producers.inquiry import Inquiry
from relay.producers.ledger import Ledger
from relay.producers.ranges import Ranges

TOPIC = "outbox.progress.7.5"


class Broker:
    """Makes every topic at once; `answer` is its only word about where one ends."""

    def __init__(self, answer: "Future[Any]") -> None:
        self.answer = answer
        self.asked = threading.Event()

    def list_topics(self, topic: str, timeout: float) -> Any:  # noqa: ARG002
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={})})

    def create_topics(self, _new: Any, **_: Any) -> dict[str, "Future[None]"]:
        made: Future[None] = Future()
        made.set_result(None)
        return {TOPIC: made}

    def list_offsets(self, places: dict[Any, Any], **_: Any) -> dict[Any, "Future[Any]"]:
        self.asked.set()
        return dict.fromkeys(places, self.answer)


def prepare(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, stopping: threading.Event, *, shard: int = 0
) -> None:
    properties = {"bootstrap.servers": "localhost:1"}
    inquiry = Inquiry(properties, listen=lambda: None, stopping=stopping.is_set)
    monkeypatch.setattr(inquiry, "admin", lambda: broker)
    Ledger(Ranges(properties, inquiry, group="group"), inquiry, place=(TOPIC, shard)).prepare()


def test_an_answer_that_does_not_come_ends_with_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, stopping = Broker(Future()), threading.Event()

    def stop_once_asked() -> None:
        broker.asked.wait(30)
        stopping.set()

    threading.Thread(target=stop_once_asked).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="told to stop"):
        prepare(broker, monkeypatch, stopping)
    assert time.monotonic() - began < 5


def test_a_leader_that_is_not_found_is_waited_for_no_longer_than_a_while_or_until_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer: Future[Any] = Future()
    answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
    broker, stopping = Broker(answer), threading.Event()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="cannot be prepared"):
        prepare(broker, monkeypatch, stopping)
    assert time.monotonic() - began < 20
    stopping.set()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="cannot be prepared"):
        prepare(broker, monkeypatch, stopping)
    assert time.monotonic() - began < 2


class Outrun(Broker):
    """Another shard is quicker: with the topic, then with a second partition, too few both times."""

    def __init__(self) -> None:
        end: Future[Any] = Future()
        end.set_result(SimpleNamespace(offset=0))
        super().__init__(end)
        self.partitions = 0

    def list_topics(self, topic: str, timeout: float) -> Any:  # noqa: ARG002
        places = dict.fromkeys(range(self.partitions))
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=places)})

    def create_topics(self, _new: Any, **_: Any) -> dict[str, "Future[None]"]:
        return self._made(1, KafkaError.TOPIC_ALREADY_EXISTS)

    def create_partitions(self, _new: Any, **_: Any) -> dict[str, "Future[None]"]:
        if self.partitions == 1:
            return self._made(2, KafkaError.INVALID_PARTITIONS)
        return self._made(3, None)

    def describe_configs(self, _resources: Any, **_: Any) -> dict[Any, "Future[Any]"]:
        return {}

    def _made(self, partitions: int, outrun: int | None) -> dict[str, "Future[None]"]:
        self.partitions = partitions
        made: Future[None] = Future()
        if outrun is None:
            made.set_result(None)
        else:
            made.set_exception(KafkaException(KafkaError(outrun)))
        return {TOPIC: made}


def test_a_shard_that_others_outrun_gets_its_own_partition_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = Outrun()
    prepare(broker, monkeypatch, threading.Event(), shard=2)
    assert broker.partitions == 3
