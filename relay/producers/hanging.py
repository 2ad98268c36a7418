"""Transactions that the brokers forgot to end in a partition: found, ended, and what they hid sent again.

A transaction coordinator that sees no leader for a partition takes it for deleted: it writes no marker
there and calls the transaction complete (KAFKA-20734, still in Kafka 4.3.1: KRaftMetadataCache answers as
if the partition did not exist). It takes a broker that dies when nobody else has its partitions, between
the end of a transaction and its markers. The transaction then stands open there for ever: read_committed
readers wait at it, and the next marker of the same producer decides about it, whichever that is. An abort
hides what was committed, a commit shows what was aborted. So nothing is sent to a partition before its end
was seen to be clean.

Once a shard's names are fenced nobody else writes under them: what is still open then is ended here, always
as aborted, and what the progress topic knows to be committed is sent again, byte by byte, from the
partition itself. Each step is in the progress topic before it is taken, so that any successor goes on with
it.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.errors import GuardViolation, UndecodableRecord
from outbox.record import SEQ, Mark, Seq
from relay.producers.delivery import Abandoned, Interrupted, Recorded, Target
from relay.producers.entry import Entry, Owed, decoded, encoded
from relay.producers.ranges import READ_COMMITTED, READ_UNCOMMITTED, Ranges, Unreadable

log = logging.getLogger("relay.producer")

PATIENCE = 2.0
"""Seconds in which markers that are on their way arrive, and other producers' transactions end."""

LOOK_EVERY = 0.05
"""Seconds between two looks whether they have."""

FLUSH_EVERY = 0.1

WHOLE = 2**63
"""A position behind all others."""

TAIL = 1_000
"""Records from the end of a partition that are read first to see what arrived there last."""


