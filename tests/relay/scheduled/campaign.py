"""Writers, cancellers, movers and a saboteur on one table of scheduled events, and the verdict afterwards.

`python -m tests.relay.scheduled.campaign --seconds 60 --seed 1` runs a long one on a server of its own.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

import psycopg

from relay import mover
from relay.database import Database, plain_url
from tests.relay.scheduled.scheduling import Session, cancel, left, schedule

AHEAD = [0.3, 0.3, 2.0]
"""Seconds until an event is due at most."""

KEYS = [*(f"k{n}" for n in range(6)), None]
WRITER = "scheduled writer"

KILL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND application_name IN ('outbox-relay mover', 'scheduled writer')
ORDER BY random() LIMIT 1
"""
BEFORE_ITS_TIME = "SELECT due > clock_timestamp() FROM due_times WHERE id = %s"

NOTE = """
CREATE TABLE due_times (id uuid PRIMARY KEY, due timestamptz, seq bigint, key text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO due_times VALUES (NEW.id, NEW.due, NEW.seq, NEW.aggregateid); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON outbox_scheduled FOR EACH ROW EXECUTE FUNCTION note();
"""
"""What was ever scheduled and committed, kept where no mover reaches it."""

MOVED = """
SELECT e.id, d.key, d.due, d.seq FROM outbox_event e JOIN due_times d USING (id) ORDER BY e.position
"""


@dataclass
class Campaign:
    url: str
    seed: int
    movers: int = 3
    killing: bool = True
    stopping: threading.Event = field(default_factory=threading.Event)
    in_time: set[UUID] = field(default_factory=set)
    """Committed before they were due: for these the order is promised."""
    cancelled: Counter[UUID] = field(default_factory=Counter)
    unsure: set[UUID] = field(default_factory=set)
    """Whose cancel was killed at its COMMIT."""
    open: list[UUID] = field(default_factory=list)
    undone: int = 0
    """Cancels that held a row and were rolled back."""
    kills: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def run(self, seconds: float, *, at_most: float = 45.0) -> None:
        """Everybody works for so long, and longer until enough has happened to judge; then the writers end.

        The movers end when nothing is left.
        """
        end = time.monotonic() + seconds
        with psycopg.connect(plain_url(self.url), autocommit=True) as session:
            session.execute(NOTE)
            work = [*[self._write] * 2, *[self._cancel] * 2, *([self._kill] if self.killing else [])]
            writers = [self._start(job, n) for n, job in enumerate(work)]
            done = threading.Event()
            movers = [self._start(self._move(done), 100 + n) for n in range(self.movers)]
            for _ in range(int(at_most / 0.1)):
                if self.stopping.wait(0.1) or (time.monotonic() > end and self._enough()):
                    break
            self.stopping.set()
            for thread in writers:
                thread.join(30)
            session.execute("UPDATE outbox_scheduled SET due = due")  # waits for whoever still holds a row
            for _ in range(3000):
                if left(session) == 0 or self.failures:
                    break
                done.wait(0.01)
            done.set()
            for thread in movers:
                thread.join(30)
        if self.failures:
            raise self.failures[0]

    def complaints(self) -> list[str]:
        """What is wrong: an event moved twice or not at all, or also cancelled, or out of its key's order."""
        with psycopg.connect(plain_url(self.url)) as session:
            moved = session.execute(MOVED).fetchall()
            known = {id_ for (id_,) in session.execute("SELECT id FROM due_times").fetchall()}
        times = Counter(id_ for id_, *_ in moved)
        gone = set(self.cancelled)
        wrong = []
        if twice := [id_ for id_, n in (times + self.cancelled).items() if n > 1]:
            wrong.append(f"{len(twice)} moved or cancelled twice, or both")
        if lost := known - times.keys() - gone - self.unsure:
            wrong.append(f"{len(lost)} neither moved nor cancelled")
        lines = defaultdict(list)
        for id_, key, due, seq in moved:
            if key is not None and id_ in self.in_time:
                lines[key].append((due, seq))
        if inversions := sum(a > b for line in lines.values() for a, b in pairwise(line)):
            wrong.append(f"{inversions} inversions")
        return wrong

    @property
    def tally(self) -> str:
        with psycopg.connect(plain_url(self.url)) as session:
            row = session.execute("SELECT count(*) FROM outbox_event").fetchone()
        return f"{row[0] if row else 0} moved, {len(self.cancelled)} cancelled, {self.kills} backends killed"

    def _enough(self) -> bool:
        """A busy machine takes its time."""
        busy = len(self.in_time) > 100 and len(self.cancelled) > 5 and self.undone > 15
        return busy and (self.kills > 10 or not self.killing)

    def _start(self, job: Callable[[random.Random], None], number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                job(random.Random(self.seed * 1000 + number))
            except BaseException as failure:
                self.failures.append(failure)
                self.stopping.set()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _connect(self) -> Session:
        return psycopg.connect(plain_url(self.url), application_name=WRITER)

    def _write(self, chance: random.Random) -> None:
        while not self.stopping.is_set():
            with suppress(psycopg.OperationalError), self._connect() as session:
                while not self.stopping.is_set():
                    ids = [
                        schedule(session, chance.uniform(0, chance.choice(AHEAD)), key=chance.choice(KEYS))
                        for _ in range(chance.randint(1, 5))
                    ]
                    self.stopping.wait(chance.uniform(0, 0.01))
                    session.commit()
                    for id_ in ids:
                        if session.execute(BEFORE_ITS_TIME, [id_]).fetchone() == (True,):
                            self.in_time.add(id_)
                    session.rollback()
                    self.open += ids

    def _cancel(self, chance: random.Random) -> None:
        while not self.stopping.is_set():
            with suppress(psycopg.OperationalError), self._connect() as session:
                while not self.stopping.is_set():
                    if not self.open:
                        self.stopping.wait(0.01)
                        continue
                    id_ = chance.choice(self.open[-40:])
                    gone = cancel(session, id_)
                    self.stopping.wait(chance.uniform(0, 0.1))
                    if chance.random() < 0.6:
                        session.rollback()
                        self.undone += gone
                        continue
                    if gone:
                        self.unsure.add(id_)
                    session.commit()
                    if gone:
                        self.cancelled[id_] += 1

    def _move(self, done: threading.Event) -> Callable[[random.Random], None]:
        def move(chance: random.Random) -> None:
            actor = mover.Mover(Database(self.url))
            while not done.is_set():
                rest = actor.run_once().rest
                done.wait(min(rest, chance.uniform(0, 0.02)))
            actor.connection.close()

        return move

    def _kill(self, chance: random.Random) -> None:
        with psycopg.connect(plain_url(self.url), autocommit=True) as session:
            while not self.stopping.wait(chance.uniform(0.02, 0.12)):
                self.kills += len(session.execute(KILL).fetchall())


def main() -> None:
    """Exit 1 when a guarantee was broken."""
    from outbox.storage import ddl
    from outbox.testing.servers import start_postgres
    from tests.conftest import create_engine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    mover.BATCH = 7
    with start_postgres() as server:
        url = server.database("scheduled")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        campaign = Campaign(url, given.seed)
        campaign.run(given.seconds, at_most=given.seconds + 60)
        wrong = campaign.complaints()
        sys.stdout.write(f"seed {given.seed}: {campaign.tally}: {'; '.join(wrong) or 'nothing wrong'}\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
