"""Everything at once: writers of every kind, relays killed, frozen and cut off, brokers killed and frozen."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from signal import SIGCONT, SIGKILL, SIGSTOP

import psycopg

from outbox.testing.servers import KafkaBroker
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, Session

KEYS = 12

COUNT = "UPDATE counter SET n = n + 1 WHERE key = %s RETURNING n"
EMIT = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
VALUES (gen_random_uuid(), 'thing', %s, 'thing.changed.v1', convert_to(%s::text, 'UTF8'), %s)
"""
COMMITTED = """
SELECT id::text, aggregateid FROM outbox_event
ORDER BY aggregateid, convert_from(payload, 'UTF8')::bigint
"""
OURS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ '^outbox-relay' AND random() < 0.5
"""


def keys(scene: Scene) -> None:
    """What the writers count in: one row a key."""
    scene.session.execute("CREATE TABLE counter (key text PRIMARY KEY, n bigint NOT NULL)")
    scene.session.execute(
        f"INSERT INTO counter SELECT 'k' || k, 0 FROM generate_series(0, {KEYS}) k".encode()
    )


class Writer(threading.Thread):
    """One application session. A key's row is locked before its event is recorded, as services do."""

    def __init__(self, scene: Scene, seed: int, until: float) -> None:
        super().__init__(daemon=True)
        self._scene, self._until, self._seed = scene, until, seed
        self._random = random.Random(seed)
        self._prepared: list[str] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        kinds = [self._plain] * 6 + [self._savepoints] * 3 + [self._undone, self._long, self._two_phase]
        try:
            with psycopg.connect(self._scene.database, autocommit=True) as session:
                while time.monotonic() < self._until:
                    self._random.choice(kinds)(session)
                    self._settle(session, share=0.5)
                self._settle(session, share=1)
        except BaseException as failure:
            self.failure = failure

    def _change(self, session: Session, times: int) -> None:
        for key in sorted(self._random.choices(range(KEYS), k=times)):
            row = session.execute(COUNT, [f"k{key}"]).fetchone()
            assert row is not None
            session.execute(EMIT, [f"k{key}", row[0], self._scene.topic])

    def _plain(self, session: Session) -> None:
        with session.transaction():
            self._change(session, self._random.randint(1, 6))

    def _savepoints(self, session: Session) -> None:
        # Changes of a later savepoint lock later keys only: two writers never wait for each other.
        with session.transaction():
            self._change(session, 1)
            with session.transaction(force_rollback=self._random.random() < 0.5):
                session.execute("SET LOCAL lock_timeout = '300ms'")
                with contextlib.suppress(psycopg.errors.LockNotAvailable), session.transaction():
                    self._change(session, 2)

    def _undone(self, session: Session) -> None:
        with session.transaction(force_rollback=True):
            self._change(session, 3)

    def _long(self, session: Session) -> None:
        with session.transaction():
            session.execute(EMIT, [f"long-{self._seed}", int(time.monotonic() * 1e6), self._scene.topic])
            session.execute("SELECT pg_sleep(%s)", [self._random.uniform(0.2, 1.0)])

    def _two_phase(self, session: Session) -> None:
        name = f"{self._scene.topic}-{self._seed}-{time.monotonic_ns()}"
        own = [f"prepared-{name}", 1, self._scene.topic]
        session.execute("BEGIN")
        session.execute(EMIT, own)
        session.execute(f"PREPARE TRANSACTION '{name}'".encode())
        self._prepared.append(name)

    def _settle(self, session: Session, share: float) -> None:
        for name in [name for name in self._prepared if self._random.random() < share]:
            verb = self._random.choice(["COMMIT", "COMMIT", "ROLLBACK"])
            session.execute(f"{verb} PREPARED '{name}'".encode())
            self._prepared.remove(name)


class Trouble:
    """Breaks something again and again, and mends it in the end. `done` counts what.

    `restarts`: in how many of ten deeds a broker dies, also while it recovers. One of several brokers can
    also freeze, as a stalled machine does.
    """

    def __init__(
        self,
        scene: Scene,
        brokers: Sequence[KafkaBroker],
        start: Callable[[], RelayProcess],
        seed: int,
        *,
        restarts: int = 1,
    ) -> None:
        self._scene, self._brokers, self._start = scene, brokers, start
        self._restarts = restarts
        self._random = random.Random(seed)
        self.relays = [start(), start()]
        self._frozen: list[RelayProcess] = []
        self._stalled: KafkaBroker | None = None
        self.done: Counter[str] = Counter()

    def go_on(self, until: float) -> None:
        """Until the time is over; the pauses are part of the schedule."""
        deeds = [self._kill] * 4 + [self._freeze] * 3 + [self._sever] * 2 + [self._restart] * self._restarts
        if len(self._brokers) > 1:
            deeds += [self._stall]
        while time.monotonic() < until:
            time.sleep(self._random.uniform(0.2, 0.9))
            self._random.choice(deeds)()
        self._thaw()
        self._resume()

    def _kill(self) -> None:
        victim = self._random.randrange(2)
        self.relays[victim].send(SIGKILL)
        self.relays[victim].wait()
        self._frozen = [relay for relay in self._frozen if relay is not self.relays[victim]]
        self.relays[victim] = self._start()
        self.done["relays killed"] += 1

    def _freeze(self) -> None:
        if self._frozen and self._random.random() < 0.7:
            self._thaw()
            return
        sleeper = self._random.choice(self.relays)
        sleeper.send(SIGSTOP)
        self._frozen.append(sleeper)
        self.done["relays frozen"] += 1

    def _thaw(self) -> None:
        for relay in self._frozen:
            relay.send(SIGCONT)
        self._frozen.clear()

    def _sever(self) -> None:
        self._scene.session.execute(OURS)
        self.done["sessions severed"] += 1

    def _restart(self) -> None:
        victim = self._random.choice(self._brokers)
        if victim is self._stalled:
            self._stalled = None
        victim.kill()
        victim.launch()
        self.done["brokers killed"] += 1

    def _stall(self) -> None:
        if self._stalled is not None:
            self._resume()
            return
        self._stalled = self._random.choice(self._brokers)
        self._stalled.pause()
        self.done["brokers frozen"] += 1

    def _resume(self) -> None:
        if self._stalled is not None:
            self._stalled.resume()
        self._stalled = None
