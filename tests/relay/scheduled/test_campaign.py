"""Under writers, cancels and killed backends each event is moved once or cancelled, in its key's order."""

import psycopg
import pytest

from relay import mover
from relay.database import plain_url
from tests.relay.scheduled.campaign import Campaign
from tests.relay.scheduled.scheduling import PLAIN_SKIP_LOCKED, SEVERAL_MOVERS, use

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a batch ends in the middle of a key again and again."""
    monkeypatch.setattr(mover, "BATCH", 7)


def test_each_event_is_moved_once_or_cancelled_and_keys_keep_their_order(database: str) -> None:
    campaign = Campaign(database, seed=1)
    campaign.run(4.0)
    assert campaign.complaints() == [], campaign.tally
    assert campaign.cancelled, campaign.tally
    assert campaign.kills > 5, campaign.tally
    assert len(campaign.in_time) > 20, campaign.tally


@pytest.mark.parametrize("naive", [PLAIN_SKIP_LOCKED, SEVERAL_MOVERS], ids=["skip-locked", "several-movers"])
def test_the_verdict_finds_out_a_mover_that_skips_what_is_locked(database: str, naive: str) -> None:
    with psycopg.connect(plain_url(database), autocommit=True) as session:
        use(session, naive)
    campaign = Campaign(database, seed=3, killing=False)
    campaign.run(4.0)
    assert "inversions" in " ".join(campaign.complaints()), campaign.tally
