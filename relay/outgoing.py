"""Give the producer a delta's rows with their targets, and nothing behind a topic that does not exist."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from itertools import takewhile

from outbox import hooks
from relay import points
from relay.producers import Chunk, Refused, Target, TopicRefused, address
from relay.progress import Progress
from relay.row import POSITION, TOPIC, Row
from relay.topics import Topics, UnfitTopic


class Outgoing:
    """The rows of one delta with their targets; ends early at a topic that does not exist, or to stop."""

    def __init__(
        self, topics: Topics, state: Progress, pages: Generator[list[Row]], stopping: Callable[[], bool]
    ) -> None:
        self._topics = topics
        self._state = state
        self._pages = pages
        self._stopping = stopping
        self._under_way: deque[tuple[int, int]] = deque()
        self.complete = False
        self.stopped_by: Exception | None = None
        """Why it ended before the delta did: UnfitTopic, or Refused for a row whose topic never will be."""

    def chunks(self) -> Generator[Chunk]:
        """Close it to end the reading too, before the connection is closed."""
        with closing(self._pages) as pages:
            for page in pages:
                if self._stopping():
                    return
                rows, targets = self._address(page)
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

    def _address(self, page: list[Row]) -> tuple[list[Row], list[Target]]:
        """The rows in front of the first that has nowhere to go, and where each goes."""
        resolve = partial(self._topics.resolve, self._state)
        try:
            return page, list(address(page, resolve))
        except (UnfitTopic, TopicRefused) as stop:
            rows = [*takewhile(partial(_goes_elsewhere, stop.topic.encode()), page)]
            if isinstance(stop, TopicRefused):
                self.stopped_by = Refused(page[len(rows)], stop.reason)
            else:
                self.stopped_by = stop
            return rows, list(address(rows, resolve))


def page(rows: list[Row]) -> Generator[list[Row]]:
    """A delta that is in memory, as the reader would give it."""
    yield rows


def _goes_elsewhere(topic: bytes, row: Row) -> bool:
    return row[TOPIC] != topic
