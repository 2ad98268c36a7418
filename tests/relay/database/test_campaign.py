"""Relays killed at any step, backends terminated, the server killed: no event is lost, doubled, overtaken."""

import os
from collections.abc import Iterator

import pytest

from outbox.storage import ddl
from outbox.testing.servers import PostgresServer, start_postgres
from relay import look, reader
from tests.conftest import create_engine
from tests.relay.database.campaign import Campaign

SEED = int(os.environ.get("OUTBOX_TEST_SEED", "20"))
RIGHT = {"lost": 0, "ghosts": 0, "doubles": 0, "inversions": 0}


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with start_postgres({"fsync": True, "max_connections": 60}, own=True) as server:
        yield server


def campaign(server: PostgresServer, seed: int) -> Campaign:
    url = server.database(f"campaign_{seed}")
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    return Campaign(server, url, seed)


def test_a_campaign_of_kills_and_crashes_does_no_harm(server: PostgresServer) -> None:
    ran = campaign(server, SEED)
    ran.run(seconds=9, crashes=2, kills=9)
    verdict = ran.verdict()
    assert {name: verdict[name] for name in RIGHT} == RIGHT, f"OUTBOX_TEST_SEED={SEED}: {verdict}"
    assert verdict["committed"] > 500
    assert ran.kills > 8


def test_the_campaign_finds_out_if_late_transactions_are_skipped(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a poller does that remembers the last one it saw."""
    for module, name, condition in (
        (look, "LOOK", "WHERE xid = ANY"),
        (reader, "FEW_STRAGGLERS", "WHERE before"),
    ):
        naive = getattr(module, name).replace(condition, condition.replace("WHERE", "WHERE false AND"))
        monkeypatch.setattr(module, name, naive)
    ran = campaign(server, SEED + 1)
    ran.run(seconds=3, crashes=0)
    assert ran.verdict()["lost"] > 0
