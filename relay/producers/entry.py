"""What stands in the progress topic: how far a shard is, and what is left to be cleared up."""

import json
from dataclasses import dataclass

from outbox.errors import GuardViolation, UndecodableRecord
from outbox.record import Seq
from relay.producers.delivery import Recorded, Target


@dataclass(frozen=True, slots=True)
class Owed:
    """From `offset` on, committed records of the shard may be hidden in this partition: see `hanging`."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One record. `into`: where else its transaction wrote.

    `doubtful`: what stands in the shard's partition from this offset on is to be judged again.
    """

    recorded: Recorded
    into: tuple[Target, ...] = ()
    owed: tuple[Owed, ...] = ()
    doubtful: int | None = None


def encoded(entry: Entry) -> bytes:
    """A progress record as it stands in the topic."""
    recorded = entry.recorded
    document: dict[str, object] = {
        "seq": recorded.seq.encode().decode(),
        "done": recorded.done,
        "next": recorded.next,
    }
    if entry.into:
        into: dict[str, list[int]] = {}
        for topic, partition in entry.into:
            into.setdefault(topic, []).append(partition)
        document["into"] = into
    if entry.owed:
        document["owed"] = [[owed.topic, owed.partition, owed.offset] for owed in entry.owed]
    if entry.doubtful is not None:
        document["doubtful"] = entry.doubtful
    return json.dumps(document, separators=(",", ":")).encode()


def decoded(value: bytes, topic: str) -> Entry:
    """The record in `value`. Raises GuardViolation when it is none of ours."""
    try:
        found = json.loads(value)
        return Entry(
            Recorded(Seq.parse(found["seq"].encode()), found["done"], found["next"]),
            tuple((name, number) for name, numbers in found.get("into", {}).items() for number in numbers),
            tuple(Owed(*place) for place in found.get("owed", ())),
            found.get("doubtful"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, UndecodableRecord) as error:
        raise GuardViolation(f"topic {topic} holds what no relay wrote: {value[:100]!r}") from error
