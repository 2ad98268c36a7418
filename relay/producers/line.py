"""One transactional client: from the fencing of its predecessors to its first error."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.envelope import Envelope, headers
from relay.producers.delivery import Abandoned, Chunk, Interrupted
from relay.row import KEY, MS, PAYLOAD

ALIVE_EVERY = 0.1
"""Seconds between two questions whether to go on, while waiting for the broker."""

AHEAD = 2
"""Chunks on their way while the next one is handed over; more bring nothing."""

ROOM_EVERY = 0.002
"""Seconds between two looks whether there is room for it: successes are not reported."""

REPORTED_WITHIN = 1.0
"""Seconds for the report of a failure that the client knows already."""

FENCE_WITHIN = 1.0
"""Seconds for one attempt to fence predecessors, whose open transaction has to end first."""

ABORT_WITHIN = 2.0
"""Seconds for a last abort, which frees readers sooner; otherwise the successor's fencing does it."""

CONSEQUENCES = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError._STATE,
    }
)
"""Codes that follow from an earlier failure and do not name its cause."""


class LineEnded(Interrupted):
    """The first error ended the client: `cause`. `index`: the row that the client itself refused."""

    def __init__(self, cause: KafkaError, index: int | None = None) -> None:
        super().__init__(f"the Kafka client ended its transaction: {cause.str()}")
        self.cause = cause
        self.index = index


