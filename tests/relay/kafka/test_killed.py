"""A relay killed at any step loses nothing, keeps the order, and its successor's repeats are identical."""

import pytest

from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

STEPS = [
    "relay.claimed 1 KILL",  # before anything is planned
    "relay.planned 1 KILL",  # planned, nothing sent
    "relay.sending 2 KILL",  # the first chunk may or may not be in
    "relay.sending 7 KILL",
    "relay.acknowledged 1 KILL",  # acknowledged, not written down
    "relay.acknowledged 12 KILL",  # all of it acknowledged, not confirmed
    "relay.confirmed 1 KILL",
]


@pytest.mark.parametrize("strike", STEPS)
def test_killed_at_any_step_nothing_is_lost_and_repeats_are_identical(
    scene: Scene, start: StartRelay, strike: str
) -> None:
    scene.write(550)
    scene.write(50, keys=0)
    assert start(strike=strike).wait() == -9
    scene.write(100)
    start()
    scene.wait_until_through()
    assert scene.complaints() == []


@pytest.mark.parametrize(
    ("sabotage", "strike"),
    [
        ("forgets_the_plan", "relay.acknowledged 3 KILL"),
        ("confirms_before_it_sends", "relay.planned 1 KILL"),
        ("scatters_keys", "relay.acknowledged 3 KILL"),
    ],
)
def test_the_test_finds_out_a_relay_that(scene: Scene, start: StartRelay, sabotage: str, strike: str) -> None:
    scene.write(600)
    assert start(strike=strike, sabotage=sabotage).wait() == -9
    scene.write(100)
    start(sabotage=sabotage)
    scene.wait_until_through()
    assert scene.complaints() != []


def test_every_second_round_is_killed_and_the_stream_is_still_exact(scene: Scene, start: StartRelay) -> None:
    for times in (1, 2, 3):
        scene.write(150)
        assert start(strike=f"relay.acknowledged {times} KILL", lease="0.3").wait() == -9
    start(lease="0.3")
    scene.wait_until_through()
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert wire.repeats(records) > 0