class Hanging:
    """For one shard. `place`: its partition of the progress topic."""

    def __init__(self, ranges: Ranges, *, place: Target) -> None:
        self._ranges = ranges
        self._place = place
        self._shard = place[1]
        self.sources: set[str] = set()
        """Under which names the shard writes: other databases have shards of the same number."""

    def find(self, targets: Collection[Target], alive: Callable[[], bool]) -> dict[Target, int]:
        """Those in which a transaction of this shard stands open, with its first record's offset.

        None of the shard's transactions may be filling them meanwhile.
        """
        ends = self._ranges.ends(targets, READ_UNCOMMITTED) if targets else {}
        until = time.monotonic() + PATIENCE
        while True:
            stable = self._ranges.ends(ends, READ_COMMITTED) if ends else {}
            ends = {target: end for target, end in ends.items() if stable[target] < end}
            if not ends or time.monotonic() > until:
                break
            _go_on(alive)
            time.sleep(LOOK_EVERY)
        return {
            target: stable[target] for target in ends if self._ours(target, stable[target], alive) is not None
        }

    def stand(self, targets: Collection[Target], last: Mark, alive: Callable[[], bool]) -> set[Target]:
        """Those in which a transaction up to `last` stands open although its end was confirmed.

        A later one of the shard may be open there, too.
        """
        places, until = {*targets}, time.monotonic() + PATIENCE
        while True:
            stable = self._ranges.ends(places, READ_COMMITTED) if places else {}
            places = {target for target in places if self._is_within(target, stable[target], last, alive)}
            if not places or time.monotonic() > until:
                return places
            _go_on(alive)
            time.sleep(LOOK_EVERY)

    def _is_within(self, target: Target, offset: int, last: Mark, alive: Callable[[], bool]) -> bool:
        """Is the first record that is not decided yet one of ours up to `last`?"""
        seq = self._ours(target, offset, alive)
        return seq is not None and seq.mark <= last

    def _ours(self, target: Target, offset: int, alive: Callable[[], bool]) -> Seq | None:
        """The place of the record at `offset` in what this shard sends, if it is one of the shard's."""
        try:
            found = self._ranges.read(target, offset, offset + 1, committed=False, alive=alive)
        except Unreadable as unreadable:
            log.warning("whose transaction stands open at offset %d is not known: %s", offset, unreadable)
            return None
        if not found or target != self._place:
            return self._seq(found[0]) if found else None
        try:
            return decoded(found[0].value() or b"", target[0]).recorded.seq
        except GuardViolation:
            return None

    def mend(
        self,
        entry: Entry,
        hung: Mapping[Target, int],
        clients: Sequence[Producer],
        notary: Producer,
        alive: Callable[[], bool],
    ) -> None:
        """End what hangs, and send again what `entry` knows to be committed there. `clients` are fenced."""
        known = self._ranges.known([(place.topic, place.partition) for place in entry.owed])
        owed = [place for place in entry.owed if (place.topic, place.partition) in known]
        fresh = []
        for target, offset in hung.items():
            hidden = [self._seq(message) for message in self._all(target, offset, alive)]
            if any(seq is not None and _within(seq, entry.recorded) for seq in hidden):
                fresh.append(Owed(*target, offset))
            log.warning(
                "shard %d: the brokers left a transaction open at offset %d of topic %s, partition %d "
                "(KAFKA-20734); it is ended, and what is committed of it is sent again",
                self._shard,
                offset,
                *target,
            )
        owed += fresh
        if fresh:
            self.note(Entry(entry.recorded, owed=tuple(owed)), notary, alive)
        if hung:
            self._end(hung, clients, alive)
        if owed:
            self._repay(entry.recorded, owed, clients, alive)

    def note(self, entry: Entry, client: Producer, alive: Callable[[], bool]) -> None:
        """Commit one progress record by itself."""
        _ended(client, [self._record(entry)], alive, commit=True)

    def end_progress(
        self, recorded: Recorded, clients: Sequence[Producer], alive: Callable[[], bool]
    ) -> None:
        """End what hangs in the progress partition, as aborted."""
        log.warning(
            "shard %d: the brokers left a transaction open in topic %s (KAFKA-20734); it is ended, and what "
            "is committed of it is found out",
            self._shard,
            self._place[0],
        )
        for client in clients:
            _ended(client, [self._record(Entry(recorded))], alive, commit=False)

    def furthest(self, known: Entry, candidates: Sequence[Entry], alive: Callable[[], bool]) -> Entry:
        """The last of `candidates` of which a committed record is to be seen where it wrote; else `known`.

        Only what lies behind the candidate before it tells: an earlier one, which was committed, wrote to the
        same partitions, and the later one may have been aborted.
        """
        later = [entry for entry in candidates if further(entry.recorded, known.recorded)]
        ends = sorted({upto(entry.recorded) for entry in [known, *later]})
        for entry in sorted(later, key=lambda entry: upto(entry.recorded), reverse=True):
            before = ends[ends.index(upto(entry.recorded)) - 1]
            if any(self._arrived(target, before, entry.recorded, alive) for target in entry.into):
                return entry
        return known

    def _arrived(self, target: Target, above: Mark, last: Recorded, alive: Callable[[], bool]) -> bool:
        """Is a record between the two to be seen? The shard's own lie there in their order."""
        (end,) = self._ranges.ends([target], READ_COMMITTED).values()
        depth = TAIL
        while True:
            start = max(0, end - depth)
            found = self._ranges.read(target, start, end, committed=True, alive=alive)
            seqs = [seq for seq in map(self._seq, found) if seq is not None and _named_alike(seq, last.seq)]
            if any(above < seq.mark <= upto(last) for seq in seqs):
                return True
            if start == 0 or any(seq.mark <= above for seq in seqs):
                return False
            depth *= 4

    def _end(
        self, hung: Mapping[Target, int], clients: Sequence[Producer], alive: Callable[[], bool]
    ) -> None:
        """Abort over these partitions under each of the shard's names: one of them is the right one."""
        copies = [
            _copy(self._ranges.read(target, offset, offset + 1, committed=False, alive=alive)[0])
            for target, offset in hung.items()
        ]
        for client in clients:
            _ended(client, copies, alive, commit=False)
        for (topic, partition), offset in self.find(hung, alive).items():
            raise Interrupted(standing(topic, partition, offset))

    def _repay(
        self,
        recorded: Recorded,
        owed: Sequence[Owed],
        clients: Sequence[Producer],
        alive: Callable[[], bool],
    ) -> None:
        """Send what is committed by `recorded` and not to be seen from there on. Nothing is owed then."""
        places: dict[Target, int] = {}
        for place in owed:
            target = place.topic, place.partition
            places[target] = min(place.offset, places.get(target, place.offset))
        if again := self.find(places, alive):
            self._end(again, clients, alive)
        missing = []
        for target, offset in places.items():
            seen = {self._seq(message) for message in self._all(target, offset, alive, committed=True)}
            for message in self._all(target, offset, alive):
                seq = self._seq(message)
                if seq is not None and seq not in seen and _within(seq, recorded):
                    seen.add(seq)
                    missing.append(_copy(message))
        log.warning("shard %d: %d hidden records are sent again", self._shard, len(missing))
        # Its own markers may be forgotten, too: whoever comes next has to look there again.
        paid = Entry(recorded, into=tuple(places))
        _ended(clients[0], [*missing, self._record(paid)], alive, commit=True)

    def _all(
        self, target: Target, start: int, alive: Callable[[], bool], *, committed: bool = False
    ) -> list[Message]:
        level = READ_COMMITTED if committed else READ_UNCOMMITTED
        (end,) = self._ranges.ends([target], level).values()
        return self._ranges.read(target, start, end, committed=committed, alive=alive)

    def _record(self, entry: Entry) -> dict[str, Any]:
        topic, partition = self._place
        key = b"%d" % partition
        return {"topic": topic, "partition": partition, "key": key, "value": encoded(entry)}

    def _seq(self, message: Message) -> Seq | None:
        """Its place in what this shard sends; None for somebody else's."""
        headers: Any = message.headers()
        for name, value in headers or ():
            if name == SEQ and value is not None:
                try:
                    seq = Seq.parse(value)
                except UndecodableRecord:
                    return None
                return seq if seq.shard == self._shard and seq.source in self.sources else None
        return None