class Line:
    """Carries one transaction at a time: `begin`, `send`, `note`, `settle`, `commit`, `committed`, and again.

    After any exception only `close` may be called. `complaints` collects what the client says about brokers
    and logins; it outlives the line.
    """

    def __init__(
        self, properties: dict[str, Any], complaints: deque[KafkaError], envelope: Envelope = headers
    ) -> None:
        self._envelope = envelope
        failures = self._failures = deque[KafkaError]()

        def report(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failures.append(error)

        # No reference back to this object: a cycle would keep each ended client and its threads for long.
        self.client = Producer({**properties, "error_cb": complaints.append, "on_delivery": report})
        self._begun = False
        self._chunks = deque[int](maxlen=AHEAD)
        self._commit: _Commit | None = None

    def fence(self, alive: Callable[[], bool]) -> None:
        """End whatever predecessors of this name have begun; none of them can commit any more."""
        while True:
            _go_on(alive)
            try:
                self.client.init_transactions(FENCE_WITHIN)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise LineEnded(error.args[0]) from error
                self.client.poll(ALIVE_EVERY)

    def begin(self, alive: Callable[[], bool]) -> None:
        """Begin a transaction. Nothing is begun by a relay that overslept its lease."""
        _go_on(alive)
        self._chunks.clear()
        with _ending():
            self.client.begin_transaction()
        self._begun = True

    def send(self, chunk: Chunk, alive: Callable[[], bool]) -> None:
        """Hand over the chunk's records, once no more than two chunks before it are on their way."""
        self._serve(0, alive)
        while len(self.client) > sum(self._chunks):
            self._serve(ROOM_EVERY, alive)
        self._chunks.append(len(chunk.rows))
        self._hand_over(chunk, alive)

    def note(self, topic: str, partition: int, progress: bytes, alive: Callable[[], bool]) -> None:
        """Hand over the record of how far the shard is with this transaction."""
        try:
            self._produce((topic, progress, b"%d" % partition, partition), alive)
        except KafkaException as error:
            raise self._ended(error.args[0]) from error

    def _hand_over(self, chunk: Chunk, alive: Callable[[], bool]) -> None:
        produce, envelope, stream, index = self.client.produce, self._envelope, chunk.stream, 0
        try:
            for index, (row, (topic, partition)) in enumerate(zip(chunk.rows, chunk.targets, strict=True)):  # noqa: B007
                # By position (…, callback, on_delivery, timestamp, headers): by name costs a tenth more.
                record = (
                    topic,
                    row[PAYLOAD],
                    row[KEY],
                    partition,
                    None,
                    None,
                    row[MS],
                    envelope(row, stream),
                )
                try:
                    produce(*record)
                except BufferError:
                    self._produce(record, alive)
        except KafkaException as error:
            raise self._ended(error.args[0], index) from error
        except ValueError as error:
            refused = KafkaError(KafkaError.INVALID_RECORD, f"its headers cannot be sent: {error}")
            raise LineEnded(refused, index) from error

    def settle(self, alive: Callable[[], bool]) -> None:
        """Wait until the brokers have every record of the transaction: what follows lies behind it."""
        while True:
            with _ending():
                left = self.client.flush(ALIVE_EVERY)
            if left == 0:
                break
            self._heard(alive)
        self._heard(alive)

    def commit(self) -> None:
        """Ask for the commit, and do not wait for it."""
        self._commit = _Commit(self.client)
        self._commit.start()

    @property
    def answered(self) -> bool:
        """Need `committed` not wait?"""
        return self._commit is not None and self._commit.ended.is_set()

    def committed(self, alive: Callable[[], bool]) -> None:
        """Wait until the transaction is in. After any exception nobody knows whether it is."""
        assert self._commit is not None
        while not self._commit.ended.wait(ALIVE_EVERY):
            _go_on(alive)
        if self._commit.error is not None:
            raise LineEnded(self._commit.error) from None
        self._commit, self._begun = None, False

    def breathe(self) -> None:
        """Between transactions: let the client say what it has to say."""
        if not self._begun:
            with contextlib.suppress(KafkaException, SystemError):
                self.client.poll(0)

    def close(self) -> None:
        """Give up what is not committed. A commit that is on its way may still happen."""
        if self._commit is not None:
            self._commit.give_up()
            return
        with contextlib.suppress(KafkaException, SystemError):
            self.client.purge()
            if self._begun:
                self.client.abort_transaction(ABORT_WITHIN)

    def _produce(self, record: tuple[Any, ...], alive: Callable[[], bool]) -> None:
        """Wait for room in the client's queue if need be."""
        while True:
            try:
                return self.client.produce(*record)
            except BufferError:
                if len(self.client) == 0:
                    large = KafkaError(
                        KafkaError.MSG_SIZE_TOO_LARGE, "larger than queue.buffering.max.kbytes"
                    )
                    raise KafkaException(large) from None
                self._serve(ALIVE_EVERY, alive)

    def _ended(self, error: KafkaError, index: int | None = None) -> LineEnded:
        """Name the cause, not its consequence: behind a record that failed the client takes no more, and the
        report of it may still be on its way."""
        until = time.monotonic() + REPORTED_WITHIN
        while error.code() in CONSEQUENCES and not self._failures and time.monotonic() < until:
            with contextlib.suppress(KafkaException, SystemError):
                self.client.poll(ROOM_EVERY)
        causes = [failure for failure in self._failures if failure.code() not in CONSEQUENCES]
        if causes:
            return LineEnded(causes[0])
        said = self._said() if error.code() in CONSEQUENCES else None
        return LineEnded(said) if said is not None else LineEnded(error, index)

    def _serve(self, wait: float, alive: Callable[[], bool]) -> None:
        with _ending():
            self.client.poll(wait)
        self._heard(alive)

    def _heard(self, alive: Callable[[], bool]) -> None:
        if self._failures:
            causes = [failure for failure in self._failures if failure.code() not in CONSEQUENCES]
            raise LineEnded(causes[0] if causes else self._said() or self._failures[0])
        _go_on(alive)

    def _said(self) -> KafkaError | None:
        """Why the transaction failed, where that is no record's fault: no report says it, any call does."""
        try:
            self.client.begin_transaction()
        except KafkaException as error:
            found: KafkaError = error.args[0]
            return None if found.code() in CONSEQUENCES else found
        return None


class _Commit(threading.Thread):
    """One commit on its way. The client's own bound is transaction.timeout.ms, then it says so."""

    def __init__(self, client: Producer) -> None:
        super().__init__(name="outbox-commit", daemon=True)
        self._client = client
        self._given_up = False
        self.ended = threading.Event()
        self.error: KafkaError | None = None

    def give_up(self) -> None:
        self._given_up = True

    def run(self) -> None:
        try:
            while not self._given_up and not self._attempt():
                pass
        finally:
            self.ended.set()

    def _attempt(self) -> bool:
        """True when its outcome is known, or never will be."""
        try:
            self._client.commit_transaction(-1)
        except KafkaException as error:
            if error.args[0].retriable():
                return False
            self.error = error.args[0]
        except SystemError as error:
            self.error = KafkaError(KafkaError._FAIL, str(error))
        return True


def _go_on(alive: Callable[[], bool]) -> None:
    if not alive():
        raise Abandoned("told to stop while a transaction was open")


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """What the client raises ends the line."""
    try:
        yield
    except KafkaException as error:
        raise LineEnded(error.args[0]) from error
    except SystemError as error:
        raise LineEnded(KafkaError(KafkaError._FAIL, str(error))) from error
