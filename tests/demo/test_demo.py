"""The demo itself: it ends well, its verdict can fail on what is really there, and Ctrl-C leaves nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from outbox.testing.servers import KafkaServer, PostgresServer, postgres_programs
from relay.demo import scenario
from relay.demo.interruption import Interruption
from relay.demo.progress import Board
from relay.demo.report import Outcome
from relay.demo.scenario import Demo, Options
from relay.demo.services import Role
from relay.demo.traffic import Customers
from relay.demo.trouble import Trouble

pytestmark = pytest.mark.slow

KEYS = [
    *("orders", "published", "invoices", "shipments", "lost", "ghosts", "duplicates", "inversions"),
    *("repeats", "kills", "freezes", "p50_ms", "p99_ms", "kafka", "postgres"),
]


@pytest.fixture(autouse=True)
def no_given_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about what the demo starts itself."""
    postgres_programs.in_a_wheel()
    for name in ("OUTBOX_DATABASE_URL", "OUTBOX_KAFKA_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for everything that a demo makes; short, because of socket paths."""
    path = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start(home: Path, *arguments: str, kafka: str | None = "mock") -> subprocess.Popen[str]:
    choice = () if kafka is None else ("--kafka", kafka)
    return subprocess.Popen(
        [sys.executable, "-m", "relay", "demo", "--json", *choice, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(home)},
        start_new_session=True,
    )


def left_behind(home: Path) -> list[str]:
    """Directories, and processes that were started with this home."""
    found = [str(path) for path in home.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={home}\0" in (process / "environ").read_text(errors="replace"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def nothing_left_behind(home: Path) -> list[str]:
    """What is left once the reaper, which outlives its owner for a moment, has had its time."""
    until = time.monotonic() + 15
    while (found := left_behind(home)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_json_is_one_document_and_nothing_is_left_behind(home: Path) -> None:
    demo = start(home, "--orders", "40", "--kills", "0")
    output, said = demo.communicate(timeout=100)
    assert demo.returncode == 0, said
    document = json.loads(output)
    assert list(document) == KEYS
    assert document["orders"] == document["invoices"] == 40
    assert 0 < document["shipments"] <= 40
    assert document["published"] >= 80
    assert [document[name] for name in ("lost", "ghosts", "duplicates", "inversions", "kills")] == [0] * 5
    assert "mock" in document["kafka"]
    assert "embedded" in document["postgres"]
    assert 0 < document["p50_ms"] <= document["p99_ms"]
    assert nothing_left_behind(home) == []


UNPUBLISHED = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', aggregateid, 'order.changed.v1', '', topic FROM outbox_event LIMIT 1
"""
BOOKED_AGAIN = """
INSERT INTO invoice_journal (
    order_id, booking, amount, order_revision, requested_at, event_id, kafka_partition, kafka_offset)
SELECT order_id, booking, amount, order_revision, requested_at, event_id, kafka_partition, kafka_offset
FROM invoice_journal ORDER BY id LIMIT 1
"""
BOOKED_TOO_EARLY = """
UPDATE invoice_journal SET order_revision = 99
WHERE id = (SELECT min(id) FROM invoice_journal GROUP BY order_id HAVING count(*) > 1 LIMIT 1)
"""


class Sabotaged(Demo):
    """Judges twice: what the services left, then the same servers after somebody meddled with them."""

    honest: Outcome

    def _judge(self, *given: Any) -> Outcome:
        self.honest = super()._judge(*given)
        for service, statement in (
            ("order", UNPUBLISHED),
            ("invoice", BOOKED_AGAIN),
            ("invoice", BOOKED_TOO_EARLY),
        ):
            with psycopg.connect(self._at.databases[service]) as connection:
                assert connection.execute(statement.encode()).rowcount == 1
        stranger = Producer({"bootstrap.servers": self._at.bootstrap})
        stranger.produce(self._at.topics[0], b"{}", key=b"nobody", headers={"id": b"never-committed"})
        assert stranger.flush(10) == 0
        return super()._judge(*given)


def test_orders_become_invoices_exactly_once_while_processes_die_and_a_false_end_would_be_seen() -> None:
    with Interruption() as interruption:
        demo = Sabotaged(
            Options(orders=120, kills=3, kafka="mock", postgres="embedded"), Board(), interruption
        )
        sabotaged = demo.play()
    honest = demo.honest
    assert honest.passed, list(honest.breaches())
    assert (honest.orders, honest.invoices, honest.kills, honest.freezes) == (120, 120, 3, 1)
    assert not sabotaged.passed
    found = sabotaged.document()
    assert found["lost"] >= 1
    assert found["ghosts"] >= 1
    assert found["duplicates"] >= 1
    assert found["inversions"] >= 1


def test_given_servers_are_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer, kafka: KafkaServer
) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", postgres.url)
    monkeypatch.setenv("OUTBOX_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap)
    with Interruption() as interruption:
        outcome = Demo(Options(orders=30, kills=0), Board(), interruption).play()
    assert outcome.passed, list(outcome.breaches())
    assert outcome.orders == 30
    assert "OUTBOX_DATABASE_URL" in outcome.postgres
    assert "OUTBOX_KAFKA_BOOTSTRAP_SERVERS" in outcome.kafka
    with psycopg.connect(postgres.url) as connection:
        names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'outbox_demo%'")
        assert names.fetchall() == []
    assert [
        name for name in kafka.admin.list_topics(timeout=10).topics if name.startswith("outbox-demo")
    ] == []
    groups = kafka.admin.list_consumer_groups().result(10).valid
    assert [group.group_id for group in groups or [] if group.group_id.startswith("outbox-demo")] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OUTBOX_DATABASE_URL", "no url"),
        ("OUTBOX_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none"),
        ("OUTBOX_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
    ],
)
def test_a_given_server_that_cannot_be_used_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    demo = start(home, kafka=None)
    output, told = demo.communicate(timeout=60)
    assert (demo.returncode, output) == (3, "")
    assert f"outbox-relay: {variable} names" in told
    assert "Traceback" not in told
    assert nothing_left_behind(home) == []


class Frozen(Demo):
    """Freezes both relays of the invoice database for good."""

    def _trade(self, stack: ExitStack) -> tuple[Customers, Trouble]:
        for process in self._fleet.of(Role.INVOICE_RELAY):
            process.freeze()
        return super()._trade(stack)


def test_a_part_that_stands_still_is_named_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "STANDSTILL", 4.0)
    with Interruption() as interruption:
        options = Options(orders=20, kills=0, kafka="mock", postgres="embedded")
        outcome = Frozen(options, Board(), interruption).play()
    assert outcome.stalled is not None
    assert Role.INVOICE_RELAY in outcome.stalled
    assert "relay-invoices-1:" in outcome.stalled
    assert "INFO relay" in outcome.stalled
    assert not outcome.passed
    assert outcome.document()["lost"] >= 20


def database_is_being_made(home: Path, _: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while not list(home.glob("outbox-pg-*")):
        assert time.monotonic() < until
        time.sleep(0.005)


def said(word: str) -> Callable[[Path, subprocess.Popen[str]], None]:
    def wait(_: Path, demo: subprocess.Popen[str]) -> None:
        assert demo.stderr is not None
        assert any(line.startswith(word) for line in demo.stderr), f"it ended without saying {word}"

    return wait


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(database_is_being_made, signal.SIGINT, id="while-postgres-starts"),
        pytest.param(said("kafka"), signal.SIGTERM, id="while-services-start"),
        pytest.param(said("services"), signal.SIGINT, id="while-orders-come-in"),
    ],
)
def test_an_interruption_leaves_nothing_behind(
    home: Path, moment: Callable[[Path, subprocess.Popen[str]], None], number: signal.Signals
) -> None:
    demo = start(home)
    moment(home, demo)
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=60)
    assert (demo.returncode, output) == (128 + number, "")
    assert nothing_left_behind(home) == []