def standing(topic: str, partition: int, offset: int) -> str:
    """The alarm while a transaction that is not ours to end holds everything up."""
    return (
        f"a transaction stands open at offset {offset} of topic {topic}, partition {partition}; "
        "nothing is sent until the broker ends it; if it never does, run: kafka-transactions.sh abort "
        f"--topic {topic} --partition {partition} --start-offset {offset}"
    )


def _named_alike(one: Seq, other: Seq) -> bool:
    return (one.source, one.generation, one.shard) == (other.source, other.generation, other.shard)


def upto(recorded: Recorded) -> Mark:
    """The last mark that it covers: a delta that nothing follows is whole."""
    return recorded.seq.mark if recorded.next is not None else Mark(recorded.seq.delta, WHOLE)


def further(one: Recorded, other: Recorded) -> bool:
    """Does `one` cover more than `other`? Those of different names are not compared."""
    return _named_alike(one.seq, other.seq) and upto(one) > upto(other)


def _within(seq: Seq, recorded: Recorded) -> bool:
    """What bears another name is not known to be committed: it goes out again if the row says so."""
    return _named_alike(seq, recorded.seq) and seq.mark <= upto(recorded)


def _copy(message: Message) -> dict[str, Any]:
    return {
        "topic": message.topic(),
        "partition": message.partition(),
        "key": message.key(),
        "value": message.value(),
        "timestamp": message.timestamp()[1],
        "headers": message.headers(),
    }


def _ended(
    client: Producer, records: Sequence[Mapping[str, Any]], alive: Callable[[], bool], *, commit: bool
) -> None:
    """One transaction of these records, ended for certain; Interrupted otherwise."""
    failures: list[str] = []

    def report(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failures.append(error.str())

    try:
        client.begin_transaction()
        for record in records:
            _produce(client, {**record, "on_delivery": report}, alive)
        while client.flush(FLUSH_EVERY):
            _go_on(alive)
        if failures:
            raise Interrupted(f"a transaction that clears up failed: {failures[0]}")
        end = client.commit_transaction if commit else client.abort_transaction
        while True:
            try:
                end(-1)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                _go_on(alive)
    except KafkaException as error:
        raise Interrupted(f"a transaction that clears up failed: {error.args[0].str()}") from error


def _produce(client: Producer, record: dict[str, Any], alive: Callable[[], bool]) -> None:
    while True:
        try:
            return client.produce(**record)
        except BufferError:
            client.poll(FLUSH_EVERY)
            _go_on(alive)


def _go_on(alive: Callable[[], bool]) -> None:
    if not alive():
        raise Abandoned("told to stop while open transactions were looked for")
