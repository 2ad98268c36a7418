"""A random schedule over the real statements: writers, two owners who do not know of each other, lost
answers, statements that arrive late or twice. One step at a time, so the seed decides everything."""

import random
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg

from outbox.errors import Fenced
from relay.database import OutcomeUnknown
from relay.look import Look
from relay.progress import Progress
from relay.row import ID, POSITION
from tests.relay.database.half import Half, Session, write

WRITERS = 4


@dataclass
class Committed:
    """A transaction's events, with the steps at which it began and ended: what ended first comes first."""

    began: int
    ended: int
    ids: list[str]


@dataclass
class Writer:
    session: Session
    name: int
    began: int = 0
    ids: list[str] = field(default_factory=list)
    prepared: str | None = None


@dataclass
class Owner:
    """A relay as the protocol knows it: what it believes, and what it has acknowledged of its delta."""

    half: Half
    state: Progress | None = None
    memory: list[tuple[int, str]] | None = None
    read: tuple[int, list[tuple[int, str]]] | None = None
    sent: bool = False


class Violation(AssertionError):
    """A guarantee does not hold."""


class Schedule:
    """Runs steps against one database and keeps the log that a broker would have."""

    def __init__(self, url: str, seed: int) -> None:
        self._choose = random.Random(seed)
        self._open = ExitStack()
        self._writers = [
            Writer(self._open.enter_context(psycopg.connect(url, autocommit=True)), n) for n in range(WRITERS)
        ]
        self._owners = [Owner(self._half(url)) for _ in range(2)]
        self._wire = self._half(url)
        self._open.callback(self._forget_prepared)
        self._late: list[Callable[[], object]] = []
        self._step = 0
        self._name = uuid4().hex
        self.committed: list[Committed] = []
        self.log: list[tuple[int, int, str]] = []

    def _half(self, url: str) -> Half:
        return self._open.enter_context(closing(Half(url, limit=4, rows=3)))

    def run(self, steps: int) -> None:
        """Random steps, then everything to its end, then the verdict. Raises Violation."""
        with self._open:
            for self._step in range(steps):
                if self._choose.random() < 0.45:
                    self._write(self._choose.choice(self._writers))
                else:
                    with suppress(Fenced):
                        self._own(self._choose.choice(self._owners))
            self._end(steps)
        judge(self.committed, self.log)

    # -- writers

    def _key(self) -> str:
        """Of the next event."""
        return "k"

    def _write(self, writer: Writer) -> None:
        execute = writer.session.execute
        if writer.prepared is not None:
            if self._choose.random() < 0.3:
                execute(f"COMMIT PREPARED '{writer.prepared}'".encode())
                writer.prepared = None
                self._ended(writer)
        elif not writer.began:
            execute("BEGIN")
            writer.began = self._step + 1
            writer.ids = write(writer.session, key=self._key())
        else:
            self._go_on(writer)

    def _go_on(self, writer: Writer) -> None:
        execute = writer.session.execute
        match self._choose.choices(["write", "savepoint", "commit", "rollback", "prepare"], [3, 2, 4, 1, 1])[
            0
        ]:
            case "write":
                writer.ids += write(writer.session, self._choose.choice([1, 1, 2, 7]), key=self._key())
            case "savepoint":
                execute("SAVEPOINT part")
                write(writer.session, key=self._key())
                execute("ROLLBACK TO part")
            case "commit":
                execute("COMMIT")
                self._ended(writer)
            case "rollback":
                execute("ROLLBACK")
                writer.began = 0
            case _:
                writer.prepared = f"{self._name}-{writer.name}"
                execute(f"PREPARE TRANSACTION '{writer.prepared}'".encode())

    def _ended(self, writer: Writer) -> None:
        self.committed.append(Committed(writer.began, self._step, writer.ids))
        writer.began = 0

    def _forget_prepared(self) -> None:
        """What a violation left behind would keep the database from being dropped."""
        for writer in self._writers:
            if writer.prepared is not None:
                writer.session.execute(f"ROLLBACK PREPARED '{writer.prepared}'".encode())

    # -- owners

    def _own(self, owner: Owner) -> None:
        if self._late and self._choose.random() < 0.3:
            with suppress(Fenced):
                self._late.pop(self._choose.randrange(len(self._late)))()
            return
        state = owner.state
        if state is None or self._choose.random() < 0.05:
            owner.state, owner.memory, owner.sent = owner.half.row.claim(), None, False
        elif state.next is not None and not owner.sent:
            self._send(owner, state)
        elif owner.sent and self._choose.random() < 0.4:
            self._move(owner, lambda half: half.row.confirm(state))
        elif self._choose.random() < 0.5:
            self._look_and_plan(owner, state)
        else:
            look = owner.half.looker.look(state.next or state.done)
            if look.rows == [] and state.next is None:
                self._move(owner, lambda half: half.row.advance(state, look))
            elif look.rows != []:
                self._plan(owner, state, look)

    def _plan(self, owner: Owner, state: Progress, look: Look) -> None:
        if owner.sent:
            self._move(owner, lambda half: half.row.confirm_and_plan(state, look))
        else:
            self._move(owner, lambda half: half.row.plan(state, look))
        self._believe(owner, look)

    def _look_and_plan(self, owner: Owner, state: Progress) -> None:
        sent, looks = owner.sent, list[Look]()

        def move(half: Half) -> Progress:
            look, planned = half.planner.look(state, sent=sent)
            looks.append(look)
            if planned is None and not look.empty:
                planned = (half.row.confirm_and_plan if sent else half.row.plan)(state, look)
            return planned or state

        self._move(owner, move)
        if owner.state is state:
            owner.sent = sent
        elif owner.state is not None:
            self._believe(owner, looks[0])

    def _believe(self, owner: Owner, look: Look) -> None:
        if owner.state is not None and look.rows is not None:
            owner.memory = [(row[POSITION], row[ID].decode()) for row in look.rows]
        if owner.state is not None and self._choose.random() < 0.5:
            with suppress(OutcomeUnknown):
                self._read(owner, owner.state)

    def _move(self, owner: Owner, move: Callable[[Half], Progress]) -> None:
        """Answered, run twice, lost after it took effect, or late: nobody knows when it takes effect."""
        owner.memory, sent, owner.sent = None, owner.sent, False
        fate = self._choose.choices(["answered", "twice", "lost", "late"], [8, 1, 1, 2])[0]
        believed, owner.state = owner.state, None
        if fate == "late":
            self._late.append(lambda: move(self._wire))
            return
        after = move(owner.half)
        if fate == "twice":
            with suppress(Fenced):
                move(owner.half)
        if fate != "lost":
            owner.state = after
        assert believed is not None
        assert sent or believed.next is None

    def _send(self, owner: Owner, state: Progress) -> None:
        """All of the delta, or as far as the broker took it; a zombie, what it read before it was one."""
        try:
            read = self._read(owner, state)
        except OutcomeUnknown:
            if owner.read is None or owner.read[0] != state.delta:
                owner.state = None
                return
            read = [place for place in owner.read[1] if place[0] > state.low]
        if owner.memory is not None and owner.memory != read:
            raise Violation(f"the look saw {owner.memory}, the reader {read}")
        part = read if self._choose.random() < 0.6 else read[: self._choose.randint(0, len(read))]
        self.log += [(state.delta, position, id_) for position, id_ in part]
        owner.memory, owner.sent = None, len(part) == len(read)
        if part and self._choose.random() < 0.5:
            try:
                owner.state = owner.half.row.mark_low(state, part[-1][0])
            except Fenced:
                owner.state, owner.sent = None, False

    def _read(self, owner: Owner, state: Progress) -> list[tuple[int, str]]:
        found = [(row[POSITION], row[ID].decode()) for chunk in owner.half.chunks(state) for row in chunk]
        owner.read = (state.delta, found)
        return found

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
            with suppress(Fenced):
                late()
        half = self._owners[0].half
        state = half.row.claim()
        while True:
            if state.next is not None:
                for chunk in half.chunks(state):
                    self.log += [(state.delta, row[POSITION], row[ID].decode()) for row in chunk]
                state = half.row.confirm(state)
            look = half.looker.look(state.done)
            if look.empty:
                return
            state = half.row.plan(state, look)


def judge(committed: list[Committed], log: list[tuple[int, int, str]]) -> None:
    """Each committed event has one number and is applied once, in order, by a reader with marks."""
    number: dict[str, tuple[int, int]] = {}
    applied: list[str] = []
    mark = (0, 0)
    for delta, position, id_ in log:
        if number.setdefault(id_, (delta, position)) != (delta, position):
            raise Violation(f"{id_} went out as {number[id_]} and as {(delta, position)}")
        if (delta, position) > mark:
            mark = (delta, position)
            applied.append(id_)
    expected = {id_ for transaction in committed for id_ in transaction.ids}
    if len(set(applied)) != len(applied):
        raise Violation("an event was applied twice")
    if lost := expected - set(applied):
        raise Violation(f"{len(lost)} of {len(expected)} events lost")
    if ghosts := set(applied) - expected:
        raise Violation(f"{len(ghosts)} ghosts")
    place = {id_: n for n, id_ in enumerate(applied)}
    for earlier in committed:
        for later in committed:
            if earlier.ended < later.began and place[earlier.ids[-1]] > place[later.ids[0]]:
                raise Violation("an event overtook one that was committed before it began")
