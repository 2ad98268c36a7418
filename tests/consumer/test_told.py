"""The client says which topic it reads, in time: no rest after an error is counted on, nobody is asked."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from outbox.consumer.identity import BrokerIdentities
from outbox.consumer.told import UNKNOWN, Told
from outbox.consumer.vigil import Vigil
from outbox.testing.servers import KafkaServer
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running
from tests.consumer.test_position import made_again

OLD, NEW = "JASPCSFhS6i5i81tc9_VQg", "b" * 22


class Heard(logging.Handler):
    """What reached the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def says(told: Told, text: str, level: int = logging.DEBUG) -> None:
    told.log(level, "%s [%s] %s", "METADATA", "rdkafka#consumer-1", f"[thrd:main]: {text}")


def test_the_last_id_counts_and_only_a_topic_that_became_another_is_reported() -> None:
    told = Told({})
    says(told, f"Topic t changed id from {UNKNOWN} to {OLD}")
    assert (told.reads("t"), told.reads("other"), told.changed()) == (OLD, None, set())
    says(told, f"Topic t changed id from {OLD} to {NEW}")
    assert (told.reads("t"), told.changed(), told.changed()) == (NEW, {"t"}, set())
    says(told, f"Topic t changed id from {NEW} to {UNKNOWN}")
    assert (told.reads("t"), told.changed()) == (None, {"t"})


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({}, ["info", "error"]),
        ({"log_level": 3}, ["error"]),
        ({"log_level": "nonsense"}, ["debug", "info", "error"]),
        ({"debug": "fetch"}, ["debug", "info", "error"]),
    ],
)
def test_the_log_holds_what_was_asked_for(given: dict[str, Any], lines: list[str]) -> None:
    logger, heard = logging.getLogger("tests.told"), Heard()
    logger.setLevel(logging.DEBUG)
    logger.addHandler(heard)
    told = Told({**given, "logger": logger})
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        says(told, logging.getLevelName(level).lower(), level)
    assert [line.rsplit(" ", 1)[1] for line in heard.lines] == lines
    assert told.properties["debug"].split(",")[-1] == "metadata"
    assert "fetch" in told.properties["debug"] or "debug" not in given


def test_while_records_flow_the_client_tells_and_the_brokers_are_not_asked(
    stage: Stage, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    look = BrokerIdentities.look

    def counted(self: BrokerIdentities, topics: Iterable[str]) -> Any:
        asked.append(sorted(topics))
        return look(self, asked[-1])

    monkeypatch.setattr(BrokerIdentities, "look", counted)
    consumer = stage.recorder()
    with running(consumer):
        stage.send(3)
        stage.wait()
        before = len(asked)
        for _ in range(5):
            stage.send(3)
            stage.wait()
        (member,) = consumer._members
        assert member._vigil._told.reads(stage.topic) == stage.row().topic_id
    assert len(asked) == before
    assert stage.faults() == []


def read_while_made_again(stage: Stage, kafka: KafkaServer, seen: Witness) -> None:
    """The thread that applies stands still after the first batch, while the topic is made again and the
    client fetches from it: what it hands out next begins at the old offset, just after all was well."""
    stage.send(10)
    # By hand: under a group's protocol the client would ask us for leave to rejoin first.
    consumer = stage.recorder({"topic.metadata.refresh.interval.ms": 1000, "fetch.error.backoff.ms": 1})

    def make(_: dict[str, Any]) -> None:
        if stage.offset() < 10:
            return
        seen.at("consumer.batch.committed", lambda _: None)
        (member,) = consumer._members
        position = member._assignment.partitions[stage.topic, 0]
        place = member._client.assignment()[0]
        # Or the client would find the new topic empty, sometimes, and its position outside of it.
        member._client.pause([place])
        made_again(stage, kafka, 40)
        member._client.resume([place])
        eventually(lambda: member._client.get_watermark_offsets(place, cached=True)[1] == 40, what="fetched")
        assert position.verified

    seen.at("consumer.batch.committed", make)
    with running(consumer, partitions=[(stage.topic, 0)]):
        eventually(lambda: stage.offset() == 40 or seen.all("consumer.stopped"))


@pytest.mark.parametrize("hears", [True, False])
def test_records_of_a_topic_made_again_that_were_fetched_already_are_not_applied(
    build: StageFactory, kafka: KafkaServer, seen: Witness, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    """Also where the client does not tell: then the brokers are asked after the records were polled."""
    if not hears:
        monkeypatch.setattr(Told, "_keep", lambda *_: None)
    stage = build(partitions=1)
    read_while_made_again(stage, kafka, seen)
    assert "made again" in seen.all("consumer.stopped")[0]["reason"]
    assert (stage.faults(), stage.offset()) == ([], 10)


def test_whoever_trusts_what_was_true_a_moment_ago_reads_the_new_topic_at_the_old_offset(
    build: StageFactory, kafka: KafkaServer, seen: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "_keep", lambda *_: None)
    verify = Vigil.verify

    def once(self: Vigil, partitions: Any) -> None:
        verify(self, [partition for partition in partitions if not partition.verified])

    monkeypatch.setattr(Vigil, "verify", once)
    stage = build(partitions=1)
    read_while_made_again(stage, kafka, seen)
    assert stage.offset() == 40
    assert "new0" not in stage.effects()
    assert "new39" in stage.effects()
