"""A random schedule over the relay's own code: poison, an operator, two relays of which one may be a zombie.

Only the broker is played. What a relay had on its way when it was cut off may still land, much later; each
relay may be cut off at every step, and the other may claim and work in the midst of any step.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg

from outbox import hooks, record
from outbox.consumer.watermark import Marks
from outbox.errors import Fenced
from outbox.record import Seq
from relay import guards, points
from relay.config import RelayConfig
from relay.database import Database, OutcomeUnknown
from relay.envelope import headers
from relay.parking.landing import Landings
from relay.producers import Chunk, Interrupted, Recorded, Refused, Target
from relay.progress import Frozen, Resharded, ShardRow
from relay.row import ID, KEY, PAYLOAD, POSITION, Row
from relay.supervision import Supervision
from relay.tenure import Tenure
from tests.relay.database.half import AlwaysHeld
from tests.relay.database.memory_broker import MemoryLandings, Record

KEYS = ["a", "b", "c", None]
PARTITIONS = 2
POISON = b"poison"

WRITE = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload)
VALUES (gen_random_uuid(), 'order', %s, 'order.placed.v1', %s) RETURNING id::text
"""
RELEASE = """
UPDATE outbox_hold SET wanted_at = clock_timestamp(), wanted_by = 'operator' WHERE planned IS NULL
"""
DISCARD = """
UPDATE outbox_parked SET discarded_by = 'operator', discard_reason = 'chance'
WHERE parked = (SELECT min(parked) FROM outbox_parked JOIN outbox_hold USING (hold) WHERE planned IS NULL)
RETURNING id::text
"""

FATAL = {
    points.CLAIMED,
    points.PLANNED,
    points.ACKNOWLEDGED,
    points.PARKED,
    points.RELEASE_PLANNED,
    points.RELEASING,
    points.RELEASE_SENT,
    points.RELEASED,
}


class Violation(AssertionError):
    """A guarantee does not hold."""


class Killed(BaseException):
    """kill -9, as far as one process can play it."""


@dataclass
class Flight:
    """A record on its way."""

    row: Row
    found: Record


class Schedule:
    """Runs steps against one database and keeps the log that a broker would have."""

    rounds = 300
    """Within which everything has come to its end."""

    def __init__(self, url: str, seed: int) -> None:
        self.choose = random.Random(seed)
        self._open = ExitStack()
        self._writer = self._open.enter_context(psycopg.connect(url, autocommit=True))
        self.log: list[Record] = []
        self.zombies: list[deque[Flight]] = []
        self.mended = self._calm = self._inside = False
        self._owners = [Owner(self, url, self._open) for _ in range(2)]
        self._written: list[tuple[str, str | None]] = []
        self._discarded: set[str] = set()
        self.releases = 0
        self._open.callback(hooks.subscribe(self._strike))

    def run(self, steps: int) -> None:
        """Random steps, then everything to its end, then the verdict. Raises Violation."""
        with self._open:
            for _ in range(steps):
                self._step()
            self._end()
        self._judge()

    def shard(self) -> int:
        """Which one a relay claims next."""
        return 0

    def sent(self, chunk: Chunk) -> None:
        """A relay gives these rows to the broker."""

    def refused(self, row: Row) -> bool:
        return row[PAYLOAD] == POISON and not self.mended

    def land(self, flights: deque[Flight], most: int) -> None:
        """The first of them arrive; behind one that is refused nothing does."""
        for _ in range(min(most, len(flights))):
            flight = flights.popleft()
            if self.refused(flight.row):
                flights.clear()
                return
            self.log.append(flight.found)

    def meanwhile(self, owner: "Owner") -> None:
        """The other relay believes that the shard is free, in the midst of our step."""
        if self._calm or self._inside or self.choose.random() > 0.1:
            return
        self._inside = True
        other = self._owners[owner is self._owners[0]]
        try:
            for _ in range(self.choose.randint(1, 4)):
                other.step()
        finally:
            self._inside = False

    def _strike(self, point: str, _: object) -> None:
        self.releases += point == points.RELEASED
        if self._calm or point not in FATAL:
            return
        if self.choose.random() < 0.04:
            raise Killed
        if not self._inside:
            self.meanwhile(next(owner for owner in self._owners if owner.busy))

    def _step(self) -> None:
        match self.choose.choices(["write", "own", "zombie", "operator", "topic"], [6, 8, 2, 2, 1])[0]:
            case "write":
                key = self.choose.choice(KEYS)
                payload = POISON if self.choose.random() < 0.2 else b"{}"
                for (id_,) in self._writer.execute(WRITE, [key, payload]).fetchall():
                    self._written.append((id_, key))
            case "own":
                self.choose.choice(self._owners).step()
            case "zombie" if self.zombies:
                flights = self.choose.choice(self.zombies)
                self.land(flights, self.choose.randint(1, 5))
            case "operator":
                if self.choose.random() < 0.2:
                    self._discarded |= {id_ for (id_,) in self._writer.execute(DISCARD).fetchall()}
                self._writer.execute(RELEASE)
            case "topic":
                self.mended = not self.mended

    def _end(self) -> None:
        self._calm = self.mended = True
        owner = self._owners[0]
        owner.tenure = None
        for _ in range(2):
            for _ in range(self.rounds):
                self._writer.execute(RELEASE)
                if owner.step() == 0 and self._settled():
                    break
            else:
                raise Violation("what was parked finds no end")
            for flights in self.zombies:
                self.land(flights, len(flights))

    def _settled(self) -> bool:
        found = self._writer.execute(
            """SELECT next IS NULL AND NOT EXISTS (SELECT FROM outbox_hold) AND NOT EXISTS (
                   SELECT FROM outbox_event e WHERE NOT pg_visible_in_snapshot(e.xid, done))
               FROM outbox_shard"""
        ).fetchone()
        return found == (True,)

    def _judge(self) -> None:
        self._judge_once(self._effects())

    def _effects(self) -> list[Record]:
        """What a reader with marks applies."""
        marks: dict[int, Marks] = {}
        return [f for f in self.log if marks.setdefault(f.partition, Marks()).admit(f.seq)]

    def _judge_once(self, applied: list[Record]) -> None:
        ids = [found.id for found in applied]
        if len(set(ids)) != len(ids):
            raise Violation("an event was applied twice")
        if lost := {id_ for id_, _ in self._written} - set(ids) - self._discarded:
            raise Violation(f"{len(lost)} of {len(self._written)} lost")
        place = {id_: n for n, id_ in enumerate(ids)}
        for key in KEYS[:-1]:
            order = [place[id_] for id_, of in self._written if of == key and id_ in place]
            if order != sorted(order):
                raise Violation(f"key {key} is out of order")


