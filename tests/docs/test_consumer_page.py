"""What the consumer's page shows runs as it stands there."""

import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Outbox, catalog
from outbox.consumer import AsyncConsumer, Consumer, Out, Pipe, Record, State
from outbox.testing.servers import KafkaServer

PAGE = Path(__file__).parents[2] / "docs" / "consumer.md"

TEXT = PAGE.read_text()

BLOCKS = [
    (re.findall(r"^#+ (.+)$", TEXT[: block.start()], re.MULTILINE)[-1], block.group(1))
    for block in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL)
]


class Brief(Consumer):
    """Runs until it is well."""

    def run(self, *args: Any, **kwargs: Any) -> None:
        over = threading.Event()

        def end() -> None:
            while not (self.health().ok or over.wait(0.05)):
                pass
            self.stop()

        watcher = threading.Thread(target=end)
        watcher.start()
        try:
            super().run(*args, **kwargs)
        finally:
            over.set()
            watcher.join()


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[title for title, _ in BLOCKS])
def test_each_block_runs(
    engine: Engine, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(catalog, "_classes", {})  # the example services claim the same event names
    for name in ("orders", "orders.eu", "customers"):
        kafka.create_topic(name, partitions=2)
    shown: dict[str, Any] = {
        "AsyncConsumer": AsyncConsumer,
        "AsyncSession": AsyncSession,
        "async_sessions": async_sessionmaker(create_async_engine(engine.url)),
        "Any": Any,
        "Consumer": Brief,
        "Event": Event,
        "Out": Out,
        "Outbox": Outbox,
        "Pipe": Pipe,
        "Record": Record,
        "Session": Session,
        "State": State,
        "kafka_address": kafka.bootstrap,
        "sessions": sessionmaker(engine),
        "timedelta": timedelta,
    }
    exec(compile(BLOCKS[number][1], str(PAGE), "exec"), shown)
