"""The README's commands, run as they stand there, on real PostgreSQL and Kafka."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from string import Template
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from tenacity import retry, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from outbox.testing.servers import KafkaServer, PostgresServer
from outbox.testing.servers.ports import Port

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/order_service/README.md").read_text()
SERVICES = re.findall(r"^python -m examples\..*$", README, re.MULTILINE)
RELAYS = re.findall(r"^OUTBOX_DATABASE_URL=.*$", README, re.MULTILINE)

ANN = "8f3c2f9e-4f5b-4d27-9a5e-5c2a4ddc1a10"


class Programs:
    """Started from the lines of a shell; all must end well when asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        bin_ = Path(sys.executable).parent
        self._environment = {**os.environ, **environment, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, line: str) -> None:
        words = shlex.split(Template(line).substitute(self._environment))
        own = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        command = words[len(own) :]
        self._running.append(subprocess.Popen(command, cwd=ROOT, env={**self._environment, **own}))

    def kill(self) -> None:
        for program in self._running:
            program.kill()
            program.wait()
        self._running.clear()

    def stop(self) -> list[int]:
        for program in self._running:
            program.send_signal(signal.SIGTERM)
        return [program.wait(timeout=30) for program in self._running]


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """Three empty databases, by the variable that names each."""
    names = {service: f"{service}_{uuid4().hex[:8]}" for service in ("order", "invoice", "shipping")}
    yield {f"{service.upper()}_DATABASE_URL": postgres.database(name) for service, name in names.items()}
    for name in names.values():
        postgres.drop(name)


@pytest.fixture
def programs(databases: dict[str, str], kafka: KafkaServer) -> Iterator[Programs]:
    made = [kafka.create_topic(topic, 3) for topic in ("orders", "invoices")]
    programs = Programs(
        {**databases, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap, "KAFKA_SESSION_TIMEOUT_MS": "6000"}
    )
    yield programs
    programs.kill()
    for topic in made:
        kafka.delete_topic(topic)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A client of the order service, whose port is free until that is started."""
    port = Port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port.number}") as client:
        yield client
    port.release()


within_a_minute = retry(
    stop=stop_after_delay(60),
    wait=wait_fixed(0.1),
    retry=retry_if_exception_type(httpx.TransportError) | retry_if_result(lambda done: not done),
)


@within_a_minute
def healthy(http: httpx.Client) -> bool:
    return http.get("/health").status_code == 200


@within_a_minute
def migrated(url: str) -> bool:
    return rows(url, "SELECT count(*) FROM outbox_lease") == [(1,)]


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """What the query finds; nothing before the tables are there."""
    with psycopg.connect(url) as connection:
        try:
            return connection.execute(query.encode()).fetchall()
        except psycopg.errors.UndefinedTable:
            return []


@within_a_minute
def arrived(url: str, table: str, order_id: str, what: str) -> bool:
    """Returns when the table's rows of the order read like that, in order: "issue amend void"."""
    column = {"invoice_journal": "booking", "shipment_log": "action"}[table]
    found = rows(url, f"SELECT {column} FROM {table} WHERE order_id = '{order_id}' ORDER BY id")
    return [value for (value,) in found] == what.split()


def test_orders_are_invoiced_and_shipped_once_though_every_program_is_killed(
    programs: Programs, databases: dict[str, str], http: httpx.Client
) -> None:
    invoices, shipments = databases["INVOICE_DATABASE_URL"], databases["SHIPPING_DATABASE_URL"]
    assert (len(SERVICES), len(RELAYS)) == (3, 2)

    def start() -> None:
        for line in SERVICES:
            programs.start(line.replace("--port 8000", f"--port {http.base_url.port}"))
        healthy(http)
        migrated(invoices)
        for line in RELAYS:
            programs.start(line)

    def place() -> str:
        answer = http.post("/orders", json={"customer_id": ANN, "total": "9.90"})
        order_id: str = answer.json()["order_id"]
        return order_id

    start()
    kept, cancelled = place(), place()
    arrived(shipments, "shipment_log", cancelled, "ship")

    http.post(f"/orders/{cancelled}/cancel")
    arrived(invoices, "invoice_journal", cancelled, "issue void")
    arrived(shipments, "shipment_log", cancelled, "ship recall")

    http.patch(f"/orders/{kept}", json={"total": "12.50"})
    programs.kill()
    start()
    late = place()
    arrived(shipments, "shipment_log", late, "ship")
    arrived(shipments, "shipment_log", kept, "ship")
    arrived(invoices, "invoice_journal", kept, "issue amend")
    assert rows(invoices, "SELECT sum(balance), (SELECT sum(amount) FROM invoice_journal) FROM invoice") == [
        (Decimal("22.40"), Decimal("22.40"))
    ]
    assert programs.stop() == [0] * 5
