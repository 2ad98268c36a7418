"""Mode `transactional`: each chunk is one Kafka transaction, and with it the record of how far the shard is.

Readers that are read_committed see each event exactly once, in order, whatever dies or wakes up in between:
only the owner that was fenced in last can commit, and it begins behind the last record that is committed.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from outbox import hooks
from outbox.errors import ConfigurationError
from outbox.record import Seq
from relay import points
from relay.landing import Landings, NeverOpen
from relay.producers.delivery import Chunk, Interrupted, Names, Recorded, Refused, Unsettled
from relay.producers.inquiry import REFUSALS, Inquiry, explained
from relay.producers.landings import KafkaLandings
from relay.producers.ledger import Ledger, encoded
from relay.producers.line import Line, LineEnded
from relay.producers.properties import transactional
from relay.row import POSITION, Row

LINES = 2
"""Clients that take turns: the next transaction is filled while the last one's commit is on its way, and
none waits for the markers of the one before it (with a single client that costs 25 ms now and then)."""


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Positions among which one is refused, and how many of them go out at a time to find out which."""

    first: int
    last: int
    size: int


class TransactionalProducer:
    """Producer of mode `transactional`. `properties` are librdkafka's own; `names` are the shard's."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        names: Names,
        *,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._properties = transactional(properties)
        self._inquiry = Inquiry(self._properties, listen=self._listen, stopping=stopping)
        self.names = names
        self._ledger = Ledger(self._properties, self._inquiry, topic=names.progress_topic, shard=names.shard)
        self._ids = [f"{names.transactional_id}.{n}" for n in range(LINES)]
        self._place = names.progress_topic, names.shard
        self._lines: list[Line] = []
        self._seen: dict[str, int] = {}
        self._fenced = False
        self._doubt: _Doubt | None = None

    def take_over(self, alive: Callable[[], bool]) -> Recorded:
        """Fence first, then read: what is committed cannot change any more."""
        self.fence(alive)
        try:
            return self._ledger.read(alive)
        except BaseException:
            self.close()
            raise

    def fence(self, alive: Callable[[], bool]) -> None:
        """With new clients: one that was fenced in before may have been fenced out since."""
        if self._fenced:
            self.close()
        hooks.fire(points.FENCING, shard=self.names.shard)
        try:
            for line in self._opened():
                line.fence(alive)
        except LineEnded as ended:
            self.close()
            raise Interrupted(self._not_fenced(ended.cause)) from ended
        except BaseException:
            self.close()
            raise
        self._seen.clear()
        self._fenced = True

    def begin(self, recorded: Recorded, alive: Callable[[], bool]) -> None:
        line = self._lines[0]
        with self._settling():
            self._ledger.prepare()
            line.fill(None, *self._place, encoded(recorded), alive)
            line.settle(alive)
            line.commit()
            line.committed(alive)

    def deliver(self, chunks: Iterable[Chunk], alive: Callable[[], bool]) -> Iterator[int]:
        """See `Producer.deliver`. A chunk is yielded once it is committed; nothing is sent after an error."""
        if not self._fenced:
            raise Unsettled("what was committed last is to be asked first", expected=True)
        committing: tuple[Line, int] | None = None
        with self._settling():
            for chunk in chunks:
                for part in self._parts(chunk):
                    line = self._turn()
                    if committing is not None and (committing[0] is line or self._doubt is not None):
                        yield self._arrived(committing, alive)
                        committing = None
                    try:
                        self._send(line, part, alive)
                    except Refused:
                        # Whoever sets the row aside believes that everything before it is in.
                        if committing is not None:
                            yield self._arrived(committing, alive)
                        raise
                    if committing is not None:
                        yield self._arrived(committing, alive)
                    committing = line, part.rows[-1][POSITION]
                    self._commit(*committing)
            if committing is not None:
                yield self._arrived(committing, alive)
        self._doubt = None

    def partitions(self, topic: str) -> int | None:
        return self._inquiry.partitions(self._opened()[0].client, topic)

    def compacted(self, topics: Collection[str]) -> frozenset[str]:
        return self._inquiry.compacted(topics)

    def landings(self) -> Landings:
        return NeverOpen(KafkaLandings(self._properties))

    def cluster_id(self) -> str | None:
        return self._inquiry.metadata(self._opened()[0].client, None).cluster_id or None

    def trouble(self) -> str | None:
        self._listen()
        return self._inquiry.trouble()

    def _listen(self) -> None:
        for line in self._lines:
            line.breathe()

    def close(self) -> None:
        self._fenced = False
        while self._lines:
            self._lines.pop().close()

    def _opened(self) -> list[Line]:
        if not self._lines:
            self._inquiry.forget_fatal()
            try:
                self._lines = [
                    Line({**self._properties, "transactional.id": name}, self._inquiry.complaints)
                    for name in self._ids
                ]
            except KafkaException as error:
                raise ConfigurationError(
                    f"the Kafka client refuses its configuration: {error.args[0].str()}; "
                    "correct the [kafka] settings"
                ) from error
        return self._lines

    def _not_fenced(self, cause: KafkaError) -> str:
        if cause.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            remedy = f"; grant DESCRIBE and WRITE on TransactionalId, prefix {self.names.transactional_id}"
        elif cause.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            remedy = "; lower transaction.timeout.ms in [kafka] to the brokers' transaction.max.timeout.ms"
        else:
            remedy = ""
        return f"transactional.id {self.names.transactional_id}: {cause.str()}{remedy}"

    def _send(self, line: Line, part: Chunk, alive: Callable[[], bool]) -> None:
        """Until the brokers have it all, uncommitted. What is refused is refused here."""
        recorded = Recorded(
            Seq.parse(part.stream + b"%d" % part.rows[-1][POSITION]), part.done, part.next or None
        )
        try:
            # Asked before the transaction is begun: records for a missing topic would wait in it.
            self._inquiry.make_sure(line.client, self._seen, part.targets)
            line.fill(part, *self._place, encoded(recorded), alive)
            line.settle(alive)
        except LineEnded as ended:
            raise self._verdict(part, ended) from ended

    def _commit(self, line: Line, last: int) -> None:
        hooks.fire(points.SETTLED, shard=self.names.shard, last=last)
        line.commit()
        hooks.fire(points.COMMITTING, shard=self.names.shard, last=last)

    def _verdict(self, part: Chunk, ended: LineEnded) -> Exception:
        """Who is to blame: the row that was alone in its transaction, or one among those that were in it."""
        if ended.cause.code() not in REFUSALS:
            return ended
        rows = part.rows if ended.index is None else [part.rows[ended.index]]
        if len(part.rows) == 1:
            return Refused(rows[0], explained(ended.cause))
        size = max(1, math.isqrt(len(rows)))
        self._doubt = _Doubt(rows[0][POSITION], rows[-1][POSITION], size)
        return Unsettled(f"looking for the row that is refused: {ended.cause.str()}", expected=True)

    def _parts(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk whole, but for the rows among which one is refused: these in smaller pieces."""
        doubt = self._doubt
        if doubt is None:
            yield chunk
            return
        start, rows = 0, chunk.rows
        while start < len(rows):
            if rows[start][POSITION] < doubt.first:
                end = bisect_left(rows, doubt.first, start, key=_position)
            elif rows[start][POSITION] <= doubt.last:
                last = bisect_right(rows, doubt.last, start, key=_position)
                end = min(start + doubt.size, last)
            else:
                end = len(rows)
            yield replace(chunk, rows=rows[start:end], targets=chunk.targets[start:end])
            start = end

    def _turn(self) -> Line:
        """The line whose commit is the longest ago."""
        self._lines.append(self._lines.pop(0))
        return self._lines[-1]

    def _arrived(self, committing: tuple[Line, int], alive: Callable[[], bool]) -> int:
        line, position = committing
        line.committed(alive)
        return position

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """Whatever ends a delivery ends the clients: only fencing and reading can tell what is in."""
        try:
            yield
        except LineEnded as ended:
            self.close()
            raise Unsettled(str(ended)) from ended
        except BaseException:
            self.close()
            raise


def _position(row: Row) -> int:
    return row[POSITION]
