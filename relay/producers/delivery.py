"""What every mode promises: rows reach their partitions in order, and `low` never runs ahead of them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import murmur2

from outbox.record import PROGRESS_TOPICS, Seq
from relay.parking.landing import Landings
from relay.row import KEY, POSITION, TOPIC, Row, describe

Target = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one delta with where each goes.

    `stream` is the constant part of `outbox-seq`; `done` and `next` are the snapshots of the delta.
    """

    stream: bytes
    rows: list[Row]
    targets: list[Target]
    done: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """What a shard is called in Kafka: the same for all its relays, and for no other database."""

    system_identifier: int
    database_oid: int
    shard: int

    @property
    def transactional_id(self) -> str:
        return f"outbox-relay.{self.system_identifier}.{self.database_oid}.{self.shard}"

    @property
    def progress_topic(self) -> str:
        return f"{PROGRESS_TOPICS}{self.system_identifier}.{self.database_oid}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """How far a shard is committed in Kafka: all up to `seq` of the delta that leads from `done` to `next`.

    `next` None: everything that `done` sees, and nothing is planned.
    """

    seq: Seq
    done: str
    next: str | None


def address(rows: Iterable[Row], resolve: Callable[[bytes], tuple[str, int]]) -> Iterator[Target]:
    """Where each row goes: the partition that the Java client would choose for its key (murmur2).

    A row without a key goes by its position, so that a repeat lands where the first copy did.
    `resolve` gives a topic's name and partition count.
    """
    known: dict[bytes, list[Target]] = {}
    last, places = None, []
    for row in rows:
        if row[TOPIC] != last:
            last = row[TOPIC]
            if last not in known:
                name, partitions = resolve(last)
                known[last] = [(name, number) for number in range(partitions)]
            places = known[last]
        key = row[KEY]
        yield places[murmur2(key, len(places)) if key is not None else row[POSITION] % len(places)]


class Interrupted(Exception):
    """The session ended before everything was acknowledged; what was not is to be delivered again."""

    at_once = False
    """Nothing is away: a row among several was refused, and delivering them again finds out which."""


class Abandoned(Interrupted):
    """We stopped on purpose: the lease was lost or the time to stop is over."""


class Unsettled(Interrupted):
    """What was on its way may be in or not: only a new claim, which asks the broker, can go on.

    `expected`: nothing is wrong with the broker; the row that it refuses is being looked for.
    """

    def __init__(self, said: str, *, expected: bool = False) -> None:
        super().__init__(said)
        self.expected = expected


class Refused(Exception):
    """The broker will never take this row as it is.

    `of_topic`: nor any other of its topic, until somebody mends the topic or our rights on it.
    """

    def __init__(self, row: Row, reason: str, *, of_topic: bool = False) -> None:
        super().__init__(f"{describe(row)} was refused for good: {reason}")
        self.row = row
        self.reason = reason
        self.of_topic = of_topic


class TopicRefused(Exception):
    """The broker takes no record for this topic as things stand: its name, or (`mendable`) our rights."""

    def __init__(self, topic: str, reason: str, *, mendable: bool = False) -> None:
        super().__init__(f"topic {topic!r} is refused: {reason}")
        self.topic = topic
        self.reason = reason
        self.mendable = mendable


class Producer(Protocol):
    """Delivers one delta at a time."""

    def take_over(
        self,
        alive: Callable[[], bool],
        *,
        known: Recorded | None = None,
        wrote: Collection[Target] = (),
    ) -> Recorded | None:
        """After each claim, before anything is delivered: fence whoever delivered for this shard before.

        `known`: what the claimed row says; at least so much is committed. `wrote`: wherever the shard may
        have written, as far as it is known.

        Returns what is committed last; None in mode `sequenced`, which knows only what the row says. Raises
        Interrupted, or Abandoned as soon as `alive()` says no.
        """

    def deliver(self, chunks: Iterable[Chunk | None], alive: Callable[[], bool]) -> Iterator[int]:
        """Send `chunks` in order; yield each position up to which every row is acknowledged.

        None among them: the next one is not at hand, and nothing should be held up for it.

        Raises Refused for a row that can never be delivered, but only once every row before it is
        acknowledged and yielded; Interrupted after any other failure. All rows above the last yielded
        position must then be delivered again. Unsettled: after `take_over` only. Asks `alive()` while it
        waits and raises Abandoned as soon as it says no.
        """

    def tend(self, alive: Callable[[], bool]) -> None:
        """While nothing is sent: see that readers see what was. Raises Unsettled where they do not."""

    def leave(self, alive: Callable[[], bool]) -> None:
        """Before others send in this shard's place, or under another name or mode: readers see all of it.

        Raises Unsettled where they do not, and Interrupted while nobody can tell.
        """

    def partitions(self, topic: str) -> int | None:
        """How many partitions `topic` has now; None when the broker does not know it.

        Raises TopicRefused, or Interrupted while nobody can tell.
        """

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        """Which of `topics` keep only the last record of a key, as far as we may know.

        Raises Interrupted while nobody can tell.
        """

    def landings(self) -> Landings:
        """A reader that tells what became of rows sent earlier. Close it."""

    def cluster_id(self) -> str | None:
        """Identity of the Kafka cluster. Raises Interrupted while no broker can be reached."""

    def trouble(self) -> str | None:
        """The client's last complaint (brokers down, wrong password, certificate), for health and logs."""

    def close(self) -> None:
        """Give up whatever is not acknowledged and let go of the broker, within seconds."""


class RecordingProducer(Producer, Protocol):
    """A producer that keeps, in Kafka itself, the record of how far its shard is."""

    def fence(self, alive: Callable[[], bool]) -> None:
        """End whatever former producers of this shard have begun; none of them can commit any more."""

    def begin(self, recorded: Recorded, alive: Callable[[], bool]) -> None:
        """After `fence`: commit `recorded` alone. Makes the place for such records if there is none."""


class Producers(Protocol):
    """Makes the producer of each mode."""

    def sequenced(self) -> Producer: ...

    def transactional(self, names: Names) -> RecordingProducer: ...
