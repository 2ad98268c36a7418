"""Give the producer a delta's rows with their targets, and nothing behind a topic that does not exist."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from itertools import takewhile

from outbox import hooks
from relay import points
from relay.parking.parking import Parking, Withheld
from relay.producers import Chunk, Refused, Target, TopicRefused, address
from relay.progress import Progress
from relay.row import POSITION, TOPIC, Row
from relay.topics import Topics, UnfitTopic

MOST_WITHHELD = 1_000
"""Rows withheld in memory from which they are written down before the delta goes on."""


class Outgoing:
    """The rows of one delta with their targets; ends early at a topic that does not exist, or to stop.

    Rows whose key waits are withheld: whoever moves `low` past one has to store it.
    """

    def __init__(
        self,
        topics: Topics,
        parking: Parking,
        state: Progress,
        pages: Generator[list[Row]],
        stopping: Callable[[], bool],
    ) -> None:
        self._topics = topics
        self._parking = parking
        self._state = state
        self._pages = pages
        self._stopping = stopping
        self._under_way: deque[tuple[int, int]] = deque()
        self._withheld: deque[Withheld] = deque()
        self.complete = False
        self.reached = state.low
        """Every row up to here was given to the producer or withheld."""
        self.stopped_by: UnfitTopic | Refused | None = None
        """Why it ended before the delta did: UnfitTopic, or Refused for a row whose topic never will be."""
        self.stopped_at: Row | None = None

    def chunks(self) -> Generator[Chunk | None]:
        """None: the next one is not at hand. Close it to end the reading too, before the connection."""
        with closing(self._pages) as pages:
            for page in pages:
                if self._stopping() or len(self._withheld) >= MOST_WITHHELD:
                    return
                if not page:
                    yield None
                    continue
                free, waiting = self._parking.withhold(page)
                rows, targets = self._address(free)
                self._reach(page, waiting)
                if rows:
                    hooks.fire(
                        points.SENDING, shard=self._state.shard, rows=len(rows), last=rows[-1][POSITION]
                    )
                    self._under_way.append((rows[-1][POSITION], len(rows)))
                    yield self._chunk(rows, targets)
                if self.stopped_by is not None:
                    return
            self.complete = True

    def _chunk(self, rows: list[Row], targets: list[Target]) -> Chunk:
        state = self._state
        assert state.next is not None
        return Chunk(state.stream, rows, targets, state.done.text, state.next.text)

    def arrived(self, low: int) -> int:
        """How many rows belong to the chunks that are now acknowledged as a whole."""
        rows = 0
        while self._under_way and self._under_way[0][0] <= low:
            rows += self._under_way.popleft()[1]
        return rows

    def withheld(self, low: int) -> list[Withheld]:
        """Hand over the withheld rows up to position `low`."""
        found = []
        while self._withheld and self._withheld[0].position <= low:
            found.append(self._withheld.popleft())
        return found

    def _reach(self, page: list[Row], waiting: list[Withheld]) -> None:
        stop = self.stopped_at
        if stop is None:
            self._withheld += waiting
            self.reached = page[-1][POSITION]
        else:
            self._withheld += [row for row in waiting if row.position < stop[POSITION]]
            self.reached = max(self.reached, stop[POSITION] - 1)

    def _address(self, page: list[Row]) -> tuple[list[Row], list[Target]]:
        """The rows in front of the first that has nowhere to go, and where each goes."""
        resolve = partial(self._topics.resolve, self._state)
        try:
            return page, list(address(page, resolve))
        except (UnfitTopic, TopicRefused) as stop:
            rows = [*takewhile(partial(_goes_elsewhere, stop.topic.encode()), page)]
            self.stopped_at = page[len(rows)]
            if isinstance(stop, TopicRefused):
                self.stopped_by = Refused(self.stopped_at, stop.reason, of_topic=stop.mendable)
            else:
                self.stopped_by = stop
            return rows, list(address(rows, resolve))


def page(rows: list[Row]) -> Generator[list[Row]]:
    """A delta that is in memory, as the reader would give it."""
    yield rows


def _goes_elsewhere(topic: bytes, row: Row) -> bool:
    return row[TOPIC] != topic
