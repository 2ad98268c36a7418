"""Mode `transactional`: one chunk or several in a Kafka transaction, and with them how far the shard is.

Readers that are read_committed see each event exactly once, in order, whatever dies or wakes up in between:
only the owner that was fenced in last can commit, and it begins behind the last record that is committed.
"""

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from outbox import hooks
from outbox.errors import ConfigurationError
from outbox.record import Seq
from relay import points
from relay.envelope import Envelope, headers
from relay.parking.landing import Landings, NeverOpen
from relay.producers.clearance import Clearance
from relay.producers.delivery import Chunk, Interrupted, Names, Recorded, Refused, Target, Unsettled
from relay.producers.entry import Entry, encoded
from relay.producers.inquiry import OF_TOPIC, REFUSALS, Inquiry, explained
from relay.producers.landings import KafkaLandings
from relay.producers.ledger import Ledger
from relay.producers.line import Line, LineEnded
from relay.producers.properties import transactional
from relay.producers.ranges import Ranges
from relay.row import POSITION, Row

LINES = 2
"""Clients that take turns: the next transaction is filled while the last one's commit is on its way, and
none waits for the markers of the one before it (with a single client that costs 25 ms now and then)."""

TOGETHER = 0.2
"""Seconds for which a transaction takes in further chunks of a backlog: beginning one, and waiting until the
brokers have all of it, cost 10 ms each time."""


