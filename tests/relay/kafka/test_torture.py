"""Everything at once for some seconds: writers of every kind, relays killed and frozen, servers failing."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from signal import SIGCONT, SIGKILL, SIGSTOP

import psycopg
import pytest

from outbox.testing.servers import KafkaBroker
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, Session

SEED = int(os.environ.get("RELAY_TORTURE_SEED", "20"))
SECONDS = float(os.environ.get("RELAY_TORTURE_SECONDS", "10"))
"""Longer: RELAY_TORTURE_SECONDS=600 RELAY_TORTURE_SEED=7 pytest tests/relay/kafka/test_torture.py"""
KEYS = 12

Judge = Callable[[Sequence[wire.Arrived], Sequence[tuple[str, str | None]]], list[str]]

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
    """Breaks something again and again, and mends it in the end."""

    def __init__(
        self,
        scene: Scene,
        broker: KafkaBroker,
        start: Callable[[], RelayProcess],
        seed: int,
        *,
        restarts: bool = True,
    ) -> None:
        self._restarts = int(restarts)
        self._scene, self._broker, self._start = scene, broker, start
        self._random = random.Random(seed)
        self._relays = [start(), start()]
        self._frozen: list[RelayProcess] = []
        self.done: list[str] = []

    def go_on(self, until: float) -> None:
        """Until the time is over; the pauses are part of the schedule."""
        deeds = [self._kill] * 4 + [self._freeze] * 3 + [self._sever] * 2 + [self._restart] * self._restarts
        while time.monotonic() < until:
            time.sleep(self._random.uniform(0.2, 0.9))
            self._random.choice(deeds)()
        self._thaw()

    def _kill(self) -> None:
        victim = self._random.randrange(2)
        self._relays[victim].send(SIGKILL)
        self._relays[victim].wait()
        self._frozen = [relay for relay in self._frozen if relay is not self._relays[victim]]
        self._relays[victim] = self._start()
        self.done.append("kill")

    def _freeze(self) -> None:
        if self._frozen and self._random.random() < 0.7:
            self._thaw()
            return
        sleeper = self._random.choice(self._relays)
        sleeper.send(SIGSTOP)
        self._frozen.append(sleeper)
        self.done.append("freeze")

    def _thaw(self) -> None:
        for relay in self._frozen:
            relay.send(SIGCONT)
        self._frozen.clear()

    def _sever(self) -> None:
        self._scene.session.execute(OURS)
        self.done.append("sever")

    def _restart(self) -> None:
        self._broker.kill()
        self._broker.launch()
        self.done.append("broker")


@pytest.mark.slow
@pytest.mark.timeout(150 + SECONDS)
@pytest.mark.parametrize(
    ("mode", "judge"), [("sequenced", wire.complaints), ("transactional", wire.plain_complaints)]
)
def test_whatever_fails_nothing_is_lost_invented_or_overtaken(
    scene: Scene, start: StartRelay, broker: KafkaBroker, mode: str, judge: Judge
) -> None:
    """In mode transactional also to a reader without marks, but while the broker stays: a lone broker that is
    killed over and over, also while it recovers, can forget a transaction whose records it keeps."""
    if mode == "transactional":
        scene.transactional()
        first = start()
        scene.wait("SELECT mode = 'transactional' FROM outbox_shard")
        assert first.stop() == 0
    scene.session.execute("CREATE TABLE counter (key text PRIMARY KEY, n bigint NOT NULL)")
    scene.session.execute(
        f"INSERT INTO counter SELECT 'k' || k, 0 FROM generate_series(0, {KEYS}) k".encode()
    )
    until = time.monotonic() + SECONDS
    writers = [Writer(scene, seed, until) for seed in range(SEED, SEED + 4)]
    for writer in writers:
        writer.start()
    rows = {"look_rows": "20", "chunk_rows": "7", "transaction_rows": "7"}
    trouble = Trouble(scene, broker, lambda: start(**rows), SEED, restarts=mode == "sequenced")
    trouble.go_on(until)
    for writer in writers:
        writer.join(30)
        assert writer.failure is None, writer.failure
    scene.wait_until_through(60)
    committed = scene.session.execute(COMMITTED).fetchall()
    records = scene.arrived()
    assert judge(records, committed) == [], trouble.done
    assert len(committed) > 200
    assert len(trouble.done) > 5
