"""Rows for a producer without a database behind it."""

import time
from collections.abc import Callable, Iterator, Sequence

from relay.producers import Chunk, Interrupted, Producer, Refused, Unsettled
from relay.row import POSITION, Row

NOW = int(time.time() * 1000)


def row(
    position: int, topic: str, *, size: int = 50, headers: bytes | None = None, partition: int | None = None
) -> Row:
    key = b"%d" % (position if partition is None else partition)
    return (position, NOW, topic.encode(), key, b"x" * size, b"id-%d" % position, b"t.v1", headers, None)


def chunks(rows: Sequence[Row], size: int, partitions: int = 2) -> Iterator[Chunk]:
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        yield Chunk(b"s/1/0:1.", part, [(r[2].decode(), r[POSITION] % partitions) for r in part])


class Delivery:
    """What a shard does with a producer: again and again from the first row that is not acknowledged."""

    def __init__(
        self,
        producer: Producer,
        rows: Sequence[Row],
        size: int = 20,
        *,
        pass_through: Callable[[Iterator[Chunk]], Iterator[Chunk | None]] = iter,
    ) -> None:
        self.pass_through = pass_through
        self.producer = producer
        self.rows = rows
        self.size = size
        self.low = 0
        self.settled = False

    def attempt(self) -> Refused | Interrupted | None:
        """One delivery; what ended it. Where that leaves open what is in, the broker is asked first."""
        if not self.settled:
            recorded = self.producer.take_over(lambda: True)
            if recorded is not None:
                assert recorded.seq.position >= self.low, "what was yielded is committed"
                self.low = recorded.seq.position
            self.settled = True
        left = [r for r in self.rows if r[POSITION] > self.low]
        try:
            given = self.pass_through(chunks(left, self.size))
            for low in self.producer.deliver(given, lambda: True):
                assert low > self.low
                self.low = low
        except (Refused, Interrupted) as ended:
            self.settled = not isinstance(ended, Unsettled)
            return ended
        return None

    def until_refused(self) -> Refused:
        for _ in range(10):
            ended = self.attempt()
            if isinstance(ended, Refused):
                return ended
        raise AssertionError(f"no row was blamed; the last delivery ended by {ended!r}")
