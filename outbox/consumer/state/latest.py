"""Keep the newest value of each key, whatever was sent twice, late or again, and whatever compaction removed.

A partition's marks alone cannot tell what to drop here. Compaction keeps the last copy of a key's records, so
after a relay's crash the first copies of an old stretch may be gone while later records of other keys are
still there: by the marks of the partition the surviving copies are repeats, and their keys would be lost. So
a record is measured against what its own key holds, and the partition's marks decide only between sources.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from outbox.consumer.watermark import Marks
from outbox.record import Seq

V = TypeVar("V")

REMEMBERED = 24 * 3600.0
"""Seconds for which a deleted key's place is kept, so that no late repeat brings it back. As long as Kafka
keeps a tombstone after compacting (delete.retention.ms)."""

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Held:
    """What decided about a key last. replayed: sent again on request, so only better than nothing."""

    seq: Seq | None
    replayed: bool


class Latest(Generic[V]):
    """Values by key, and what they were decided by. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.values: dict[str, V] = {}
        self._held: dict[str, _Held] = {}
        self._graves: dict[str, float] = {}
        self._marks: dict[Place, Marks] = {}
        self._clock = clock

    def admit(self, place: Place, key: str, seq: Seq | None, *, replayed: bool = False) -> bool:
        """Is a record of `key` newer than what the key holds? Then `put` its value."""
        repeat = seq is not None and not self._marks.setdefault(place, Marks()).admit(seq)
        held = self._held.get(key)
        if held is None:
            return True
        if replayed and not held.replayed:
            return False
        if seq is None:
            return True
        if held.seq is None or held.seq.source != seq.source:
            return not repeat
        return _order(seq) > _order(held.seq)

    def put(self, key: str, value: V | None, seq: Seq | None, *, replayed: bool = False) -> None:
        """What `key` is from now on; None deletes it."""
        self._held[key] = _Held(seq, replayed)
        self._graves.pop(key, None)
        if value is None:
            self.values.pop(key, None)
            self._graves[key] = self._clock()
        else:
            self.values[key] = value

    def forget(self) -> int:
        """Drop what is remembered of keys that were deleted long ago; how many."""
        until = self._clock() - REMEMBERED
        over = []
        for key, since in self._graves.items():
            if since > until:
                break
            over.append(key)
        for key in over:
            del self._graves[key], self._held[key]
        return len(over)


def _order(seq: Seq) -> tuple[int, int, int]:
    """Within a source and a generation a key belongs to one shard, so its number need not be looked at."""
    return seq.generation, seq.delta, seq.position
