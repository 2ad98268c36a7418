"""Re-shards in the midst of which their server fails over: one step at a time, the seed decides everything.

Judged by what the promoted server knows, with rules that share no code with the framework.
"""

import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from outbox import hooks
from relay.shard import Shard
from tests.relay.database.campaign import Killed
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker, Record
from tests.relay.disaster.pair import NAME
from tests.relay.effects import complaints
from tests.relay.sharding.campaign import DRAINED

KEYS = 9

ASKING = 0.1
"""How often a step asks for another number of shards, or cancels that."""

DEATH = 0.04
"""How often an owner dies at a step that it has reached."""

BRIEFLY = 0.02
"""Seconds for which an owner waits for the standby before it takes up something else."""


@dataclass
class Resharding:
    """`url` leads to whichever server takes writers. `waiting`: nothing is sent before the standby has it."""

    url: str
    seed: int
    waiting: bool
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    generations: int = 0
    _owners: dict[int, Shard] = field(default_factory=dict)
    _session: Session | None = None

    def __post_init__(self) -> None:
        self._choose = random.Random(self.seed)

    def steps(self, count: int) -> None:
        for _ in range(count):
            dice = self._choose.random()
            if dice < 0.3:
                count, key = self._choose.choice([1, 2, 5]), f"key-{self._choose.randrange(KEYS)}"
                write(self._at_hand(), count, key=key)
            elif dice < 0.3 + ASKING:
                self._ask()
            else:
                self._carry(self._choose.choice(self._shards()))

    def half(self) -> None:
        """The number of shards is being changed, and its owners have come some way with it."""
        self._ask(cancel=0)
        for _ in range(self._choose.randrange(9)):
            self._carry(self._choose.choice(self._shards()))

    def whole(self) -> None:
        """The number of shards is changed, and something is sent in the new generation."""
        before = self._generation()
        self._ask(cancel=0)
        end = time.monotonic() + 60
        while self._generation() == before or self.broker.log[-1].seq.generation == before:
            assert time.monotonic() < end, f"seed {self.seed}: not changed"
            write(self._at_hand(), key=f"key-{self._choose.randrange(KEYS)}")
            for number in self._shards():
                self._owner(number).run_once()

    def close(self) -> None:
        """All relays end as by a power cut."""
        while self._owners:
            self._owners.popitem()[1].let_go()
        if self._session is not None:
            self._session.close()

    def promoted(self) -> None:
        """The server has failed over: nobody waits for a standby any more. Owners learn it by themselves."""
        self.waiting = False
        if self._session is not None:
            self._session.close()
        for number in [n for n, owner in self._owners.items() if owner._config.wait_for_standby]:
            self._owners.pop(number).let_go()

    def drain(self) -> None:
        """Everybody goes on without accidents until nothing is left."""
        end = time.monotonic() + 60
        session = self._at_hand()
        while session.execute(DRAINED).fetchone() != (True,):
            assert time.monotonic() < end, f"seed {self.seed}: not drained"
            for number in self._shards():
                self._owner(number).run_once()
            for owner in self._owners.values():
                owner.finish()
        self.generations = self._generation()

    def verdict(self, *, exact: bool) -> list[str]:
        """`exact`: each known event once and nothing else; otherwise what is forgotten may come again."""
        known = (
            self._at_hand()
            .execute("SELECT id::text, aggregateid FROM outbox_event ORDER BY position")
            .fetchall()
        )
        effects = [(found.id, found.seq.source) for found in applied(self.broker.log)]
        wrong = complaints(effects, known, exact=exact)
        return [f"seed {self.seed}: {complaint}" for complaint in wrong]

    def _generation(self) -> int:
        [(found,)] = self._at_hand().execute("SELECT max(generation) FROM outbox_shard").fetchall()
        return int(found)

    def _ask(self, *, cancel: float = 0.2) -> None:
        with suppress(psycopg.errors.DatabaseError):
            if self._choose.random() < cancel:
                self._at_hand().execute("SELECT outbox_shards_cancel()")
            else:
                self._at_hand().execute("SELECT outbox_shards_set(%s)", [self._choose.choice([1, 2, 3])])

    def _shards(self) -> list[int]:
        found = self._at_hand().execute("SELECT shard FROM outbox_shard ORDER BY shard").fetchall()
        return [number for (number,) in found]

    def _at_hand(self) -> Session:
        if self._session is None or self._session.closed:
            self._session = psycopg.connect(self.url, autocommit=True)
        return self._session

    def _carry(self, number: int) -> None:
        def observe(point: str, _: object) -> None:
            if point.startswith("relay.") and self._choose.random() < DEATH:
                raise Killed

        forget = hooks.subscribe(observe)
        try:
            self._owner(number).run_once()
        except Killed:
            self._owners.pop(number).let_go()
        finally:
            forget()

    def _owner(self, number: int) -> Shard:
        if number not in self._owners:
            waits = {"wait_for_standby": NAME, "standby_patience": BRIEFLY} if self.waiting else {}
            rows = self._choose.choice([1, 3, 1_000])
            self._owners[number] = shard(
                self.url, self.broker, number, look_rows=rows, chunk_rows=rows, **waits
            )
        owner, began = self._owners[number], time.monotonic()
        owner._supervision.stopping = lambda: self.waiting and time.monotonic() - began > BRIEFLY
        return owner


def applied(log: list[Record]) -> list[Record]:
    """What a consumer applies: per source and partition what is above its mark and of no older generation."""
    marks: dict[tuple[str, int, str], tuple[int, dict[int, tuple[int, int]]]] = {}
    news = []
    for found in log:
        place, seq = (found.topic, found.partition, found.seq.source), found.seq
        generation, shards = marks.get(place, (0, {}))
        if seq.generation > generation:
            shards = {}
        if seq.generation >= generation and (seq.delta, seq.position) > shards.get(seq.shard, (0, 0)):
            marks[place] = seq.generation, {**shards, seq.shard: (seq.delta, seq.position)}
            news.append(found)
    return news
