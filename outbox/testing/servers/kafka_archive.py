"""Write the class archive that lets every later broker start in two thirds of the time."""

import os
from collections.abc import Mapping
from pathlib import Path

from outbox.testing.servers import broker_settings, jars, jvm, kafka_storage, workspace
from outbox.testing.servers.kafka_broker import KafkaBroker


def write() -> None:
    """Once per cache and Java: run a broker that notes the classes it loads, and end it in good order."""
    archive = jvm.archive()
    if archive.exists():
        return
    with jars.locked("classes"):
        if not archive.exists():
            _write(archive)


def _write(archive: Path) -> None:
    directory = workspace.create("kafka")
    fresh = archive.with_suffix(f".{os.getpid()}")
    broker = KafkaBroker(1, directory)
    settings: Mapping[str, str] = broker_settings.for_brokers(1, {})
    try:
        broker.configure(
            cluster=kafka_storage.new_id(),
            voters=broker.voter,
            settings=settings,
            flags=(f"-XX:ArchiveClassesAtExit={fresh}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"),
        )
        broker.start()
        broker.stop()
        if fresh.exists():  # without it brokers start more slowly, nothing else
            fresh.rename(archive)
    finally:
        broker.close()
        workspace.remove(directory)
        fresh.unlink(missing_ok=True)
