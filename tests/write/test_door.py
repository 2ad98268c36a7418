"""The door is small and light."""

import subprocess
import sys

import outbox


def test_the_names_at_the_door() -> None:
    assert outbox.__all__ == sorted(
        [
            "AsyncOutbox", "CatalogError", "ConfigurationError", "EmitError", "Event", "EventNotSerialisable",
            "EventRejected", "NoTransaction", "Outbox", "OutboxError", "Reject", "Retry", "SchemaError",
            "Serializer", "Tombstone", "UndecodableRecord", "cancel", "ddl", "emit", "roles", "tables",
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
