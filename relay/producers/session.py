"""One idempotent, gapless producer from its first record to its first error."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.envelope import headers
from relay.producers.delivery import Abandoned, Chunk, Interrupted
from relay.row import KEY, MS, PAYLOAD, POSITION

ALIVE_EVERY = 0.1
"""Seconds between two questions whether to go on, while waiting for the broker."""

CONSEQUENCES = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError._FATAL,
        KafkaError._STATE,
    }
)
"""Codes that follow from an earlier failure and do not name its cause."""


class SessionEnded(Interrupted):
    """The first error ended the session. `cause` is None when the failing record had no report of its own."""

    def __init__(self, cause: KafkaError | None) -> None:
        super().__init__(
            f"the broker client ended its session: {cause.str() if cause else 'a record failed'}"
        )
        self.cause = cause


@dataclass(slots=True)
class _Flight:
    """One chunk on its way: the last record of each partition reports for those before it."""

    last: int
    pending: int


class Session:
    """Sends chunks in order. After SessionEnded or any other exception only `close` may be called.

    `complaints` collects what the client says about brokers and logins; it outlives the session.
    """

    def __init__(self, properties: dict[str, Any], complaints: deque[KafkaError]) -> None:
        self._reports: deque[tuple[_Flight, KafkaError | None]] = deque()
        self._fatal: deque[KafkaError] = deque()
        self._flights: deque[_Flight] = deque()
        self._complaints = complaints
        self._client = Producer({**properties, "error_cb": self._error})
        self.progressed_at = time.monotonic()

    @property
    def client(self) -> Producer:
        return self._client

    @property
    def in_flight(self) -> int:
        """Chunks not acknowledged yet."""
        return len(self._flights)

    def send(self, chunk: Chunk, alive: Callable[[], bool]) -> None:
        """Hand every row to the client; blocks while its queue is full."""
        last = {target: i for i, target in enumerate(chunk.targets)}
        flight = _Flight(chunk.rows[-1][POSITION], len(last))
        reporters = set(last.values())
        reports, produce, stream = self._reports, self._client.produce, chunk.stream

        def report(error: KafkaError | None, _: object) -> None:
            reports.append((flight, error))

        if not self._flights:
            self.progressed_at = time.monotonic()
        self._flights.append(flight)
        for i, (row, (topic, partition)) in enumerate(zip(chunk.rows, chunk.targets, strict=True)):
            callback = report if i in reporters else None
            while True:
                try:
                    produce(
                        topic,
                        row[PAYLOAD],
                        row[KEY],
                        partition,
                        on_delivery=callback,
                        timestamp=row[MS],
                        headers=headers(row, stream),
                    )
                    break
                except BufferError:
                    self._poll(ALIVE_EVERY, alive)
                except KafkaException as error:
                    raise SessionEnded(error.args[0]) from error

    def acknowledged(self, wait: float, alive: Callable[[], bool]) -> Iterator[int]:
        """Serve reports for at most `wait` seconds; yield the last position of each chunk now complete."""
        self._poll(wait, alive)
        while self._flights and self._flights[0].pending == 0:
            yield self._flights.popleft().last

    def close(self) -> None:
        """Drop what is queued, wait a moment for what is in flight, and forget the client."""
        try:
            self._client.purge()
            self._client.flush(2.0)
        except (KafkaException, SystemError):
            # A client with a fatal error may refuse even this; nothing it held is believed to be sent.
            pass

    def _poll(self, wait: float, alive: Callable[[], bool]) -> None:
        try:
            self._client.poll(wait)
        except (KafkaException, SystemError) as error:
            self._raise_ended(error)
        while self._reports:
            flight, failure = self._reports.popleft()
            if failure is not None:
                self._reports.appendleft((flight, failure))
                self._raise_ended(None)
            flight.pending -= 1
            self.progressed_at = time.monotonic()
        if self._fatal:
            self._raise_ended(None)
        if not alive():
            raise Abandoned("told to stop while records were on their way")

    def _raise_ended(self, error: BaseException | None) -> None:
        """Name the cause, not its consequences: the poison's own report may still be on its way."""
        self.close()
        failures = [failure for _, failure in self._reports if failure is not None]
        causes = [failure for failure in failures if failure.code() not in CONSEQUENCES]
        raise SessionEnded(causes[0] if causes else None) from error

    def _error(self, error: KafkaError) -> None:
        (self._fatal if error.fatal() else self._complaints).append(error)
