"""What people and tools see of a consumer is true, costs no question to a broker, and names what is wrong."""

import dataclasses
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, Producer, TopicPartition
from sqlalchemy.orm import Session

from outbox import Retry
from outbox.consumer import Consumer, PartitionHealth, Record, StateHealth
from outbox.consumer import Health as ConsumerHealth
from outbox.consumer.mirror import Mirror
from outbox.consumer.partition import Partition
from outbox.errors import ConfigurationError
from outbox.testing.servers import ServerUnavailable
from relay.telemetry import consumer_metrics
from relay.telemetry.consumer_pages import ConsumerPages
from relay.telemetry.health import Health
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, Stage, Witness, eventually, running

PAGE = Path(__file__).parents[2] / "docs" / "consumer.md"

OFTEN = {"statistics.interval.ms": 100}


class Gated:
    """A consumer whose handler waits until it is let go; patient: it lets the record be tried again."""

    def __init__(self, stage: Stage, *, patient: bool = False, **settings: Any) -> None:
        self.gate = threading.Event()
        self.consumer = stage.consumer({**OFTEN, **settings.pop("kafka", {})}, **settings)

        @self.consumer.on(topic=stage.topic)
        def handle(session: Session, value: bytes, record: Record) -> None:
            if patient and not self.gate.is_set():
                raise Retry(after=timedelta(seconds=0.05))
            self.gate.wait(60)
            stage.store(session, record)

    @contextmanager
    def running(self, **how: Any) -> Iterator[None]:
        with running(self.consumer, **how):
            try:
                yield
            finally:
                self.gate.set()


def the_partition(consumer: Consumer) -> PartitionHealth | None:
    found = [p for member in consumer.health().members for p in member.partitions]
    return found[0] if found else None


def lag(consumer: Consumer) -> int | None:
    partition = the_partition(consumer)
    return None if partition is None else partition.lag


@pytest.mark.parametrize(
    ("protocol", "by_hand"),
    [("cooperative", False), ("kip848", False), ("eager", False), ("cooperative", True)],
)
def test_the_lag_is_what_is_not_applied_yet(build: StageFactory, protocol: str, by_hand: bool) -> None:
    stage = build(partitions=1)
    stage.send(7)
    gated = Gated(stage, patient=True, kafka=PROTOCOLS[protocol], batch_size=3)
    with gated.running(partitions=[(stage.topic, 0)] if by_hand else None):
        eventually(lambda: lag(gated.consumer) == 7)
        gated.gate.set()
        eventually(lambda: lag(gated.consumer) == 0)
        found = the_partition(gated.consumer)
        assert found is not None
        assert (found.applied, found.next_offset, found.stuck) == (7, 7, None)
        assert found.applied_at is not None
        assert gated.consumer.health().lag == 0


def test_a_transactional_topic_at_rest_has_no_lag(build: StageFactory) -> None:
    """The mark of the last transaction lies behind the last record, and can never be applied."""
    stage = build(partitions=1)
    producer = Producer({"bootstrap.servers": stage.bootstrap, "transactional.id": stage.topic})
    producer.init_transactions(20)
    producer.begin_transaction()
    for n in range(5):
        producer.produce(stage.topic, f"{n}", partition=0)
    producer.commit_transaction(20)
    consumer = stage.recorder(OFTEN)
    with running(consumer):
        eventually(lambda: len(stage.effects()) == 5)
        eventually(lambda: lag(consumer) == 0)
    assert stage.offset() == 5


