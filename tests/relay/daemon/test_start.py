"""A relay that comes before its database or broker waits, says so once, and goes on when they appear."""

from pathlib import Path

import pytest

from outbox.storage import ddl
from outbox.testing.servers import KafkaBroker, start_mock_kafka, start_postgres
from tests.conftest import create_engine
from tests.relay.conftest import StartRelay
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until


def test_it_waits_for_its_database(tmp_path: Path) -> None:
    with start_postgres(own=True) as postgres, start_mock_kafka() as mock:
        url = postgres.database("late")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        postgres.stop()
        settings = {
            "OUTBOX_DATABASE_URL": url,
            "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": mock.bootstrap,
            "OUTBOX_LEASE": "1",
        }
        with RelayProcess(settings, tmp_path / "log") as relay:
            until(lambda: "Connection refused" in relay.log, 20, lambda: relay.log)
            postgres.start()
            relay.wait_for("relay.claimed")
            said = [line for line in relay.log.splitlines() if "WARNING" in line]
            assert len(said) == 1, said
            assert "database 127.0.0.1" in said[0]
            assert "going on" in relay.log
            assert relay.stop() == 0


def test_it_waits_for_its_broker(scene: Scene, start: StartRelay, broker: KafkaBroker) -> None:
    broker.kill()
    scene.write(100)
    relay = start(sabotage="impatient")
    scene.wait("SELECT state->>'alarm' LIKE 'no broker answers%' FROM outbox_relay")
    assert scene.bootstrap in scene.status("relay-1")["alarm"]
    broker.start()
    scene.wait_until_through()
    assert relay.log.count("no broker answers") <= 2, "said once, and once that it is over"
    assert scene.complaints() == []
    assert relay.stop() == 0


def test_the_clients_standing_warning_is_not_repeated_at_every_start(scene: Scene, start: StartRelay) -> None:
    scene.write(10)
    relay = start()
    scene.wait_until_through()
    assert relay.stop() == 0
    assert "experimental" not in relay.log


@pytest.mark.parametrize("first", ["broker", "database"])
def test_it_stops_while_it_waits(scene: Scene, start: StartRelay, first: str) -> None:
    away = {"broker": "kafka_bootstrap_servers", "database": "database_url"}
    where = {"broker": "127.0.0.1:1", "database": "postgresql://127.0.0.1:1/nowhere"}
    relay = start(**{away[first]: where[first]})
    until(lambda: "WARNING" in relay.log, 20, lambda: relay.log)
    assert relay.stop(within=10) == 0
