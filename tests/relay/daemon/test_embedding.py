"""A service may run the relay itself, round by round, without any thread of the relay's."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from relay.config import RelayConfig
from relay.daemon import Relay
from relay.lease import Leases
from relay.share import Share
from tests.relay.scene import Scene, until


@pytest.fixture
def make(scene: Scene) -> Iterator[Any]:
    made: list[Relay] = []

    def one(**settings: Any) -> Relay:
        config = RelayConfig(
            database_url=scene.database,
            kafka_bootstrap_servers=scene.bootstrap,
            **{"lease": timedelta(seconds=2), **settings},
        )
        made.append(Relay(config))
        return made[-1]

    yield one
    for relay in made:
        relay.close()


def test_rounds_publish_what_was_committed(scene: Scene, make: Any) -> None:
    relay = make()
    threads = threading.active_count()
    scene.write(20)
    published: int = 0

    def through() -> bool:
        nonlocal published
        published += relay.run_once().published
        return bool(published == 20)

    until(through, 20, lambda: str(relay.status))
    assert threading.active_count() == threads
    whole = {"state": "carrying", "alarm": None, "published": 20}
    assert relay.status | whole == relay.status
    assert relay.status["shards"][0] | whole == relay.status["shards"][0]
    relay.close()
    assert scene.complaints() == []
    assert scene.value("SELECT next IS NULL FROM outbox_shard") is True, "closing confirms"
    assert scene.value("SELECT owner IS NULL FROM outbox_lease") is True


def test_a_second_one_stands_by_until_the_first_is_closed(make: Any) -> None:
    first, second = make(lease=timedelta(seconds=60)), make(lease=timedelta(seconds=60))
    first.run_once()
    second.run_once()
    assert (first.status["state"], second.status["state"]) == ("carrying", "standby")
    first.close()
    second.run_once()
    assert second.status["state"] == "carrying"


def test_a_lease_that_came_with_the_stop_is_given_back(
    scene: Scene, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make(lease=timedelta(seconds=60))
    renew = Leases.run_once

    def late(self: Leases, **how: bool) -> Share:
        found = renew(self, **how)
        relay.stop()
        return found

    monkeypatch.setattr(Leases, "run_once", late)
    relay.run()
    assert scene.value("SELECT owner IS NULL FROM outbox_lease") is True


def test_rounds_renew_the_lease_now_and_then_and_not_each_time(scene: Scene, make: Any) -> None:
    relay = make(lease=timedelta(seconds=60))
    relay.run_once()
    written = set()
    for _ in range(40):
        relay.run_once()
        written.add(scene.value("SELECT lease_until FROM outbox_lease"))
    assert len(written) < 20


def test_the_doorbell_shortens_the_wait(scene: Scene, make: Any) -> None:
    relay = make(poll_idle=timedelta(seconds=30), poll_busy=timedelta(seconds=30))
    running = threading.Thread(target=relay.run)
    running.start()
    try:
        until(lambda: relay.status["state"] == "carrying", 20, lambda: str(relay.status))
        scene.write(1)
        began = time.monotonic()
        relay.ring()
        until(lambda: relay.status["published"] == 1, 10, lambda: str(relay.status))
        assert time.monotonic() - began < 10
    finally:
        relay.stop()
        running.join(20)
    assert not running.is_alive()
    assert relay.status["state"] == "stopped"
