"""The wire in one place: header names, topic routing and the sequence that makes repeats recognisable."""

import re
from dataclasses import dataclass
from functools import lru_cache

from outbox.errors import UndecodableRecord

ID = "id"
TYPE = "type"
SEQ = "outbox-seq"
TRACEPARENT = "traceparent"
REPLAY = "outbox-replay"
CONTENT_TYPE = "content-type"
CE_ID = "ce_id"
CE_SOURCE = "ce_source"
CE_TYPE = "ce_type"
EVENT_TYPE = "eventType"
"""What the envelopes of CloudEvents and of Debezium's Event Router call them."""

IDS = (ID, CE_ID)
TYPES = (TYPE, EVENT_TYPE, CE_TYPE)
"""Headers that may say it, the first of them that is there."""

RESERVED_HEADERS = frozenset({ID, TYPE, SEQ, TRACEPARENT})

JSON = "application/json"

EVERYBODY = "*"

PROGRESS_TOPICS = "outbox.progress."
"""How the topics begin in which relays keep how far they are: an event there could be taken for that."""


def replay(job: int, groups: str) -> str:
    """The header of a record that is sent again: which job, and for whom (`*`, or groups with commas)."""
    return f"{job};groups={groups}"


@lru_cache(maxsize=64)
def replayed_for(value: bytes, group: str) -> bool:
    """Is a replay with this header meant for consumers of `group`? Only a clear no is one."""
    _, found, groups = value.decode("utf-8", "replace").partition(";groups=")
    return not found or groups == EVERYBODY or group in groups.split(",")


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """How far a stream was sent: later marks compare greater within one source and shard."""

    delta: int
    position: int


@dataclass(frozen=True, slots=True)
class Seq:
    """The place of one record in what a shard sends: `<source>/<generation>/<shard>:<delta>.<position>`.

    `source` names the database's line of numbers, `generation` counts re-shardings; within one shard
    (delta, position) strictly increases along the stream, repeats aside.
    """

    source: str
    generation: int
    shard: int
    delta: int
    position: int

    @property
    def mark(self) -> Mark:
        return Mark(self.delta, self.position)

    def encode(self) -> bytes:
        return f"{self.source}/{self.generation}/{self.shard}:{self.delta}.{self.position}".encode()

    @classmethod
    def parse(cls, value: bytes) -> "Seq":
        """Raises UndecodableRecord when `value` was not written by a relay."""
        stream, _, mark = value.rpartition(b":")
        source, generation, shard = _parse_stream(stream)
        delta, dot, position = mark.partition(b".")
        if not (dot and delta.isdigit() and position.isdigit()):
            raise _malformed(value)
        return cls(source, generation, shard, int(delta), int(position))


_STREAM = re.compile(rb"([^/:]+)/(\d+)/(\d+)")


@lru_cache(maxsize=1024)
def _parse_stream(stream: bytes) -> tuple[str, int, int]:
    match = _STREAM.fullmatch(stream)
    if match is None:
        raise _malformed(stream)
    return match[1].decode(), int(match[2]), int(match[3])


def _malformed(value: bytes) -> UndecodableRecord:
    return UndecodableRecord(
        f"header {SEQ}={value!r} is not <source>/<generation>/<shard>:<delta>.<position>; "
        "only a relay may write this header"
    )


def default_topic(aggregatetype: str) -> str:
    """The topic of an event that names none: Debezium's Event Router uses the same."""
    return f"outbox.event.{aggregatetype}"


def wire_type(name: str, version: int) -> str:
    """`order.placed`, 1 → `order.placed.v1`: what the `type` header and column hold."""
    return f"{name}.v{version}"