class Owner:
    """A relay that does not know of the other."""

    def __init__(self, world: Schedule, url: str, opened: ExitStack) -> None:
        self._world = world
        self._config = RelayConfig(
            database_url=url, kafka_bootstrap_servers="memory:0", look_rows=4, chunk_rows=3
        )
        self._connections = [opened.enter_context(Database(url).connect("test")) for _ in range(2)]
        status: dict[str, Any] = {"shard": 0, "state": "starting", "alarm": None, "published": 0}
        self._supervision = Supervision(AlwaysHeld(0), stopping=lambda: False, stop_timeout=1, status=status)
        self.tenure: Tenure | None = None
        self.busy = False

    def step(self) -> int:
        """One round; what was published."""
        self.busy = True
        try:
            self.tenure = self.tenure or self._begin()
            return self.tenure.carry().published
        except Interrupted:
            return 1
        except (Fenced, Frozen, Resharded, OutcomeUnknown, Killed):
            self.tenure = None
            return 1
        finally:
            self.busy = False

    def _begin(self) -> Tenure:
        connection, reading = self._connections
        row = ShardRow(connection, self._world.shard())
        state = row.claim()
        hooks.fire(points.CLAIMED, shard=state.shard, epoch=state.epoch)
        return Tenure(
            self._config,
            connection,
            reading,
            PlayedProducer(self._world, self),
            row,
            state,
            guards.examine(connection, "memory"),
            supervision=self._supervision,
        )


class PlayedProducer:
    """A `relay.producers.Producer` whose broker does as the schedule says."""

    def __init__(self, world: Schedule, owner: Owner) -> None:
        self._world = world
        self._owner = owner

    def take_over(
        self,
        alive: Callable[[], bool],  # noqa: ARG002 - nobody to wait for
        *,
        known: Recorded | None = None,  # noqa: ARG002
        wrote: Collection[Target] = (),  # noqa: ARG002
    ) -> Recorded | None:
        return None

    def tend(self, alive: Callable[[], bool]) -> None:
        pass

    def leave(self, alive: Callable[[], bool]) -> None:
        pass

    def deliver(self, chunks: Iterable[Chunk | None], alive: Callable[[], bool]) -> Iterator[int]:  # noqa: ARG002
        world, choose = self._world, self._world.choose
        for chunk in filter(None, chunks):
            world.sent(chunk)
            flights = deque(map(_flight, chunk.rows, chunk.targets, [chunk.stream] * len(chunk.rows)))
            world.meanwhile(self._owner)
            if choose.random() < 0.12:
                world.land(flights, choose.randint(0, len(flights)))
                world.zombies.append(flights)
                raise Interrupted("cut off")
            before: int | None = None
            while flights:
                row = flights[0].row
                if not world.refused(row):
                    world.log.append(flights.popleft().found)
                    before = row[POSITION]
                    continue
                if len(chunk.rows) > 1 and choose.random() < 0.5:
                    # Sent together: what goes to other partitions lands all the same.
                    poisoned = flights[0].found.partition
                    world.log += [
                        flight.found
                        for flight in flights
                        if flight.found.partition != poisoned and not world.refused(flight.row)
                    ]
                    raise Interrupted("a row among several was refused")
                if before is not None:
                    yield before
                raise Refused(row, "poison")
            yield chunk.rows[-1][POSITION]

    def partitions(self, topic: str) -> int | None:  # noqa: ARG002
        return PARTITIONS

    def compacted(self, topics: Collection[str]) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    def landings(self) -> Landings:
        return MemoryLandings(self._world.log)

    def cluster_id(self) -> str | None:
        return "memory"

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def _flight(row: Row, target: tuple[str, int], stream: bytes) -> Flight:
    seq = dict(headers(row, stream))[record.SEQ]
    assert isinstance(seq, bytes)
    return Flight(row, Record(*target, row[KEY], row[PAYLOAD], row[ID].decode(), Seq.parse(seq)))
