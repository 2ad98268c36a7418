"""Everything at once for some seconds: writers of every kind, relays killed and frozen, servers failing."""

import os
import time
from collections.abc import Callable, Sequence

import pytest

from outbox.testing.servers import KafkaBroker
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.kafka import troubles
from tests.relay.scene import Scene

SEED = int(os.environ.get("RELAY_TORTURE_SEED", "20"))
SECONDS = float(os.environ.get("RELAY_TORTURE_SECONDS", "7"))
"""Longer: RELAY_TORTURE_SECONDS=600 RELAY_TORTURE_SEED=7 pytest tests/relay/kafka/test_torture.py"""

Judge = Callable[[Sequence[wire.Arrived], Sequence[tuple[str, str | None]]], list[str]]


@pytest.mark.slow
@pytest.mark.timeout(150 + SECONDS)
@pytest.mark.parametrize(
    ("mode", "judge"), [("sequenced", wire.complaints), ("transactional", wire.plain_complaints)]
)
def test_whatever_fails_nothing_is_lost_invented_or_overtaken(
    scene: Scene, start: StartRelay, broker: KafkaBroker, mode: str, judge: Judge
) -> None:
    """In mode transactional also to a reader without marks."""
    if mode == "transactional":
        scene.transactional()
        first = start()
        scene.wait("SELECT mode = 'transactional' FROM outbox_shard")
        assert first.stop() == 0
    troubles.keys(scene)
    until = time.monotonic() + SECONDS
    writers = [troubles.Writer(scene, seed, until) for seed in range(SEED, SEED + 4)]
    for writer in writers:
        writer.start()
    rows = {"look_rows": "20", "chunk_rows": "7", "transaction_rows": "7"}
    trouble = troubles.Trouble(scene, [broker], lambda: start(**rows), SEED)
    trouble.go_on(until)
    for writer in writers:
        writer.join(30)
        assert writer.failure is None, writer.failure
    scene.wait_until_through(60)
    committed = scene.session.execute(troubles.COMMITTED).fetchall()
    records = scene.arrived()
    assert judge(records, committed) == [], trouble.done
    assert len(committed) > 200
    assert trouble.done.total() > 5
