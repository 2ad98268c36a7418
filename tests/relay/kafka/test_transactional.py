"""Mode transactional: a plain read_committed reader sees each event exactly once, in order, whatever dies."""

import pytest

from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

STEPS = [
    "relay.claimed 1 KILL",
    "relay.fencing 1 KILL",  # a change of mode: nothing is done yet
    "relay.recorded 1 KILL",  # the first progress record is in, the row says sequenced
    "relay.switched 1 KILL",
    "relay.fencing 2 KILL",  # the first take-over
    "relay.taken_over 1 KILL",
    "relay.planned 1 KILL",
    "relay.sending 2 KILL",
    "relay.settled 1 KILL",  # all records with the brokers, no commit asked for
    "relay.settled 7 KILL",
    "relay.committing 1 KILL",  # nobody knows
    "relay.committing 7 KILL",
    "relay.acknowledged 1 KILL",  # committed, not written down
    "relay.acknowledged 12 KILL",
    "relay.confirmed 1 KILL",
]


@pytest.mark.parametrize("strike", STEPS)
def test_killed_at_any_step_each_event_is_seen_exactly_once(
    scene: Scene, start: StartRelay, strike: str
) -> None:
    scene.transactional()
    scene.write(550)
    scene.write(50, keys=0)
    assert start(strike=strike).wait() == -9
    scene.write(100)
    start()
    scene.wait_until_through()
    assert scene.value("SELECT mode FROM outbox_shard") == "transactional"
    assert scene.plain_complaints() == []
