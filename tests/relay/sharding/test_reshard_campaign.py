"""Re-shards in a row under writers, kills at every step and overlapping owners: counted only when drained."""

import os
from collections.abc import Iterator

import pytest

from outbox.storage import ddl
from outbox.testing.servers import PostgresServer, start_postgres
from tests.conftest import create_engine
from tests.relay.database.test_campaign import RIGHT
from tests.relay.sharding.campaign import ReshardCampaign

SEED = int(os.environ.get("OUTBOX_TEST_SEED", "20"))


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with start_postgres({"fsync": True, "max_connections": 80}, own=True) as server:
        yield server


def test_a_campaign_of_re_shards_does_no_harm(server: PostgresServer) -> None:
    url = server.database("reshard")
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    ran = ReshardCampaign(server, url, SEED)
    ran.run(seconds=10, crashes=1)
    verdict = ran.verdict()
    assert {name: verdict[name] for name in RIGHT} == RIGHT, f"OUTBOX_TEST_SEED={SEED}: {verdict}"
    assert verdict["committed"] > 200
    assert verdict["generations"] > 1
    assert ran.kills > 5
