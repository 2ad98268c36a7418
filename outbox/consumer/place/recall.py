"""Notice within a second or so that somebody moved an offset of ours, and read from there."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError

from outbox.consumer.database import Database
from outbox.consumer.outcome import brief
from outbox.consumer.partition import Partition

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks. A partition in the flow hears of it from its next batch, too."""

# Promise: one statement for all partitions of a member. Served by the primary key.
MOVED = text("""
SELECT topic, partition, moves, moved_why, moved_by FROM consumer_offset WHERE grp = :grp
""")


@dataclass(slots=True)
class Recall:
    """Looks after one member's partitions, stopped ones too. Belongs to its thread."""

    database: Database
    group: str
    _due: float = 0.0

    def run_once(self, partitions: Iterable[Partition]) -> list[Partition]:
        """The partitions that were moved since they were claimed or stopped; each is due for a claim."""
        now = time.monotonic()
        held = {p.key: p for p in partitions if p.stopped or p.claim is not None}
        if not held or now < self._due:
            return []
        self._due = now + EVERY
        moved = []
        try:
            rows = self.database.transact(self._look)
        except SQLAlchemyError as error:
            log.debug("cannot look whether offsets were moved: %s", brief(error))
            return []
        for row in rows:
            partition = held.get((row.topic, row.partition))
            if partition is not None and partition.moves != row.moves:
                partition.call_back(f"moved by {row.moved_by}: {row.moved_why}")
                log.warning("%s[%s]: %s; claiming it again", *partition.key, partition.reason)
                moved.append(partition)
        return moved

    def _look(self) -> Sequence[Row[Any]]:
        with self.database.engine.connect() as connection:
            return connection.execute(MOVED, {"grp": self.group}).all()
