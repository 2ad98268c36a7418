"""Transactions that the brokers forgot to end in a partition: found, ended, and what they hid sent again.

A transaction coordinator that sees no leader for a partition takes it for deleted: it writes no marker
there and calls the transaction complete (KAFKA-20734, still in Kafka 4.3.1: KRaftMetadataCache answers as
if the partition did not exist). It takes a broker that dies when nobody else has its partitions, between
the end of a transaction and its markers. The transaction then stands open there for ever: read_committed
readers wait at it, and the next marker of the same producer decides about it, whichever that is. An abort
hides what was committed, a commit shows what was aborted. So nothing is sent to a partition before its end
was seen to be clean: see `openings`.

Once a shard's names are fenced nobody else writes under them: what is still open then is ended here, always
as aborted, and what the progress topic knows to be committed is sent again, byte by byte, from the
partition itself. Each step is in the progress topic before it is taken, so that any successor goes on with
it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.record import Mark, Seq
from relay.producers.delivery import Interrupted, Recorded, Target
from relay.producers.entry import Entry, Owed, encoded
from relay.producers.openings import Openings, go_on, refuse
from relay.producers.ranges import READ_UNCOMMITTED, Ranges

log = logging.getLogger("relay.producer")

FLUSH_EVERY = 0.1

WHOLE = 2**63
"""A position behind all others."""

TAIL = 1_000
"""Records from the end of a partition that are read first to see what arrived there last."""


class Hanging:
    """For one shard. `place`: its partition of the progress topic."""

    def __init__(self, ranges: Ranges, openings: Openings, *, place: Target) -> None:
        self._ranges = ranges
        self._openings = openings
        self._place = place
        self._shard = place[1]

    def mend(
        self,
        entry: Entry,
        hung: Mapping[Target, int],
        clients: Sequence[Producer],
        notary: Producer,
        alive: Callable[[], bool],
    ) -> None:
        """End what hangs, and send again what `entry` knows to be committed there. `clients` are fenced."""
        entry = self.end(entry, hung, clients, notary, alive)
        if entry.owed:
            self._repay(entry, clients, alive)

    def end(
        self,
        entry: Entry,
        hung: Mapping[Target, int],
        clients: Sequence[Producer],
        notary: Producer,
        alive: Callable[[], bool],
    ) -> Entry:
        """End what hangs. What is returned is in the progress topic, with all that is owed then.

        Where it is in doubt how much is committed, each place is owed: it is known before that is sent again.
        """
        known = self._ranges.known({(place.topic, place.partition) for place in entry.owed})
        owed = [place for place in entry.owed if (place.topic, place.partition) in known]
        fresh = []
        ends = self._ranges.ends(hung, READ_UNCOMMITTED) if hung else {}
        for target, offset in hung.items():
            hidden = self._openings.marked(target, offset, ends[target], alive)
            if entry.doubtful is not None or any(_within(seq, entry.recorded) for seq in hidden):
                fresh.append(Owed(*target, offset))
            log.warning(
                "shard %d: the brokers left a transaction open at offset %d of topic %s, partition %d "
                "(KAFKA-20734); it is ended, and what is committed of it is sent again",
                self._shard,
                offset,
                *target,
            )
        entry = replace(entry, owed=tuple(dict.fromkeys([*owed, *fresh])))
        if fresh:
            self.note(entry, notary, alive)
        if hung:
            self._end(hung, clients, alive)
        return entry

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
        wrote = self._ranges.known({target for entry in later for target in entry.into})
        places = self._openings.settled(wrote, alive)
        for entry in sorted(later, key=lambda entry: upto(entry.recorded), reverse=True):
            before = ends[ends.index(upto(entry.recorded)) - 1]
            there = {target: places[target] for target in entry.into if target in places}
            if any(self._arrived(*place, before, entry.recorded, alive) for place in there.items()):
                return entry
        return known

    def _arrived(
        self, target: Target, end: int, above: Mark, last: Recorded, alive: Callable[[], bool]
    ) -> bool:
        """Is a record between the two to be seen before `end`? The shard's own lie there in their order."""
        depth = TAIL
        while True:
            start = max(0, end - depth)
            found = self._ranges.read(target, start, end, committed=True, alive=alive)
            seqs = [
                seq
                for seq in map(self._openings.seq, found)
                if seq is not None and _named_alike(seq, last.seq)
            ]
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
        found = self._openings.find(hung, alive)
        refuse({**found.hung, **found.undecided})

    def _repay(self, entry: Entry, clients: Sequence[Producer], alive: Callable[[], bool]) -> None:
        """Send what is committed by `entry` and not to be seen where it is owed. Nothing is owed then."""
        places: dict[Target, int] = {}
        for place in entry.owed:
            target = place.topic, place.partition
            places[target] = min(place.offset, places.get(target, place.offset))
        ends = self._openings.settled(places, alive)
        missing = []
        for target, offset in places.items():
            visible = self._ranges.read(target, offset, ends[target], committed=True, alive=alive)
            seen = {self._openings.seq(message) for message in visible}
            for message in self._ranges.read(target, offset, ends[target], committed=False, alive=alive):
                seq = self._openings.seq(message)
                if seq is not None and seq not in seen and _within(seq, entry.recorded):
                    seen.add(seq)
                    missing.append(_copy(message))
        log.warning("shard %d: %d hidden records are sent again", self._shard, len(missing))
        # Its own markers may be forgotten, too: whoever comes next has to look there again.
        paid = Entry(entry.recorded, into=tuple(dict.fromkeys([*places, *entry.into])))
        _ended(clients[0], [*missing, self._record(paid)], alive, commit=True)

    def _record(self, entry: Entry) -> dict[str, Any]:
        topic, partition = self._place
        key = b"%d" % partition
        return {"topic": topic, "partition": partition, "key": key, "value": encoded(entry)}


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
            go_on(alive)
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
                go_on(alive)
    except KafkaException as error:
        raise Interrupted(f"a transaction that clears up failed: {error.args[0].str()}") from error


def _produce(client: Producer, record: dict[str, Any], alive: Callable[[], bool]) -> None:
    while True:
        try:
            return client.produce(**record)
        except BufferError:
            client.poll(FLUSH_EVERY)
            go_on(alive)
