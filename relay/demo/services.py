"""Which processes the demo runs, and where their code comes from: the checkout, or the copy in the wheel."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from relay.demo.failure import DemoImpossible

LEASE_SECONDS = 2
"""Short, so that a succession is seen within the demo; the default is 5."""

MARKER = Path("examples", "order_service", "__init__.py")


class Role(StrEnum):
    """What a process does; its value is how a person calls it."""

    ORDER = "the order service"
    ORDER_RELAY = "the relays of the order database"
    INVOICE = "the invoice consumers"
    INVOICE_RELAY = "the relays of the invoice database"
    SHIPPING = "the shipping consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process: its command, and its environment beside ours."""

    name: str
    role: Role
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is. `prefix` stands before the names of topics and groups."""

    databases: Mapping[str, str]
    bootstrap: str
    prefix: str
    session_ms: int
    fetch_wait_ms: int
    port: int

    @property
    def topics(self) -> list[str]:
        return [self.prefix + "orders", self.prefix + "invoices"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def every_service(at: Addresses) -> list[Service]:
    """The order service, two relays for each database that emits, three invoice consumers, shipping."""
    kafka = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(home()), os.environ.get("PYTHONPATH")])),
        "KAFKA_BOOTSTRAP_SERVERS": at.bootstrap,
        "KAFKA_PREFIX": at.prefix,
        "KAFKA_SESSION_TIMEOUT_MS": str(at.session_ms),
        "KAFKA_HEARTBEAT_INTERVAL_MS": str(at.session_ms // 6),
        "KAFKA_FETCH_WAIT_MAX_MS": str(at.fetch_wait_ms),
    }
    return [
        _service("order", Role.ORDER, at, kafka, "--migrate", "--port", str(at.port)),
        *(_relay(f"relay-orders-{n}", Role.ORDER_RELAY, at.databases["order"], at) for n in (1, 2)),
        *(_service(f"invoice-{n}", Role.INVOICE, at, kafka, "--migrate") for n in (1, 2, 3)),
        *(_relay(f"relay-invoices-{n}", Role.INVOICE_RELAY, at.databases["invoice"], at) for n in (1, 2)),
        _service("shipping", Role.SHIPPING, at, kafka, "--migrate"),
    ]


def _service(name: str, role: Role, at: Addresses, kafka: Mapping[str, str], *arguments: str) -> Service:
    package = name.partition("-")[0]
    variable = f"{package.upper()}_DATABASE_URL"
    return Service(
        name=name,
        role=role,
        command=[sys.executable, "-m", f"examples.order_service.{package}", *arguments],
        environment={**kafka, variable: at.databases[package]},
    )


def _relay(name: str, role: Role, database: str, at: Addresses) -> Service:
    return Service(
        name=name,
        role=role,
        command=[sys.executable, "-m", "relay", "run"],
        environment={
            "OUTBOX_DATABASE_URL": database,
            "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": at.bootstrap,
            "OUTBOX_LEASE": f"PT{LEASE_SECONDS}S",
            # The demo's topics are its own and not compacted; the mock cannot be asked.
            "OUTBOX_COMPACTED_TOPICS": "allow",
        },
    )


def home() -> Path:
    """The directory that holds `examples`. Raises DemoImpossible when this installation has none."""
    checkout = Path(__file__).parents[2]
    if (checkout / MARKER).exists():
        return checkout
    try:
        files = importlib.metadata.files("outbox-relay") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-len(MARKER.parts) :] == MARKER.parts:
            return Path(str(file.locate())).resolve().parents[2]
    raise DemoImpossible(
        "the example services are not part of this installation; run `make demo` in a checkout"
    )


def check_packages() -> None:
    """Raises DemoImpossible when what the order service needs is not installed."""
    lacking = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        raise DemoImpossible(
            f"the demo needs {' and '.join(lacking)}; install it with: pip install 'outbox-relay[demo]'"
        )
