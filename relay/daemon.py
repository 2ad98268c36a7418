"""Wire the relay's actors together; the only place that knows them all."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from outbox import hooks
from relay import loop
from relay.backlog import Backlog
from relay.config import RelayConfig
from relay.database import Database, name
from relay.health import Health
from relay.lease import Lease
from relay.metrics import Observed
from relay.mover import Mover
from relay.producers import Kafka
from relay.ring import EVERY, Ring
from relay.shard import Shard
from relay.tenure import Did

log = logging.getLogger("relay")

RENEWALS = 3
"""Renewals within one lease: two may fail before a successor takes over."""

HEARTBEAT = 3.0
"""Seconds until what is wrong shows in `status` at the latest, however long the lease."""

AWAIT_LEASE = 0.5
"""Seconds until a relay that carries nothing looks again whether scheduled events are its business."""

LATE = 3.0
"""Seconds after the time to stop until the connections to a database that does not answer are broken off."""


class Relay:
    """Publish each committed event of one database, in order, for as long as it runs.

    `run()` blocks until SIGTERM, SIGINT or `stop()`; `run_once()` does one round for a caller that loops
    itself. `ring()` is the doorbell of a service in the same process: it saves the wait for the next look. An
    Outbox in this process rings by itself while `run()` runs.
    """

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._bell = loop.Bell()
        self._asked_to_stop = loop.Bell()
        self._ended = loop.Bell()
        self._renew_at = self._turn_at = self._move_at = self._survey_at = 0.0
        self._status: dict[str, Any] = {
            "shard": config.shard,
            "state": "starting",
            "alarm": None,
            "published": 0,
        }
        self._lease = Lease(
            Database(config.url, prepared=config.prepared_statements),
            shard=config.shard,
            owner=config.instance,
            duration=config.lease,
            state=self._status,
        )
        self._shard = Shard(
            config,
            self._lease,
            Kafka(config.kafka_properties),
            stopping=lambda: self._bell.stopping,
            status=self._status,
            behind=lambda: self._backlog.alarm(config.shard),
        )
        self._ring = Ring(
            Database(config.url, prepared=config.prepared_statements), retention=config.retention
        )
        self._mover = Mover(Database(config.url, prepared=config.prepared_statements))
        self._backlog = Backlog(
            Database(config.url, prepared=config.prepared_statements), limit=config.pending_alarm
        )
        self._failure: BaseException | None = None

    @property
    def status(self) -> dict[str, Any]:
        """`state` (starting, standby, carrying, waiting, halted), `alarm` in words, events `published`."""
        return dict(self._status)

    def observed(self) -> Observed:
        """What a page of metrics shows of this relay and its database; never blocks."""
        status = self.status
        return Observed(
            database=name(self._config.url),
            status={**status, "shards": {self._config.shard: status}},
            shards=self._backlog.shards,
        )

    def ring(self) -> None:
        """An event was committed: look now."""
        self._bell.ring()

    def stop(self) -> None:
        """End `run()` after the chunk in hand; callable from any thread or signal handler."""
        self._bell.stop()
        self._asked_to_stop.stop()

    def run_once(self) -> Did:
        """Take the lease if it is free and do one round. Needs no other thread; call `close()` at the end.

        Call it again after `rest` seconds of what it returns, and at least three times within a lease.
        """
        now = time.monotonic()
        if now >= self._renew_at or not self._lease.held:
            self._renew_at = now + self._renew()
        if now >= self._turn_at:
            self._turn_at = now + self._turn_ring()
        if now >= self._move_at:
            self._move_at = now + self._move()
        if now >= self._survey_at:
            self._survey_at = now + self._backlog.run_once()
        return self._shard.run_once()

    def close(self) -> None:
        """End cleanly after `run_once`: confirm, release the lease."""
        self._shard.finish()
        self._ring.close()
        self._mover.close()
        self._backlog.close()
        self._lease.release()

    def run(self) -> None:
        """Carry events until told to stop. Raises what an operator has to mend (schema, rights, identity)."""
        log.info("relay %s: database %s", self._config.instance, Database(self._config.url))
        bells = [loop.Bell() for _ in range(4)]
        with _stopped_by_signals(self), self._healthy(), self._rung():
            beside = [
                self._beside("lease", self._renew, bells[0]),
                self._beside("ring", self._turn_ring, bells[1]),
                self._beside("mover", self._move, bells[2]),
                self._beside("backlog", self._backlog.run_once, bells[3]),
            ]
            threading.Thread(target=self._break_off_when_late, name="outbox-stop", daemon=True).start()
            try:
                loop.run(lambda: self._shard.run_once().rest, self._bell)
            finally:
                self.stop()
                self._end(bells, beside)
        if self._failure is not None:
            raise self._failure

    def _end(self, bells: list[loop.Bell], beside: list[threading.Thread]) -> None:
        try:
            # The lease is renewed until the last acknowledgement is written down.
            self._shard.finish()
            for bell in bells:
                bell.stop()
            for thread, actor in (
                (beside[1], self._ring),
                (beside[2], self._mover),
                (beside[3], self._backlog),
            ):
                thread.join(1.0)
                actor.break_off()  # what it asked for happens or not, whether or not we hear of it
            for thread in beside:
                thread.join()
            self._status["state"] = "stopped"
            self.close()
        finally:
            self._ended.stop()

    @contextmanager
    def _rung(self) -> Iterator[None]:
        """What services in this process commit meanwhile rings the bell by itself."""

        def hear(point: str, _facts: dict[str, Any]) -> None:
            if point == "outbox.committed":
                self.ring()

        unsubscribe = hooks.subscribe(hear)
        try:
            yield
        finally:
            unsubscribe()

    @contextmanager
    def _healthy(self) -> Iterator[None]:
        """Answer over HTTP while inside, when an address is set."""
        if self._config.health_address is None:
            yield
            return
        health = Health(self._config.health_address, lambda: [self.observed()])
        health.start()
        try:
            yield
        finally:
            health.close()

    def _beside(self, name: str, work: Callable[[], float], bell: loop.Bell) -> threading.Thread:
        """Loop on a thread and connection of its own, so that no amount of sending can starve it."""

        def guarded() -> None:
            try:
                loop.run(work, bell)
            except BaseException as failure:
                self._failure = failure
                self.stop()

        thread = threading.Thread(target=guarded, name=f"outbox-{name}", daemon=True)
        thread.start()
        return thread

    def _break_off_when_late(self) -> None:
        """A frozen database must not keep a stop waiting for ever: then what it was asked stays unknown."""
        while not self._asked_to_stop.sleep(60):
            pass
        wait = self._config.stop_timeout.total_seconds() + LATE
        while not self._ended.sleep(wait):
            log.warning("the database does not answer; its connections are broken off in order to stop")
            for actor in (self._shard, self._lease, self._ring, self._mover, self._backlog):
                actor.break_off()
            wait = 1.0

    def _turn_ring(self) -> float:
        if self._lease.held:
            self._ring.run_once()
        return EVERY.total_seconds()

    def _move(self) -> float:
        if not self._lease.held:
            return AWAIT_LEASE
        moved = self._mover.run_once()
        if moved.count:
            self._bell.ring()
        return moved.rest

    def _renew(self) -> float:
        before, held = self._lease.held, self._lease.run_once()
        if held and not before:
            self._bell.ring()
        seconds = self._config.lease.total_seconds()
        return min(seconds / RENEWALS, HEARTBEAT) if held else min(seconds / 10, 0.5)


@contextmanager
def _stopped_by_signals(relay: Relay) -> Iterator[None]:
    """SIGTERM and SIGINT end the relay cleanly; elsewhere than in the main thread they are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        relay.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