def test_a_partition_that_does_not_get_on_is_stuck_until_it_does(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(3)
    gated = Gated(stage, stuck_after=timedelta(seconds=0.5))
    with gated.running():
        (stuck,) = eventually(lambda: gated.consumer.health().stuck)
        assert "handler" in (stuck.reason or "")
        assert not gated.consumer.health().ok
        gated.gate.set()
        eventually(lambda: gated.consumer.health().ok)
        assert stage.effects() == stage.expected(0)


def test_a_caught_up_partition_is_never_stuck(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(3)
    consumer = stage.recorder(OFTEN, stuck_after=timedelta(seconds=0.3))
    with running(consumer):
        stage.wait()
        eventually(lambda: lag(consumer) == 0)
        for _ in range(20):
            threading.Event().wait(0.05)
            assert consumer.health().stuck == ()


def test_what_the_client_tells_is_counted_and_shown(stage: Stage, seen: Witness) -> None:
    consumer = stage.recorder(OFTEN)
    stage.send(9)
    with running(consumer):
        stage.wait()
        assert seen.wait("consumer.statistics")["statistics"]["type"] == "consumer"
        (member,) = consumer._members
        member._reach.callbacks["error_cb"](KafkaError(KafkaError._TRANSPORT, "a broker hung up"))
        client = eventually(lambda: client_with_traffic(consumer))
    assert seen.wait("consumer.client_error")["name"] == "_TRANSPORT"
    assert client.errors["_TRANSPORT"] == 1
    assert client.last_error == "_TRANSPORT: a broker hung up"
    assert client.brokers_up == 1


def client_with_traffic(consumer: Consumer) -> Any:
    client = consumer.health().members[0].client
    return client if client.received_records >= 9 else None


@pytest.mark.parametrize("name", ["stats_cb", "error_cb"])
def test_callbacks_of_the_client_are_taken_and_the_error_names_where_to_listen(
    stage: Stage, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"health|hook"):
        stage.consumer({name: print})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lag_tools_see_offset_leader_epoch_and_owner(stage: Stage, protocol: str) -> None:
    stage.send(9, partition=0)
    with running(stage.recorder(PROTOCOLS[protocol])):
        stage.wait()
    plain = KafkaConsumer({"bootstrap.servers": stage.bootstrap, "group.id": stage.group})
    (place,) = plain.committed([TopicPartition(stage.topic, 0)], timeout=10)
    plain.close()
    # Also the last one: what was applied within the last second before the end is shown at the end.
    assert (place.offset, place.leader_epoch) == (9, 0)
    assert place.metadata == f"{stage.row().owner} epoch 1"


class Refusing:
    """A client whose commits the brokers refuse."""

    commits: ClassVar[list[list[TopicPartition]]] = []

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert asynchronous
        self.commits.append(offsets)


def test_a_copy_that_the_brokers_refused_is_made_again() -> None:
    client: Any = Refusing()
    client.commits = []
    mirror = Mirror(client, timedelta(seconds=1), "me")
    partition = Partition("orders", 0)
    partition.claim = claim = type("Claim", (), {"epoch": 1})()
    mirror.show([partition])
    mirror.show([partition])
    assert len(client.commits) == 1
    mirror.answered(KafkaError(KafkaError.REBALANCE_IN_PROGRESS), client.commits[0])
    mirror.show([partition])
    assert len(client.commits) == 2
    mirror.answered(None, client.commits[1])
    mirror.show([partition])
    assert len(client.commits) == 2
    claim.epoch = 2  # another owner was in between, and may have shown something else
    mirror.show([partition])
    assert len(client.commits) == 3


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_probes_and_prometheus_are_answered(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(5)
    gated = Gated(stage, stuck_after=timedelta(seconds=0.5))
    server = Health("0", ConsumerPages(gated.consumer.health))
    server.start()
    try:
        assert ask(server.port, "/healthz") == (200, "ok\n")
        assert ask(server.port, "/readyz")[0] == 503, "it does not run yet"
        with gated.running():
            eventually(lambda: gated.consumer.health().stuck)
            status, body = ask(server.port, "/readyz")
            (wrong,) = json.loads(body)["partitions"]
            assert (status, wrong["topic"], wrong["partition"]) == (503, stage.topic, 0)
            gated.gate.set()
            eventually(lambda: ask(server.port, "/readyz")[0] == 200)
            eventually(lambda: lag(gated.consumer) == 0)
            page = ask(server.port, "/metrics")[1]
        place = f'group="{stage.group}",topic="{stage.topic}",partition="0"'
        assert f"outbox_consumer_lag_records{{{place}}} 0\n" in page
        assert f"outbox_consumer_next_offset{{{place}}} 5\n" in page
        assert f'outbox_consumer_partition_state{{{place},state="reading"}} 1\n' in page
        assert f'outbox_consumer_applied_records_total{{group="{stage.group}",member="0"}} 5\n' in page
        assert ask(server.port, "/else")[0] == 404
    finally:
        server.close()


def test_every_metric_is_explained_in_the_documentation() -> None:
    names = set(re.findall(r"outbox_(?:consumer|state)_\w+", PAGE.read_text()))
    families = consumer_metrics.families(ConsumerHealth(group="g", members=()))
    assert {family.name for family in families} == names


def test_two_states_of_the_same_topics_are_told_apart() -> None:
    one = StateHealth(topics=("a", "b"), ready=True, keys=1, lag=0, skipped=0, repeats=0, trouble=())
    page = consumer_metrics.page(
        ConsumerHealth(group="g", members=()), [one, dataclasses.replace(one, keys=2)]
    )
    assert (
        'outbox_state_keys{state="0",topics="a,b"} 1\noutbox_state_keys{state="1",topics="a,b"} 2\n' in page
    )
    samples = [line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples)), "Prometheus refuses a page that says something twice"


def test_prometheus_own_checker_has_nothing_to_say(stage: Stage) -> None:
    stage.send(3)
    consumer = stage.recorder(OFTEN)
    with running(consumer):
        stage.wait()
        eventually(lambda: lag(consumer) == 0)
        page = consumer_metrics.page(consumer.health())
    promtool = shutil.which("promtool")
    if promtool is None:
        raise ServerUnavailable(
            "promtool", "promtool is not on this machine (Debian: apt install prometheus)"
        )
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stderr) == (0, "")
