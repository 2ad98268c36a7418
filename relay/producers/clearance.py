"""Find out what is committed last, and let nothing be sent where the brokers forgot to end a transaction.

The progress topic itself can be such a place. Then what it hides is judged by what can be seen: by a later
progress record, whose owner knew the earlier ones to be committed, or by the events of the transaction.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import Producer

from outbox.errors import GuardViolation
from relay.producers.delivery import Interrupted, Recorded, Target, Unsettled
from relay.producers.entry import Entry
from relay.producers.hanging import Hanging, further
from relay.producers.inquiry import Inquiry
from relay.producers.ledger import Ledger, Standing
from relay.producers.line import Line, LineEnded
from relay.producers.openings import Found, Openings
from relay.producers.ranges import Ranges

LOOK_AGAIN, AT_MOST = 1.0, 60.0
"""Seconds until partitions that had no leader, or that only a former owner wrote to, are looked at; each time
twice as many while one is still without (a topic that was deleted stays so for good)."""


class Clearance:
    """For one shard. `notary` makes a client that never carries events: none hang on how it ends."""

    def __init__(
        self, ranges: Ranges, ledger: Ledger, inquiry: Inquiry, *, notary: Callable[[], Line]
    ) -> None:
        self._ranges = ranges
        self._ledger = ledger
        self._place = ledger.topic, ledger.shard
        self._openings = Openings(ranges, place=self._place)
        self._hanging = Hanging(ranges, self._openings, place=self._place)
        self._inquiry = inquiry
        self._make_notary = notary
        self._clean: set[Target] = set()
        self._unsure: set[Target] = set()
        self._suspects: set[Target] = set()
        self._complaints = 0
        self._look_at, self._pause = 0.0, LOOK_AGAIN

    def caught_up(
        self,
        clients: Sequence[Producer],
        known: Recorded | None,
        wrote: Collection[Target],
        alive: Callable[[], bool],
    ) -> Recorded:
        """What is committed last, once nothing of the shard hides or contradicts it. `clients` are fenced.

        `known`: at least so much is, as the shard's row says. `wrote`: where else it may have written, which
        is looked at later.
        """
        self._unsure |= {*wrote} | self._clean
        self._clean.clear()
        self._look_at, self._pause = time.monotonic() + LOOK_AGAIN, LOOK_AGAIN
        try:
            if known is not None:
                self._openings.sources.add(known.seq.source)
            entry = self._read(clients, known, alive)
            self._suspect(entry)
            led = self._ranges.known(self._suspects, led=True)
            found = self._openings.find(led, alive)
            if found.undecided:
                # Whoever has to end that may be waiting for what this shard has to end elsewhere.
                led = self._ranges.known(self._suspects | self._unsure - {self._place}, led=True)
                found = self._openings.find(led, alive)
            if found.hung or entry.owed:
                with self._notary(alive) as notary:
                    self._hanging.mend(entry, found.hung, clients, notary, alive)
            found.refuse()
            self._unsure |= self._suspects - led
            self._suspects.clear()
        finally:
            self._ranges.rest()
        return entry.recorded

    def examine(self, targets: set[Target], alive: Callable[[], bool], *, begun: bool = False) -> None:
        """Before a claim's first record for a partition; for all once the client complained of a broker.

        `begun`: a transaction is being filled, and has not reached those of `targets` that are new to it.
        Raises Unsettled where one of the shard stands open: the next `caught_up` ends it. Interrupted where
        another producer's stands before records of the shard.
        """
        new = targets | {self._place}
        if not begun:
            self._notice()
        new -= self._clean
        if not begun and self._is_due():
            new |= self._due()
        if new:
            self._look(new, alive)

    def tend(self, alive: Callable[[], bool]) -> None:
        """While nothing is sent, as `examine`, once the client complained or where it could not be seen."""
        self._notice()
        if self._is_due():
            self._look(self._due(), alive)

    def leave(self, alive: Callable[[], bool]) -> None:
        """Wherever the shard wrote nothing of it stands open: nobody will look there in its name again.

        Raises Unsettled where something does, Interrupted while a partition has no leader, or another
        producer's transaction hides whether something does.
        """
        wrote = self._unsure | self._clean | self._suspects | {self._place}
        there, led = self._ranges.known(wrote), self._ranges.known(wrote, led=True)
        for topic, partition in sorted(there - led):
            raise Interrupted(
                f"topic {topic}, partition {partition} has no leader, so it is not known whether the brokers "
                "ended each transaction there (KAFKA-20734); start its broker, or delete the topic"
            )
        self._look(led, alive)
        self._unsure.clear()

    def _notice(self) -> None:
        if self._complaints != self._inquiry.complaints.heard:
            self._complaints = self._inquiry.complaints.heard
            self._unsure |= self._clean
            self._clean.clear()
            self._pause = LOOK_AGAIN

    def _is_due(self) -> bool:
        return bool(self._unsure) and time.monotonic() >= self._look_at

    def _due(self) -> set[Target]:
        """Those that are not known to be clean and have a leader."""
        led = self._ranges.known(self._unsure, led=True)
        self._look_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, AT_MOST)
        return led

    def _look(self, targets: set[Target], alive: Callable[[], bool]) -> None:
        try:
            found = self._openings.find(targets, alive)
        finally:
            self._ranges.rest()
        self._refuse(found)
        self._clean |= targets
        self._unsure -= targets

    def _refuse(self, found: Found) -> None:
        self._suspects.update({*found.hung, *found.undecided} - {self._place})
        if found.hung:
            raise Unsettled("the brokers left a transaction open, which is ended first", expected=True)
        found.refuse()

    def follow(self, former: Recorded, shared: set[Target], alive: Callable[[], bool]) -> None:
        """Before the end of a transaction that was filled while `former` was ended; both wrote to `shared`.

        Raises Unsettled where the brokers forgot `former`: what is sent again of it has to come first.
        Interrupted where another producer's transaction hides whether they did.
        """
        if self._complaints == self._inquiry.complaints.heard:
            return
        try:
            found = self._openings.stand(shared | {self._place}, former.seq.mark, alive)
        finally:
            self._ranges.rest()
        self._refuse(found)

    def _read(self, clients: Sequence[Producer], known: Recorded | None, alive: Callable[[], bool]) -> Entry:
        try:
            entry = self._ledger.read(alive)
        except Standing as standing:
            entry = self._clear_up(standing, clients, alive)
        self._openings.sources.add(entry.recorded.seq.source)
        return entry if entry.doubtful is None else self._judge(entry, entry.doubtful, clients, known, alive)

    def _suspect(self, *entries: Entry) -> None:
        for entry in entries:
            self._suspects.update(entry.into, ((place.topic, place.partition) for place in entry.owed))

    def _clear_up(self, standing: Standing, clients: Sequence[Producer], alive: Callable[[], bool]) -> Entry:
        """End what hangs in the progress topic, having written there what is to be judged again."""
        try:
            written = self._ledger.since(standing.offset, alive, committed=False)
        except GuardViolation:
            raise standing from None  # somebody else's: it is theirs to end
        try:
            known = self._ledger.read(alive, before=standing.offset)
        except GuardViolation:
            # Nothing before the first record, which came with the mode and says what the row says.
            known = written[0]
        since = standing.offset if known.doubtful is None else min(known.doubtful, standing.offset)
        doubt = Entry(known.recorded, known.into, known.owed, since)
        with self._notary(alive) as notary:
            self._hanging.note(doubt, notary, alive)
            self._hanging.end_progress(known.recorded, [*clients, notary], alive)
        return self._ledger.read(alive)

    def _judge(
        self,
        doubt: Entry,
        since: int,
        clients: Sequence[Producer],
        acknowledged: Recorded | None,
        alive: Callable[[], bool],
    ) -> Entry:
        """The furthest that is known to be committed. Nothing was sent since it came into doubt.

        What hangs where it wrote is ended before: it would hide what was committed behind it, and two shards
        that each stand first in one of two partitions would wait for each other.
        """
        written = self._ledger.since(since, alive, committed=False)
        seen = [entry for entry in self._ledger.since(since, alive, committed=True) if entry.doubtful is None]
        known = Entry(seen[-1].recorded if seen else doubt.recorded)
        if acknowledged is not None and (
            further(acknowledged, known.recorded) or _newer(acknowledged, known.recorded)
        ):
            known = Entry(acknowledged)
        self._suspect(doubt, *written)
        led = self._ranges.known(self._suspects | self._unsure - {self._place}, led=True)
        if hung := self._openings.find(led, alive).hung:
            with self._notary(alive) as notary:
                doubt = self._hanging.end(doubt, hung, clients, notary, alive)
        known = self._hanging.furthest(known, written, alive)
        found = Entry(known.recorded, tuple(sorted(self._suspects)), doubt.owed)
        with self._notary(alive) as notary:
            self._hanging.note(found, notary, alive)
        return found

    @contextmanager
    def _notary(self, alive: Callable[[], bool]) -> Iterator[Producer]:
        line = self._make_notary()
        try:
            line.fence(alive)
            yield line.client
        except LineEnded as ended:
            raise Interrupted(f"the notary's transactional.id: {ended.cause.str()}") from ended
        finally:
            line.close()


def _newer(row: Recorded, known: Recorded) -> bool:
    """Has the shard another name since? The first transaction under it may be what is hidden."""
    one, other = row.seq, known.seq
    return one.source != other.source or one.generation > other.generation
