"""A random schedule over the real statements: the number of shards is changed, and that is cancelled, while
owners overlap and answers are lost. One step at a time, so the seed decides everything."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from outbox.consumer.watermark import Marks
from outbox.errors import Fenced
from outbox.record import Seq
from relay.database import OutcomeUnknown
from relay.look import Look, Looker
from relay.progress import Frozen, Progress, Resharded, ShardRow
from relay.reshard import Ending
from relay.row import ID, POSITION
from tests.relay.database.half import Half
from tests.relay.database.schedule import Committed, Schedule, Violation

OWNERS = 5
KEYS = 9
PARTITIONS = 2
GONE = (Fenced, Frozen, Resharded, OutcomeUnknown)


@dataclass
class Owner:
    """Carries any shard; `old` is the look before the last one, which a naive protocol would use."""

    half: Half
    state: Progress | None = None
    sent: bool = False
    old: Look | None = None
    read: list[tuple[int, str]] | None = None


class ReshardSchedule(Schedule):
    """Naive owners: `remembers` takes the common end from the look before, not from one that saw the shards
    frozen; `ignores` often does not care that they are."""

    def __init__(self, url: str, seed: int, *, remembers: bool = False, ignores: bool = False) -> None:
        super().__init__(url, seed)
        self._remembers = remembers
        self._ignores = ignores
        self._carriers = [Owner(self._half(url)) for _ in range(OWNERS)]
        self._operator = self._open.enter_context(psycopg.connect(url, autocommit=True))
        self._keys: dict[str, str] = {}
        self._arrived: list[tuple[Seq, str]] = []
        self.generations = 0

    def _key(self) -> str:
        return f"key-{self._choose.randrange(KEYS)}"

    def run(self, steps: int) -> None:
        """Random steps, then everything to its end, then the verdict. Raises Violation."""
        with self._open:
            for self._step in range(steps):
                dice = self._choose.random()
                if dice < 0.35:
                    self._write(self._choose.choice(self._writers))
                elif dice < 0.39:
                    self._ask()
                else:
                    with suppress(*GONE):
                        self._carry(self._choose.choice(self._carriers))
            self._end(steps)
            self._look_up()
        self._judge()

    def _ask(self) -> None:
        with suppress(psycopg.Error):
            if self._choose.random() < 0.2:
                self._operator.execute("SELECT outbox_shards_cancel()")
            else:
                self._operator.execute("SELECT outbox_shards_set(%s)", [self._choose.choice([1, 2, 3])])

    def _claim(self, owner: Owner, number: int | None = None) -> Progress:
        if number is None:
            numbers = self._operator.execute("SELECT shard FROM outbox_shard ORDER BY shard").fetchall()
            number = self._choose.choice(numbers)[0]
        owner.half.row = ShardRow(owner.half.connection, number)
        owner.state, owner.sent, owner.old, owner.read = owner.half.row.claim(), False, None, None
        owner.half.looker = Looker(owner.half.connection, limit=4, buckets=owner.state.buckets)
        return owner.state

    def _carry(self, owner: Owner) -> None:
        if self._late and self._choose.random() < 0.2:
            self._late.pop(self._choose.randrange(len(self._late)))()
            return
        state = owner.state
        if state is None or self._choose.random() < 0.03:
            self._claim(owner)
        elif state.next is not None and not owner.sent:
            self._deliver(owner, state)
        else:
            self._find(owner, state)

    def _find(self, owner: Owner, state: Progress) -> None:
        row = owner.half.row
        look = owner.half.looker.look(state.next or state.done)
        old, owner.old = owner.old, look
        if self._ignores and self._choose.random() < 0.5:
            look = dataclasses.replace(look, resharding=False)
        if owner.sent and (look.resharding or self._choose.random() < 0.4):
            self._shift(owner, lambda: row.confirm(state))
        elif look.resharding:
            ending = Ending(owner.half.connection, row, look.server)
            chosen = old if self._remembers and old is not None else look
            self._shift(owner, lambda: ending.go_on(state, chosen), late=False)
        elif look.rows == [] and state.next is None:
            self._shift(owner, lambda: row.advance(state, look))
        elif look.rows != []:
            move = row.confirm_and_plan if owner.sent else row.plan
            if self._choose.random() < 0.5:
                self._shift(owner, lambda: move(state, look))
            else:
                sent, planner = owner.sent, owner.half.planner_of(state)
                self._shift(owner, lambda: planner.look(state, sent=sent)[1] or move(state, look))

    def _shift(self, owner: Owner, move: Callable[[], Progress], *, late: bool = True) -> None:
        """Answered, run twice, lost after it took effect, or late."""
        owner.state, owner.sent, owner.read = None, False, None
        fate = self._choose.choices(["answered", "twice", "lost", "late"], [9, 1, 1, 1 if late else 0])[0]
        if fate == "late":
            self._late.append(move)
            return
        after = move()
        if fate == "twice":
            with suppress(*GONE):
                move()
        if fate != "lost":
            owner.state = after

    def _deliver(self, owner: Owner, state: Progress) -> None:
        """All of the delta, or as far as the broker took it; a zombie sends what it has read before."""
        if owner.read is None:
            owner.read = [
                (row[POSITION], row[ID].decode()) for chunk in owner.half.chunks(state) for row in chunk
            ]
            if self._choose.random() < 0.5:
                return
        read, owner.read = owner.read, None
        part = read if self._choose.random() < 0.6 else read[: self._choose.randint(0, len(read))]
        for position, id_ in part:
            seq = Seq(state.source, state.generation, state.shard, state.delta, position)
            self._arrived.append((seq, id_))
        owner.sent = len(part) == len(read)
        if part and not owner.sent and self._choose.random() < 0.5:
            owner.state = None
            owner.state = owner.half.row.mark_low(state, part[-1][0])

    def _end(self, steps: int) -> None:
        self._step = steps
        for writer in self._writers:
            if writer.prepared is not None:
                writer.session.execute(f"COMMIT PREPARED '{writer.prepared}'".encode())
                writer.prepared = None
                self._ended(writer)
            elif writer.began:
                writer.session.execute("COMMIT")
                self._ended(writer)
        for late in self._late:
            with suppress(*GONE):
                late()
        for _ in range(60):
            quiet = True
            for (number,) in self._operator.execute("SELECT shard FROM outbox_shard").fetchall():
                try:
                    quiet &= self._finish(self._carriers[0], number)
                except GONE:
                    quiet = False
            if quiet:
                return
        raise Violation("never drained")

    def _finish(self, owner: Owner, number: int) -> bool:
        """One round of a shard's owner without any accident; True when there was nothing to do."""
        state = self._claim(owner, number)
        if state.next is not None:
            for chunk in owner.half.chunks(state):
                for row in chunk:
                    seq = Seq(state.source, state.generation, state.shard, state.delta, row[POSITION])
                    self._arrived.append((seq, row[ID].decode()))
            state = owner.half.row.confirm(state)
        look = owner.half.looker.look(state.done)
        if look.resharding:
            Ending(owner.half.connection, owner.half.row, look.server).go_on(state, look)
            return False
        if not look.empty:
            owner.half.row.plan(state, look)
        return look.empty

    def _look_up(self) -> None:
        found = self._operator.execute("SELECT id::text, aggregateid FROM outbox_event").fetchall()
        self._keys = dict(found)
        row = self._operator.execute("SELECT max(generation) FROM outbox_shard").fetchone()
        assert row is not None
        self.generations = row[0]

    def _judge(self) -> None:
        """Each committed event has one number and is applied once, in its key's order, by the consumer."""
        marks = [Marks() for _ in range(PARTITIONS)]
        number: dict[str, Seq] = {}
        applied: list[str] = []
        for seq, id_ in self._arrived:
            if number.setdefault(id_, seq) != seq:
                raise Violation(f"{id_} went out as {number[id_]} and as {seq}")
            partition = int(self._keys.get(id_, "key-0").rpartition("-")[2]) % PARTITIONS
            if marks[partition].admit(seq):
                applied.append(id_)
        expected = {id_ for transaction in self.committed for id_ in transaction.ids}
        if len(set(applied)) != len(applied):
            raise Violation("an event was applied twice")
        if lost := expected - set(applied):
            raise Violation(f"{len(lost)} of {len(expected)} events lost")
        if ghosts := set(applied) - expected:
            raise Violation(f"{len(ghosts)} ghosts")
        place = {id_: n for n, id_ in enumerate(applied)}
        if any(
            self._overtaken(earlier, later, place) for earlier in self.committed for later in self.committed
        ):
            raise Violation("an event overtook one of its key that was committed before it began")

    def _overtaken(self, earlier: Committed, later: Committed, place: dict[str, int]) -> bool:
        return earlier.ended < later.began and any(
            self._keys[a] == self._keys[b] and place[a] > place[b] for a in earlier.ids for b in later.ids
        )
