"""The short, seeded form of `make torture`: three brokers, six processes, and everything done to them."""

import os
from collections.abc import Iterator

import pytest

from outbox.consumer.identity import BrokerIdentities
from tests.consumer.stage import PROTOCOLS
from tests.consumer.torture.campaign import Campaign, Servers, servers

SECONDS = float(os.environ.get("OUTBOX_TORTURE_SECONDS", "8"))
SEED = int(os.environ.get("OUTBOX_TORTURE_SEED", "1"))


@pytest.fixture(scope="module")
def stand() -> Iterator[Servers]:
    with servers() as running:
        yield running


def test_whichever_broker_is_gone_the_others_say_which_topic_it_is(stand: Servers) -> None:
    """The client asks the one that it knows as controller, and nothing tells it of another."""
    topic = stand.kafka.create_topic("whichever", 1)
    identities = BrokerIdentities({"bootstrap.servers": stand.kafka.bootstrap})
    identities.look([topic])
    asked = identities._admin.list_topics(timeout=10).controller_id
    before = identities.look([topic])
    (broker,) = (broker for broker in stand.kafka.brokers if broker.node == asked)
    broker.kill()
    try:
        assert identities.look([topic]) == before
    finally:
        broker.launch()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_effects_stay_exactly_once_and_in_order_whatever_is_done_to_members_database_and_brokers(
    stand: Servers, protocol: str
) -> None:
    verdict = Campaign(stand, protocol, SEED).run(SECONDS)
    assert verdict.faults == [], str(verdict)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_torture_breaks_a_consumer_whose_offset_is_committed_apart(stand: Servers) -> None:
    """A blow has to fall between two commits: mostly the first stretch sees one."""
    orders = {"break": "offset_apart"}
    verdicts = (Campaign(stand, "eager", SEED + 1 + n, 3, **orders).run(SECONDS) for n in range(3))
    assert any(verdict.faults for verdict in verdicts)
