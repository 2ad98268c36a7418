"""One daemon carries several databases; what befalls one of them is nothing to the others."""

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from outbox.errors import ConfigurationError
from outbox.testing.servers import KafkaServer, PostgresServer
from outbox.testing.servers.ports import Port
from relay.config import RelayConfig
from relay.daemon import Relay
from tests.conftest import TopicFactory
from tests.relay.daemon.test_command_line import outbox_relay
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until


@pytest.fixture
def scenes(
    postgres: PostgresServer, template: str, kafka: KafkaServer, topic: TopicFactory
) -> Iterator[list[Scene]]:
    names = [f"outbox_one_of_two_{uuid4().hex[:8]}" for _ in range(2)]
    opened = [
        Scene(postgres.database(name, template=template), kafka.bootstrap, topic(f"e{n}"))
        for n, name in enumerate(names)
    ]
    yield opened
    for scene, name in zip(opened, names, strict=True):
        scene.session.close()
        postgres.drop(name)


def test_each_database_is_carried_and_one_that_is_broken_harms_no_other(
    scenes: list[Scene], tmp_path: Path
) -> None:
    sound, broken = scenes
    reserved = Port()
    port = reserved.number
    reserved.release()
    settings = {
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": sound.bootstrap,
        "OUTBOX_DATABASES__SOUND__URL": sound.database,
        "OUTBOX_DATABASES__BROKEN__URL": broken.database,
        "OUTBOX_DATABASES__BROKEN__LEASE": "1",
        "OUTBOX_HEALTH_ADDRESS": str(port),
        "OUTBOX_INSTANCE": "both",
    }
    with psycopg.connect(broken.database, autocommit=True) as session:
        session.execute("ALTER TABLE outbox_identity RENAME TO hidden")
    sound.write(50)
    with RelayProcess(settings, tmp_path / "relay.log", sabotage="impatient") as relay:
        sound.wait_until_through(60)

        def told() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                return b'outbox_relay_alarm{database="broken"} 1' in page.read()

        until(told, 30, lambda: relay.log[-2000:])
        assert "database broken" in relay.log
        with psycopg.connect(broken.database, autocommit=True) as session:
            session.execute("ALTER TABLE hidden RENAME TO outbox_identity")
        broken.write(50)
        broken.wait_until_through(60)
        sound.write(50)
        sound.wait_until_through(60)
        assert relay.stop() == 0
    assert [scene.complaints() for scene in scenes] == [[], []]
    states = [sound.status("both.sound")["state"], broken.status("both.broken")["state"]]
    assert states == ["stopped", "stopped"]


def test_two_sections_that_reach_one_database_are_two_relays_there(scene: Scene, tmp_path: Path) -> None:
    settings = {
        "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": scene.bootstrap,
        "OUTBOX_DATABASES__ONE__URL": scene.database,
        "OUTBOX_DATABASES__SAME__URL": scene.database,
        "OUTBOX_LEASE": "1",
        "OUTBOX_INSTANCE": "twice",
    }
    with RelayProcess(settings, tmp_path / "relay.log") as relay:
        for _ in range(3):
            scene.write(50)
            scene.wait_until_through(60)
        both = "SELECT array_agg(instance ORDER BY instance) = '{twice.one,twice.same}' FROM outbox_relay"
        scene.wait(both)
        scene.wait("SELECT min(heartbeat) > max(started_at) + interval '3 s' FROM outbox_relay")
        assert relay.log.count("lease taken") == 1
        assert relay.count("relay.fenced") == 0
        assert scene.value("SELECT epoch FROM outbox_shard") == 1
        assert relay.stop() == 0
    assert scene.complaints() == []


FILE = """
lease = 7
[kafka]
"bootstrap.servers" = "broker:9092"
[databases.shop]
url = "postgresql://relay@db1/shop"
lease = 2
[databases.stock]
url = "postgresql://relay@db2/stock"
kafka = { "linger.ms" = 1 }
"""


def test_a_section_has_the_settings_of_all_and_its_own_on_top(tmp_path: Path) -> None:
    (tmp_path / "outbox-relay.toml").write_text(FILE)
    config = RelayConfig.load(tmp_path / "outbox-relay.toml")
    shop, stock = config.each()["shop"], config.each()["stock"]
    assert (shop.url, stock.url) == ("postgresql://relay@db1/shop", "postgresql://relay@db2/stock")
    assert (shop.lease.total_seconds(), stock.lease.total_seconds()) == (2, 7)
    assert stock.kafka == {"bootstrap.servers": "broker:9092", "linger.ms": 1}
    assert shop.kafka == {"bootstrap.servers": "broker:9092"}
    assert shop.instance == stock.instance == config.instance
    with pytest.raises(ConfigurationError, match="carries one database"):
        Relay(config)


WRONG = {
    "neither url": ("[databases.shop]\nlease = 2", "shop has no url; set OUTBOX_DATABASES__SHOP__URL"),
    "both": (f'database_url = "postgresql://db/a"\n{FILE}', "either database_url or"),
    "a stranger": (
        FILE + "[databases.more]\nurl = 'postgresql://db/a'\nretries = 2",
        "databases.more.*retries",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_sections_that_cannot_work_are_named(case: str, tmp_path: Path) -> None:
    text, said = WRONG[case]
    file = tmp_path / "outbox-relay.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=f"(?s){said}"):
        RelayConfig.load(file).each()


def test_no_password_of_a_section_is_shown() -> None:
    config = RelayConfig.load(
        databases={"shop": {"url": "postgresql://relay:s3cret@db/shop"}}, kafka_bootstrap_servers="b:9092"
    )
    assert "s3cret" not in repr(config) + str(config) + json.dumps(str(config.each()))


def test_status_asks_all_databases_at_once_and_one_that_is_dead_hides_no_other(scene: Scene) -> None:
    scene.write(3)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        answering = threading.Thread(target=_end_two_together, args=[dead], daemon=True)
        answering.start()
        address = f"postgresql://outbox@127.0.0.1:{dead.getsockname()[1]}/"
        asked = outbox_relay(
            "status",
            "--json",
            DATABASES__FIRST__URL=f"{address}first?sslmode=disable&gssencmode=disable",
            DATABASES__SHOP__URL=scene.database,
            DATABASES__STOCK__URL=f"{address}stock?sslmode=disable&gssencmode=disable",
        )
        answering.join(30)
    assert asked.returncode == 1, asked
    document = json.loads(asked.stdout)
    assert document["databases"]["shop"]["shards"][0]["pending"] == 3
    assert document["databases"]["shop"]["alarms"] == ["shard 0 is carried by no relay"]
    for name in ("first", "stock"):
        (alarm,) = document["databases"][name]["alarms"]
        assert "closed" in alarm, "they were asked together, or the first would have timed out"
        assert f"{name}: {alarm}" in document["alarms"]


def _end_two_together(dead: socket.socket) -> None:
    """Take two connections before either hears that there is nobody."""
    lines = [dead.accept()[0] for _ in range(2)]
    for line in lines:
        line.close()
