"""One idempotent, gapless producer from its first record to its first error."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.envelope import Envelope, headers
from relay.producers.delivery import Abandoned, Chunk, Interrupted
from relay.row import KEY, MS, PAYLOAD, POSITION, Row

ALIVE_EVERY = 0.1
"""Seconds between two questions whether to go on, while waiting for the broker."""

CLOSE_WITHIN = 2.0
"""Seconds for the reports of what was given up; a frozen broker must not hold us longer."""

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
    """The first error ended the session.

    `cause`: the first error that is no consequence of another, if any was reported. `row`: the only row that
    was on its way, to which the cause therefore belongs.
    """

    def __init__(self, cause: KafkaError | None, row: Row | None, said: str | None = None) -> None:
        super().__init__(
            f"the Kafka client ended its session: {cause.str() if cause else said or 'a record failed'}"
        )
        self.cause = cause
        self.row = row


@dataclass(slots=True, eq=False)
class _Flight:
    """One chunk on its way: the last record of each partition reports for those before it."""

    last: int
    pending: int
    alone: Row | None
    failed: bool = False


class Session:
    """Sends chunks in order. After SessionEnded or any other exception only `close` may be called.

    `complaints` collects what the client says about brokers and logins; it outlives the session.
    """

    def __init__(
        self, properties: dict[str, Any], complaints: deque[KafkaError], envelope: Envelope = headers
    ) -> None:
        self._envelope = envelope
        self._delivered: deque[_Flight] = deque()
        self._failures: deque[tuple[_Flight, KafkaError]] = deque()
        self._flights: deque[_Flight] = deque()
        self._complaints = complaints
        self._open = True
        # No reference back to this object: a cycle would keep each ended client and its threads for long.
        self._client = Producer({**properties, "error_cb": complaints.append})
        self.partitions: dict[str, int] = {}
        """Topics that were seen on the broker in this session."""
        self.handed = -1
        """Position of the last row given to the client."""
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
        # What failed meanwhile must be known first: behind a topic that vanished and came back, the client
        # takes later records and writes them. Nor does a relay that overslept its lease begin anything.
        self._serve(0, alive)
        last = dict(zip(chunk.targets, range(len(chunk.rows)), strict=True))
        rows, stream = chunk.rows, chunk.stream
        flight = _Flight(rows[-1][POSITION], len(last), rows[0] if len(rows) == 1 else None)
        delivered, failures = self._delivered, self._failures

        def report(error: KafkaError | None, _: object) -> None:
            if error is None:
                delivered.append(flight)
            else:
                failures.append((flight, error))

        def report_failure(error: KafkaError | None, _: object) -> None:
            # Every record has it (0.02 s in 100,000): a failure behind which others succeed is a gap.
            if error is not None:
                failures.append((flight, error))

        callbacks = [report_failure] * len(rows)
        for i in last.values():
            callbacks[i] = report
        if not self._flights:
            self.progressed_at = time.monotonic()
        self._flights.append(flight)
        self.handed = flight.last
        produce, envelope = self._client.produce, self._envelope
        for row, (topic, partition), callback in zip(rows, chunk.targets, callbacks, strict=True):
            try:
                # By position (…, callback, on_delivery, timestamp, headers): by name 0.06 s more in 100,000.
                record = (
                    topic,
                    row[PAYLOAD],
                    row[KEY],
                    partition,
                    callback,
                    None,
                    row[MS],
                    envelope(row, stream),
                )
                produce(*record)
            except BufferError:
                self._press(record, alive)
            except (KafkaException, ValueError) as error:
                self._refused(error)

    def acknowledged(self, wait: float, alive: Callable[[], bool]) -> Iterator[int]:
        """Serve reports for at most `wait` seconds; yield the last position of each chunk now complete."""
        try:
            self._serve(wait, alive)
        except Interrupted:
            yield from self._arrived()
            raise
        yield from self._arrived()

    def close(self) -> None:
        """Drop what is queued and what is in flight, and collect the reports of it, within seconds."""
        if not self._open:
            return
        self._open = False
        until = time.monotonic() + CLOSE_WITHIN
        # A client with a fatal error interrupts the collecting, more than once.
        for _ in range(10):
            try:
                self._client.purge()
                self._client.flush(max(0.0, until - time.monotonic()))
                return
            except (KafkaException, SystemError):
                continue

    def _arrived(self) -> Iterator[int]:
        while self._flights and self._flights[0].pending == 0 and not self._flights[0].failed:
            yield self._flights.popleft().last

    def _press(self, record: tuple[Any, ...], alive: Callable[[], bool]) -> None:
        """Wait for room in the client's queue."""
        while True:
            if len(self._client) == 0:
                self._refuse(KafkaError.MSG_SIZE_TOO_LARGE, "larger than queue.buffering.max.kbytes")
            self._serve(ALIVE_EVERY, alive)
            try:
                return self._client.produce(*record)
            except BufferError:
                continue
            except (KafkaException, ValueError) as error:
                self._refused(error)

    def _refused(self, error: KafkaException | ValueError) -> NoReturn:
        """The client takes this row never, or nothing any more."""
        if isinstance(error, KafkaException):
            self._end(error.args[0], error)
        self._refuse(KafkaError.INVALID_RECORD, f"its headers cannot be sent: {error}")

    def _refuse(self, code: int, reason: str) -> NoReturn:
        self._end(KafkaError(code, reason), None)

    def _serve(self, wait: float, alive: Callable[[], bool]) -> None:
        """Let the client report. Raises SessionEnded after a failure, Abandoned when told to stop."""
        try:
            self._client.poll(wait)
        except (KafkaException, SystemError) as error:
            self._end(_fatal(error), error)
        while self._delivered:
            self._delivered.popleft().pending -= 1
            self.progressed_at = time.monotonic()
            self._complaints.clear()
        if self._failures or any(complaint.fatal() for complaint in self._complaints):
            self._end(None, None)
        if not alive():
            raise Abandoned("told to stop while records were on their way")

    def _end(self, error: KafkaError | None, raised: BaseException | None) -> NoReturn:
        """Name the cause, not its consequences: the poison's own report may still be on its way."""
        only = self._flights[0] if len(self._flights) == 1 else None
        self.close()
        for flight, _ in self._failures:
            flight.failed = True
        while self._delivered:
            self._delivered.popleft().pending -= 1
        told = [failure for _, failure in self._failures]
        told += [error] if error is not None else []
        told += [complaint for complaint in self._complaints if complaint.fatal()]
        causes = [failure for failure in told if failure.code() not in CONSEQUENCES]
        raise SessionEnded(
            causes[0] if causes else None,
            only.alone if only is not None else None,
            told[-1].str() if told else str(raised),
        ) from raised


def _fatal(error: BaseException | None) -> KafkaError | None:
    """The client's error behind what poll() raised: a SystemError hides it among its causes."""
    while error is not None:
        if isinstance(error, KafkaException):
            found = error.args[0]
            return found if isinstance(found, KafkaError) else None
        error = error.__cause__ or error.__context__
    return None
