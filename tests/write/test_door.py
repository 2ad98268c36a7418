"""The door is small and light."""

import subprocess
import sys
from pathlib import Path

import outbox


def test_the_names_at_the_door() -> None:
    assert outbox.__all__ == sorted(
        [
            "AsyncOutbox", "CatalogError", "ConfigurationError", "EmitError", "Event", "EventNotSerialisable",
            "EventRejected", "NoTransaction", "Outbox", "OutboxError", "Reject", "Retry", "SchemaError",
            "Serializer", "UndecodableRecord", "ddl", "emit", "roles", "tables",
        ]
    )  # fmt: skip
    assert all(hasattr(outbox, name) for name in outbox.__all__)


def test_a_service_that_only_writes_loads_no_kafka_client() -> None:
    heavy = {"confluent_kafka", "pytest", "outbox.consumer", "sqlalchemy.ext.asyncio"}
    script = (
        "import sys; from outbox import Event, Outbox, emit; "
        f"sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_emit_is_the_function_whatever_was_imported_before() -> None:
    script = "import outbox.emission, outbox.transaction; from outbox import emit; assert callable(emit)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_daemon_loads_no_sqlalchemy() -> None:
    """It would be a third of its memory."""
    script = "import sys, relay.cli.run, relay.daemon, relay.config; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_door_opens_without_greenlet() -> None:
    """SQLAlchemy 2.1 leaves it away unless its asyncio extra is asked for."""
    script = "import sys; sys.modules['greenlet'] = None; import outbox; outbox.Outbox; outbox.emit"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_the_services_signature(tmp_path: Path) -> None:
    """place_order(customer, total) and, joining, place_order(customer, total, session=session)."""
    program = """
from decimal import Decimal
from uuid import UUID, uuid4
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from outbox import AsyncOutbox, Outbox

outbox = Outbox(sessionmaker())
@outbox.transaction
def place(session: Session, customer: UUID, total: Decimal) -> UUID:
    return customer
@outbox.transaction(isolation="serializable", attempts=5)
def strict(session: Session, total: Decimal = Decimal(0)) -> int:
    return 1
asynchronous = AsyncOutbox(async_sessionmaker())
@asynchronous.transaction
async def wait(session: AsyncSession, total: Decimal) -> UUID:
    return uuid4()
def use(session: Session, async_session: AsyncSession) -> None:
    reveal_type(place(uuid4(), Decimal(1)))
    reveal_type(place(uuid4(), Decimal(1), session=session))
    reveal_type(strict(total=Decimal(1)))
    place("wrong", Decimal(1))
    place(uuid4())
async def use_async(session: AsyncSession) -> None:
    reveal_type(await wait(Decimal(1)))
    reveal_type(await wait(Decimal(1), session=session))
"""
    from mypy import api

    file = tmp_path / "program.py"
    file.write_text(program)
    out, err, _ = api.run(["--config-file", "pyproject.toml", "--no-error-summary", str(file)])
    revealed = [line.rpartition('"')[0].rpartition('"')[2] for line in out.splitlines() if "Revealed" in line]
    assert [name.removeprefix("builtins.") for name in revealed] == [
        "uuid.UUID", "uuid.UUID", "int", "uuid.UUID", "uuid.UUID",
    ], out + err  # fmt: skip
    wrong = {line.split(":")[1] for line in out.splitlines() if "error:" in line}
    assert wrong == {"23", "24"}, out
