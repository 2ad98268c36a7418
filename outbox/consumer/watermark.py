"""Drop exactly the repeats: how far one partition has applied what each source sent.

What a shard sends is a stream whose (delta, position) only rises, and each partition holds prefixes of that
stream: after a crash, or from a relay that slept and woke, an old stretch follows again, never a gap. So a
record is a repeat if and only if it is not above the highest place applied from its source and shard, or
belongs to an older generation (a re-sharding drains every older generation first). The relay's epoch takes
no part in this: a later owner's plan must not outrank an earlier record of the same plan.
"""

import json
from typing import Self

from outbox.record import Seq

Place = tuple[int, int]
"""(delta, position)"""


class Marks:
    """The highest place applied per source and shard, of the source's highest generation."""

    __slots__ = ("_here", "_shards", "_sources", "_stream")

    def __init__(self, sources: dict[str, tuple[int, dict[int, Place]]] | None = None) -> None:
        self._sources = sources or {}
        self._stream = b""
        self._shards: dict[int, Place] = {}
        self._here = 0

    def admit_encoded(self, value: bytes) -> bool:
        """`admit` for a header as it stands; raises UndecodableRecord for what no relay wrote.

        Neighbours nearly always come from one stream, so its part of the header is compared as bytes (0.6
        instead of 3 µs a record).
        """
        stream, _, place = value.rpartition(b":")
        delta, _, position = place.partition(b".")
        if stream != self._stream or not (delta.isdigit() and position.isdigit()):
            return self._enter(stream, Seq.parse(value))
        here = (int(delta), int(position))
        if here <= self._shards[self._here]:
            return False
        self._shards[self._here] = here
        return True

    def _enter(self, stream: bytes, seq: Seq) -> bool:
        """The first record of another stream; one of an older generation has none to enter."""
        admitted = self.admit(seq)
        generation, shards = self._sources[seq.source]
        if generation == seq.generation:
            self._stream, self._shards, self._here = stream, shards, seq.shard
        return admitted

    def admit(self, seq: Seq) -> bool:
        """True if `seq` is news, which it is from then on no more; False if it is a repeat."""
        known = self._sources.get(seq.source)
        place = (seq.delta, seq.position)
        if known is None or known[0] < seq.generation:
            self._stream = b""
            self._sources[seq.source] = (seq.generation, {seq.shard: place})
            return True
        generation, shards = known
        if generation > seq.generation:
            return False
        mark = shards.get(seq.shard)
        if mark is not None and place <= mark:
            return False
        shards[seq.shard] = place
        return True

    def copy(self) -> "Marks":
        """An independent copy, so that a batch that fails leaves no trace."""
        return Marks(
            {source: (generation, dict(shards)) for source, (generation, shards) in self._sources.items()}
        )

    def dump(self) -> str:
        """The text of `consumer_offset.sources`."""
        return json.dumps(
            {
                source: {
                    "generation": generation,
                    "shards": {str(shard): mark for shard, mark in shards.items()},
                }
                for source, (generation, shards) in self._sources.items()
            },
            separators=(",", ":"),
        )

    @classmethod
    def load(cls, text: str) -> Self:
        """What `dump` wrote."""
        return cls(
            {
                source: (
                    known["generation"],
                    {int(shard): (delta, position) for shard, (delta, position) in known["shards"].items()},
                )
                for source, known in json.loads(text).items()
            }
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Marks) and self._sources == other._sources

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Marks({self.dump()})"
