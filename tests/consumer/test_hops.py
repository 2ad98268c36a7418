"""Consume, transform, produce over four hops: every hop has each event once and in order, whatever dies."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PostgresServer, start_kafka, start_postgres
from tests.conftest import create_engine
from tests.consumer.hops import Ring
from tests.consumer.stage import eventually

SECONDS = float(os.environ.get("OUTBOX_HOPS_SECONDS", "6"))
SEED = int(os.environ.get("OUTBOX_HOPS_SEED", "1"))
BREAK = os.environ.get("OUTBOX_HOPS_BREAK")

WALKS = 5

BLOWS = ("relay", "relay", "consumer", "consumer", "postmaster", "broker")
"""Each round strikes all of these, in an order of its own."""


@pytest.fixture
def own_kafka() -> Iterator[KafkaServer]:
    """A broker that may be killed."""
    with start_kafka(own=True) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be killed."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def template(own_postgres: PostgresServer) -> str:
    engine = create_engine(own_postgres.database(f"hop_template_{SEED}"))
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    return f"hop_template_{SEED}"


def strike(blow: str, ring: Ring, kafka: KafkaServer, postgres: PostgresServer, random: Random) -> None:
    match blow:
        case "relay":
            ring.kill_relay(random.randrange(len(ring.relays)))
        case "consumer":
            ring.kill_consumer(random.randrange(len(ring.consumers)))
        case "postmaster":
            postgres.kill()
            postgres.start()
            ring.hang_up()
        case "broker":
            kafka.brokers[0].kill()
            kafka.brokers[0].start()


@pytest.mark.slow
@pytest.mark.timeout(180 + 4 * SECONDS)
def test_four_hops_have_each_event_once_and_in_order_while_everything_is_killed(
    own_kafka: KafkaServer, own_postgres: PostgresServer, template: str, tmp_path: Path
) -> None:
    random = Random(SEED)
    struck: list[str] = []
    orders = {"break": BREAK} if BREAK else {}
    with Ring(own_postgres, own_kafka, template, tmp_path, **orders) as ring:
        ring.send("walk-0", 5)
        eventually(ring.arrived, within=120, what="the first steps at every hop")
        pause, end = threading.Event(), time.monotonic() + SECONDS
        while time.monotonic() < end or not struck:
            for blow in random.sample(BLOWS, len(BLOWS)):
                for _ in range(random.randint(1, 4)):
                    ring.send(f"walk-{random.randrange(WALKS)}", random.randint(1, 30))
                pause.wait(random.uniform(0, 0.6))
                strike(blow, ring, own_kafka, own_postgres, random)
                struck.append(blow)
        ring.send("walk-0", 5)
        eventually(ring.arrived, within=120, what="all steps at every hop")
        faults = ring.faults()
    assert faults == [], (SEED, struck)
