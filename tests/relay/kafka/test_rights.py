"""Rights that are missing in mode transactional are named, and no row is blamed for another topic's."""

import random
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from outbox.record import Seq
from outbox.testing.servers import KafkaServer, start_kafka
from relay.producers import Interrupted, Names, Recorded, Refused, TransactionalProducer
from tests.relay.kafka.chunks import Delivery, row


@pytest.fixture(scope="module")
def strict() -> Iterator[KafkaServer]:
    """A broker that knows rights; whoever no rule speaks of may do everything."""
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    with start_kafka(
        settings={"authorizer.class.name": authorizer, "allow.everyone.if.no.acl.found": "true"}
    ) as kafka:
        yield kafka


@pytest.fixture
def producer(strict: KafkaServer) -> Iterator[TransactionalProducer]:
    made = TransactionalProducer({"bootstrap.servers": strict.bootstrap}, Names(7, random.getrandbits(40), 0))
    made.fence(lambda: True)
    made.begin(Recorded(Seq("s", 1, 0, 1, 0), "1:1:", "9:9:"), lambda: True)
    yield made
    made.close()


def forbid_writing(kafka: KafkaServer, topic: str) -> None:
    def rule(operation: AclOperation, permission: AclPermissionType) -> AclBinding:
        literal = ResourcePatternType.LITERAL
        return AclBinding(ResourceType.TOPIC, topic, literal, "User:ANONYMOUS", "*", operation, permission)

    rules = [rule(AclOperation.WRITE, AclPermissionType.DENY)]
    rules += [rule(AclOperation[name], AclPermissionType.ALLOW) for name in ("DESCRIBE", "READ")]
    for made in kafka.admin.create_acls(rules).values():
        made.result(30)


def test_a_topic_that_may_not_be_written_is_no_fault_of_its_first_row(
    strict: KafkaServer, producer: TransactionalProducer
) -> None:
    """Rows are not parked one after the other for it, unless that is asked for."""
    strict.create_topic("closed", 2)
    forbid_writing(strict, "closed")
    delivery = Delivery(producer, [row(n, "closed") for n in range(1, 10)], size=5)
    refused = delivery.until_refused()
    assert refused.of_topic
    assert "grant DESCRIBE and WRITE" in refused.reason


def test_a_progress_topic_that_may_not_be_written_is_named_and_no_row_is_blamed(
    strict: KafkaServer, producer: TransactionalProducer
) -> None:
    strict.create_topic("open", 2)
    progress = producer.names.progress_topic
    forbid_writing(strict, progress)
    delivery = Delivery(producer, [row(n, "open") for n in range(1, 10)], size=5)
    ends = [delivery.attempt() for _ in range(4)]
    assert not any(isinstance(ended, Refused) for ended in ends)
    assert isinstance(ends[-1], Interrupted)
    assert f"topic {progress} takes no record" in str(ends[-1])
    assert "grant DESCRIBE and WRITE" in str(ends[-1])
