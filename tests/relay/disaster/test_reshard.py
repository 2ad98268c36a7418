"""A fail-over in the midst of a re-shard: what is known takes effect, each key in its order."""

import os
from contextlib import ExitStack

import pytest

from tests.relay.disaster.pair import Pair
from tests.relay.disaster.resharding import Resharding

SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))

EACH = 3
"""Databases of each kind, at a step of its own each: one fail-over of one pair meets them all."""


@pytest.mark.timeout(240)
def test_a_fail_over_at_any_step_of_a_re_shard_keeps_every_key_in_its_order(pair: Pair) -> None:
    """What the standby knows of it ends under old numbers; the rest is as if it had not been asked for."""
    template = pair.here.name

    def begun(seed: int, *, waiting: bool = False) -> Resharding:
        name = f"seed_{seed}"
        pair.primary.database(name, template=template)
        ran = Resharding(pair.url_of(name), seed, waiting)
        ran.steps(16 + seed - SEED)
        ran.half()
        return ran

    with ExitStack() as ends:
        known = [begun(SEED + n) for n in range(EACH)]
        waited = [begun(SEED + EACH + n, waiting=True) for n in range(EACH)]
        lost = [begun(SEED + 2 * EACH + n) for n in range(EACH)]
        every = known + waited + lost
        for ran in every:
            ends.callback(ran.close)
        pair.wait_until_it_has_all()
        with pair.held_back():
            for ran in waited:
                ran.steps(15)
            for ran in lost:
                ran.whole()
            pair.fail_over()
        for ran in every:
            ran.promoted()
            ran.steps(8)
            ran.drain()
        exact = [complaint for ran in known + waited for complaint in ran.verdict(exact=True)]
        assert exact == []
        assert [complaint for ran in lost for complaint in ran.verdict(exact=False)] == []
        assert sum(ran.generations for ran in every) > 2 * len(every)
