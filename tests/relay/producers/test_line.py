"""However long a transaction is, the client holds three chunks of it at most."""

from collections import deque
from typing import Any

from relay.producers.line import AHEAD, Line
from tests.relay.kafka.chunks import chunks, row


class Slow:
    """A client whose broker takes seven records each time somebody waits for it."""

    def __init__(self) -> None:
        self.held = self.most = self.sent = 0

    def __len__(self) -> int:
        return self.held

    def begin_transaction(self) -> None: ...

    def produce(self, *_: Any) -> None:
        self.sent += 1
        self.held += 1
        self.most = max(self.most, self.held)

    def poll(self, wait: float) -> None:
        if wait:
            self.held = max(0, self.held - 7)


def test_no_more_than_three_chunks_are_on_their_way() -> None:
    line = Line({"bootstrap.servers": "localhost:1"}, deque())
    slow = line.client = Slow()  # type: ignore[assignment]
    line.begin(lambda: True)
    for chunk in chunks([row(n, "t") for n in range(1, 501)], 20):
        line.send(chunk, lambda: True)
    assert slow.sent == 500
    assert slow.most == 20 * (AHEAD + 1)