@dataclass(slots=True)
class _Filling:
    """A transaction that has begun: `rows` from position `first` to the end of chunk `last`, until when.

    `into`: where it writes. `behind`: the one whose commit was on its way when this one was begun.
    """

    line: Line
    until: float
    first: int
    last: Chunk
    rows: int = 0
    into: set[Target] = field(default_factory=set)
    behind: "_Filling | None" = None

    @property
    def recorded(self) -> Recorded:
        chunk = self.last
        seq = Seq.parse(chunk.stream + b"%d" % chunk.rows[-1][POSITION])
        return Recorded(seq, chunk.done, chunk.next or None)


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Positions among which one is refused, and how many of them go out at a time to find out which."""

    first: int
    last: int
    size: int


class TransactionalProducer:
    """Producer of mode `transactional`. `properties` are librdkafka's own; `names` are the shard's.

    `together`: seconds for which a transaction takes in further chunks; 0: each chunk has its own.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        names: Names,
        *,
        stopping: Callable[[], bool] = lambda: False,
        together: float = TOGETHER,
        envelope: Envelope = headers,
    ) -> None:
        self._envelope = envelope
        self._properties = transactional(properties)
        self._inquiry = Inquiry(self._properties, listen=self._listen, stopping=stopping)
        self.names = names
        self._ids = [f"{names.transactional_id}.{n}" for n in range(LINES)]
        self._place = names.progress_topic, names.shard
        ranges = Ranges(self._properties, self._inquiry, group=f"{names.progress_topic}.{names.shard}")
        self._ledger = Ledger(ranges, self._inquiry, place=self._place)
        self._clearance = Clearance(ranges, self._ledger, self._inquiry, notary=self._notary)
        self._lines: list[Line] = []
        self._seen: dict[str, int] = {}
        self._fenced = False
        # Far from the broker's patience, which also has to cover what this transaction waits for at its end.
        self._together = min(together, self._properties["transaction.timeout.ms"] / 4_000)
        self._filling: _Filling | None = None
        self._committing: _Filling | None = None
        self._doubt: _Doubt | None = None

    def take_over(
        self,
        alive: Callable[[], bool],
        *,
        known: Recorded | None = None,
        wrote: Collection[Target] = (),
    ) -> Recorded:
        """Fence first, then read: what is committed cannot change any more."""
        self.fence(alive)
        try:
            return self._clearance.caught_up([line.client for line in self._lines], known, wrote, alive)
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
            line.begin(alive)
            line.note(*self._place, encoded(Entry(recorded)), alive)
            line.settle(alive)
            line.commit()
            line.committed(alive)

    def deliver(self, chunks: Iterable[Chunk | None], alive: Callable[[], bool]) -> Iterator[int]:
        """See `Producer.deliver`. What is yielded is committed; nothing is sent after an error."""
        if not self._fenced:
            raise Unsettled("what was committed last is to be asked first", expected=True)
        with self._settling():
            try:
                for chunk in chunks:
                    if chunk is None:
                        yield from self._complete(alive)
                    else:
                        for part in self._parts(chunk):
                            yield from self._take_in(part, alive)
                yield from self._complete(alive)
                yield from self._arrived(alive)
            except Refused:
                # Whoever sets the row aside believes that everything before it is in.
                yield from self._arrived(alive)
                raise
        self._doubt = None

    def tend(self, alive: Callable[[], bool]) -> None:
        self._listen()
        self._clearance.tend(alive)

    def leave(self, alive: Callable[[], bool]) -> None:
        self._clearance.leave(alive)

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
        self._filling = self._committing = None
        while self._lines:
            self._lines.pop().close()

    def _notary(self) -> Line:
        return self._line(f"{self.names.transactional_id}.notary")

    def _opened(self) -> list[Line]:
        if not self._lines:
            self._inquiry.forget_fatal()
            try:
                self._lines = [self._line(name) for name in self._ids]
            except KafkaException as error:
                raise ConfigurationError(
                    f"the Kafka client refuses its configuration: {error.args[0].str()}; "
                    "correct the [kafka] settings"
                ) from error
        return self._lines

    def _line(self, name: str) -> Line:
        properties = {**self._properties, "transactional.id": name}
        return Line(properties, self._inquiry.complaints, self._envelope)

    def _not_fenced(self, cause: KafkaError) -> str:
        if cause.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            remedy = f"; grant DESCRIBE and WRITE on TransactionalId, prefix {self.names.transactional_id}"
        elif cause.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            remedy = "; lower transaction.timeout.ms in [kafka] to the brokers' transaction.max.timeout.ms"
        else:
            remedy = ""
        return f"transactional.id {self.names.transactional_id}: {cause.str()}{remedy}"

    def _take_in(self, part: Chunk, alive: Callable[[], bool]) -> Iterator[int]:
        """Hand the rows over, in the transaction that is being filled or in a new one."""
        targets = set(part.targets)
        if self._filling is not None and any(topic not in self._seen for topic, _ in targets):
            # Its records would wait in the open transaction while the brokers are asked for the topic.
            yield from self._complete(alive)
        if self._doubt is not None:
            yield from self._arrived(alive)
        if self._filling is None:
            self._lines.append(self._lines.pop(0))
        line = self._lines[-1]
        self._inquiry.make_sure(line.client, self._seen, targets)
        self._clearance.examine(targets, alive, begun=self._filling is not None)
        if self._filling is None:
            line.begin(alive)
            until = time.monotonic() + self._together
            self._filling = _Filling(line, until, part.rows[0][POSITION], part, behind=self._committing)
        filling = self._filling
        filling.rows += len(part.rows)
        filling.last = part
        filling.into |= targets
        try:
            line.send(part, alive)
        except LineEnded as ended:
            raise self._verdict(filling, ended) from ended
        if self._doubt is not None or time.monotonic() >= filling.until:
            yield from self._complete(alive)
        elif self._committing is not None and self._committing.line.answered:
            yield from self._arrived(alive)

    def _complete(self, alive: Callable[[], bool]) -> Iterator[int]:
        """Ask for the commit once the brokers have it all. What is refused is refused here or before."""
        filling, self._filling = self._filling, None
        if filling is None:
            return
        recorded, last = filling.recorded, filling.recorded.seq.position
        blamed = True  # some row, when a record is refused; no more once only the progress record can be it
        try:
            if self._doubt is not None:
                filling.line.settle(alive)
                blamed = False
            filling.line.note(*self._place, encoded(Entry(recorded, tuple(filling.into))), alive)
            filling.line.settle(alive)
        except LineEnded as ended:
            raise (self._verdict(filling, ended) if blamed else self._not_noted(ended)) from ended
        yield from self._arrived(alive)
        if (former := filling.behind) is not None:
            # A broker is missed by its clients long before a coordinator takes its partitions for deleted.
            self._listen()
            self._clearance.follow(former.recorded, former.into & filling.into, alive)
            filling.behind = None
        hooks.fire(points.SETTLED, shard=self.names.shard, last=last)
        filling.line.commit()
        self._committing = filling
        hooks.fire(points.COMMITTING, shard=self.names.shard, last=last)

    def _arrived(self, alive: Callable[[], bool]) -> Iterator[int]:
        """The last position of the transaction whose commit is on its way, once that is in."""
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.line.committed(alive)
            yield committing.last.rows[-1][POSITION]

    def _verdict(self, filling: _Filling, ended: LineEnded) -> Exception:
        """Who is to blame: the row that was alone in its transaction, or one among those that were in it."""
        if ended.cause.code() not in REFUSALS:
            return ended
        rows = filling.last.rows
        if filling.rows == 1 and (self._doubt is not None or ended.cause.code() not in OF_TOPIC):
            return Refused(rows[0], explained(ended.cause), of_topic=ended.cause.code() in OF_TOPIC)
        if ended.index is None:
            size = max(1, math.isqrt(filling.rows))
            self._doubt = _Doubt(filling.first, rows[-1][POSITION], size)
        else:
            self._doubt = _Doubt(rows[ended.index][POSITION], rows[ended.index][POSITION], 1)
        return Unsettled(f"looking for the row that is refused: {ended.cause.str()}", expected=True)

    def _not_noted(self, ended: LineEnded) -> Exception:
        if ended.cause.code() not in OF_TOPIC:
            return ended
        return Unsettled(f"topic {self._place[0]} takes no record: {explained(ended.cause)}")

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
                end, self._doubt = len(rows), None
            yield replace(chunk, rows=rows[start:end], targets=chunk.targets[start:end])
            start = end

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
