"""A random schedule over the relay's own code in which replays are asked for at any moment.

Everything of the schedules for parking goes on: late writers, poison, an operator, two relays that overlap
and are cut off at every step, records that land late. In every other one the number of shards changes instead
of topics that refuse. A reader with marks decides what of the broker's log takes effect.
"""

from contextlib import suppress
from dataclasses import dataclass

import psycopg

from outbox import record
from outbox.record import Seq
from relay.envelope import headers
from relay.producers import Chunk
from tests.relay.database.memory_broker import Record
from tests.relay.parking.schedule import KEYS, POISON, WRITE, Schedule, Violation

ASK = """
INSERT INTO outbox_job (shard, groups, requested_by)
SELECT shard, '*', 'operator' FROM outbox_shard WHERE NOT EXISTS (SELECT FROM outbox_reshard) RETURNING job
"""

SETTLED = """
SELECT bool_and(next IS NULL) AND NOT EXISTS (SELECT FROM outbox_hold)
   AND NOT EXISTS (SELECT FROM outbox_job WHERE ended_at IS NULL) AND NOT EXISTS (SELECT FROM outbox_reshard)
   AND NOT EXISTS (
       SELECT FROM outbox_event e, outbox_shard s
       WHERE coalesce(hashtextextended(e.aggregateid, 0) & 255, 0) BETWEEN s.lo AND s.hi
         AND NOT pg_visible_in_snapshot(e.xid, s.done))
FROM outbox_shard
"""


@dataclass
class Asked:
    """Replays that one command asked for, one a shard; `landed`: what had reached the broker by then."""

    jobs: set[int]
    landed: set[str]


class ReplaySchedule(Schedule):
    """Judges, besides each event's first way, that a replay holds all that had arrived when it was asked for,
    each once, in its key's order, and nothing that had not arrived when it began."""

    rounds = 3_000

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(url, seed)
        self._late = self._open.enter_context(psycopg.connect(url))
        self._late_ids: list[str] = []
        self._lates = 0
        self._reshards = bool(seed % 2)
        self._job_of: dict[Seq, int] = {}
        self._asked: list[Asked] = []
        self._parked: set[str] = set()
        self._poison: set[str] = set()
        self._unfinished: set[int] = set()
        self._rounds = self.replayed = 0

    def shard(self) -> int:
        numbers = self._writer.execute("SELECT shard FROM outbox_shard ORDER BY shard").fetchall()
        number: int = self.choose.choice(numbers)[0]
        return number

    def sent(self, chunk: Chunk) -> None:
        for row in chunk.rows:
            of = dict(headers(row, chunk.stream))
            if said := of.get(record.REPLAY):
                seq, job = of[record.SEQ], said if isinstance(said, str) else said.decode()
                assert isinstance(seq, bytes)
                self._job_of[Seq.parse(seq)] = int(job.partition(";")[0])

    def _step(self) -> None:
        match self.choose.choices(["else", "write", "late", "ask", "shards"], [28, 6, 6, 2, 1])[0]:
            case "else" if not self._reshards:
                super()._step()
            case "else":
                owner = self.choose.choice(self._owners)
                if self.choose.random() < 0.1:
                    owner.tenure = None  # it goes for another shard
                owner.step()
                if self.zombies and self.choose.random() < 0.2:
                    self.land(self.choose.choice(self.zombies), self.choose.randint(1, 5))
            case "write":
                key = self.choose.choice(KEYS)
                found = self._writer.execute(WRITE, [key, b"{}"]).fetchall()
                self._written += [(id_, key) for (id_,) in found]
            case "late":
                self._write_late()
            case "ask":
                self._ask()
            case "shards" if self._reshards:
                with suppress(psycopg.Error):
                    self._writer.execute("SELECT outbox_shards_set(%s)", [self.choose.choice([1, 2, 3])])

    def _write_late(self) -> None:
        """A transaction that keeps its first positions to itself until others have gone by."""
        if self._late_ids and self.choose.random() < 0.4:
            self._late.commit()
            self._written += [(id_, None) for id_ in self._late_ids]
            self._late_ids = []
            return
        self._late_ids += [id_ for (id_,) in self._late.execute(WRITE, [None, b"{}"]).fetchall()]

    def _ask(self) -> None:
        jobs = {job for (job,) in self._writer.execute(ASK).fetchall()}
        if jobs:
            self._asked.append(Asked(jobs, {found.id for found in self.log}))

    def _end(self) -> None:
        if self._late_ids:
            self._late.commit()
            self._written += [(id_, None) for id_ in self._late_ids]
        super()._end()
        found = self._writer.execute(
            "SELECT id::text FROM outbox_parked UNION SELECT id::text FROM outbox_archive"
        ).fetchall()
        self._parked = {id_ for (id_,) in found}
        found = self._writer.execute(
            "SELECT id::text FROM outbox_event WHERE payload = %s", [POISON]
        ).fetchall()
        self._poison = {id_ for (id_,) in found}
        found = self._writer.execute("SELECT job FROM outbox_job WHERE outcome <> 'done'").fetchall()
        self._unfinished = {job for (job,) in found}

    def _settled(self) -> bool:
        settled = self._writer.execute(SETTLED).fetchone() == (True,)
        self._rounds += 1
        if self._rounds % 8 == 0:
            self._owners[0].tenure = None  # another shard may be the one with something to do
        return settled

    def _judge(self) -> None:
        effects = self._effects()
        self._judge_once([found for found in effects if found.seq not in self._job_of])
        for asked in self._asked:
            self._judge_replay(asked, effects)

    def _judge_replay(self, asked: Asked, effects: list[Record]) -> None:
        replayed = [found.id for found in effects if self._job_of.get(found.seq) in asked.jobs]
        self.replayed += len(replayed)
        if len(set(replayed)) != len(replayed):
            raise Violation(f"replay {asked.jobs} repeats an event")
        missing = asked.landed - set(replayed) - self._parked - self._poison
        if missing and not asked.jobs & self._unfinished:
            raise Violation(f"replay {asked.jobs} lacks {len(missing)} of {len(asked.landed)}")
        for job in asked.jobs:
            self._judge_begin(job)
        place = {id_: n for n, id_ in enumerate(replayed)}
        for key in KEYS[:-1]:
            order = [place[id_] for id_, of in self._written if of == key and id_ in place]
            if order != sorted(order):
                raise Violation(f"replay {asked.jobs}: key {key} is out of order")

    def _judge_begin(self, job: int) -> None:
        """One that was parked may come in once it was released; any other was there from the first."""
        first: set[str] = set()
        there: set[str] | None = None
        for found in self.log:
            of = self._job_of.get(found.seq)
            if of is None:
                first.add(found.id)
            elif of == job:
                there = there if there is not None else set(first)
                if found.id not in first:
                    raise Violation(f"replay {job} holds an event before it was sent first")
                if found.id not in there | self._parked:
                    raise Violation(f"replay {job} holds one that had not been sent when it began")
