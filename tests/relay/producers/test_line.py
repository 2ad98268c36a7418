"""One transaction of several chunks: what the client holds of it, and who is to blame when it fails."""

from collections import deque
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from relay.producers.line import AHEAD, Line, LineEnded
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


class Failing(Slow):
    """A client that takes nothing more once the broker has refused a record; the report comes later."""

    def __init__(self, failures: "deque[KafkaError]") -> None:
        super().__init__()
        self.failures = failures

    def produce(self, *record: Any) -> None:
        if self.sent == 30:
            raise KafkaException(KafkaError(KafkaError._STATE, "in an abortable error state"))
        super().produce(*record)

    def poll(self, wait: float) -> None:
        super().poll(wait)
        if self.sent == 30 and wait:
            self.failures.append(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))


@pytest.mark.parametrize("where", ["in a chunk", "behind it"])
def test_a_record_that_is_refused_is_the_cause_also_where_the_next_one_is_not_taken(where: str) -> None:
    line = Line({"bootstrap.servers": "localhost:1"}, deque())
    line.client = Failing(line._failures)  # type: ignore[assignment]
    line.begin(lambda: True)
    given = chunks([row(n, "t") for n in range(1, 41 if where == "in a chunk" else 31)], 20)
    with pytest.raises(LineEnded) as ended:
        for chunk in given:
            line.send(chunk, lambda: True)
        line.note("progress", 0, b"{}", lambda: True)
    assert ended.value.cause.code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert ended.value.index is None, "which of them it is has to be found out"
