"""See where a transaction of the shard stands open, and where another producer's hides whether one does.

Behind an open transaction of another producer nobody can tell which of the shard's own records are decided:
the shard waits, and its alarm names the partition. Nothing is judged there before a reader gets to its end.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Message

from outbox.errors import GuardViolation, UndecodableRecord
from outbox.record import SEQ, Mark, Seq
from relay.producers.delivery import Abandoned, Interrupted, Target
from relay.producers.entry import decoded
from relay.producers.ranges import READ_COMMITTED, READ_UNCOMMITTED, Ranges, Unreadable

log = logging.getLogger("relay.producer")

PATIENCE = 2.0
"""Seconds in which markers that are on their way arrive, and other producers' transactions end."""

LOOK_EVERY = 0.05
"""Seconds between two looks whether they have."""

PIECE = 10_000
"""Offsets behind another producer's open transaction that are read at a time."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a read_committed reader stands before records of the shard, with the offset at which it does.

    `hung`: at one of the shard's own. `undecided`: at another producer's, and behind it lie some of the
    shard's, open or not.
    """

    hung: Mapping[Target, int]
    undecided: Mapping[Target, int]

    def refuse(self) -> None:
        """Raises Interrupted, naming where somebody else has to end a transaction first."""
        refuse(self.undecided)


class Openings:
    """For one shard. `place`: its partition of the progress topic."""

    def __init__(self, ranges: Ranges, *, place: Target) -> None:
        self._ranges = ranges
        self._place = place
        self._shard = place[1]
        self.sources: set[str] = set()
        """Under which names the shard writes: other databases have shards of the same number."""

    def find(self, targets: Collection[Target], alive: Callable[[], bool]) -> Found:
        """Those in which a transaction of this shard stands open, and those that do not tell.

        None of the shard's transactions may be filling them meanwhile.
        """
        ends, opened = self._opened(targets, alive)
        hung, undecided = {}, {}
        for target, offset in opened.items():
            if self._ours(target, offset, alive) is not None:
                hung[target] = offset
            elif self._hides(target, offset, ends[target], None, alive):
                undecided[target] = offset
        return Found(hung, undecided)

    def _opened(
        self, targets: Collection[Target], alive: Callable[[], bool]
    ) -> tuple[dict[Target, int], dict[Target, int]]:
        """Their ends, and where a transaction that began before stays open for `PATIENCE`."""
        ends = self._ranges.ends(targets, READ_UNCOMMITTED) if targets else {}
        opened, until = ends, time.monotonic() + PATIENCE
        while True:
            stable = self._ranges.ends(opened, READ_COMMITTED) if opened else {}
            opened = {target: offset for target, offset in stable.items() if offset < ends[target]}
            if not opened or time.monotonic() > until:
                return ends, opened
            go_on(alive)
            time.sleep(LOOK_EVERY)

    def settled(self, targets: Collection[Target], alive: Callable[[], bool]) -> dict[Target, int]:
        """Their ends, once a read_committed reader gets there: what it does not see then is not committed.

        Raises Interrupted, naming the partition, while a transaction stays open before one of them.
        """
        ends, opened = self._opened(targets, alive)
        refuse(opened)
        return ends

    def stand(self, targets: Collection[Target], last: Mark, alive: Callable[[], bool]) -> Found:
        """Those in which a transaction up to `last` stands open although its end was confirmed.

        A later one of the shard may be open there, too.
        """
        ends = self._ranges.ends(targets, READ_UNCOMMITTED) if targets else {}
        places, until = {*ends}, time.monotonic() + PATIENCE
        while True:
            stable = self._ranges.ends(places, READ_COMMITTED) if places else {}
            hung, undecided = {}, {}
            for target, offset in stable.items():
                if offset >= ends[target]:
                    continue
                seq = self._ours(target, offset, alive)
                if seq is not None and seq.mark <= last:
                    hung[target] = offset
                elif seq is None and self._hides(target, offset, ends[target], last, alive):
                    undecided[target] = offset
            places = {*hung, *undecided}
            if not places or time.monotonic() > until:
                return Found(hung, undecided)
            go_on(alive)
            time.sleep(LOOK_EVERY)

    def _ours(self, target: Target, offset: int, alive: Callable[[], bool]) -> Seq | None:
        """The place of the record at `offset` in what this shard sends, if it is one of the shard's."""
        try:
            return next(self.marked(target, offset, offset + 1, alive), None)
        except Unreadable as unreadable:
            log.warning("whose transaction stands open at offset %d is not known: %s", offset, unreadable)
            return None

    def _hides(
        self, target: Target, start: int, end: int, last: Mark | None, alive: Callable[[], bool]
    ) -> bool:
        """Is any record there, decided or not, one of the shard's (up to `last`)?"""
        try:
            return any(last is None or seq.mark <= last for seq in self.marked(target, start, end, alive))
        except Unreadable:
            return False

    def marked(self, target: Target, start: int, end: int, alive: Callable[[], bool]) -> Iterator[Seq]:
        """The places of the shard's own among the records from `start` to before `end`, decided or not."""
        for at in range(start, end, PIECE):
            for message in self._ranges.read(target, at, min(end, at + PIECE), committed=False, alive=alive):
                seq = self._noted(message) if target == self._place else self.seq(message)
                if seq is not None:
                    yield seq

    def _noted(self, message: Message) -> Seq | None:
        """What a progress record says; None for what no relay wrote."""
        try:
            return decoded(message.value() or b"", self._place[0]).recorded.seq
        except GuardViolation:
            return None

    def seq(self, message: Message) -> Seq | None:
        """Its place in what this shard sends; None for somebody else's."""
        headers: Any = message.headers()
        for name, value in headers or ():
            if name == SEQ and value is not None:
                try:
                    seq = Seq.parse(value)
                except UndecodableRecord:
                    return None
                return seq if seq.shard == self._shard and seq.source in self.sources else None
        return None


def standing(topic: str, partition: int, offset: int) -> str:
    """The alarm while a transaction that is not ours to end holds everything up."""
    return (
        f"a transaction stands open at offset {offset} of topic {topic}, partition {partition}; "
        "nothing is sent until it is ended; if it never is and no relay began it, run: "
        f"kafka-transactions.sh abort --topic {topic} --partition {partition} --start-offset {offset}"
    )


def refuse(opened: Mapping[Target, int]) -> None:
    """Raises Interrupted where a transaction stands open."""
    for (topic, partition), offset in opened.items():
        raise Interrupted(standing(topic, partition, offset))


def go_on(alive: Callable[[], bool]) -> None:
    """Raises Abandoned when told to stop."""
    if not alive():
        raise Abandoned("told to stop while open transactions were looked for")
